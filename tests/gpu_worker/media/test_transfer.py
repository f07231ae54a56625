"""Pixels between host and device."""

import pytest
import torch

from gpu_worker.media.frames import Frame
from gpu_worker.media.transfer import frame_to_device, to_device
from tests.gpu_worker.pretend import OnDevice, pretend_device


@pytest.mark.parametrize("with_index", [True, False])
def test_what_is_on_the_device_is_handed_back(with_index):
    """It is not copied or pinned, whether the device is named with its index or without."""
    device = pretend_device() if with_index else torch.device(pretend_device().type)
    frame = Frame(
        *(OnDevice(torch.zeros(shape, dtype=torch.uint8)) for shape in ((4, 4), (2, 2), (2, 2)))
    )
    moved = frame_to_device(frame, device)
    assert all(there is plane for there, plane in zip(moved.planes, frame.planes, strict=True))


def test_another_device_of_the_type_is_another_place():
    """A tensor on the first device is not handed back where the second is asked for."""
    with pytest.raises(NotImplementedError, match="_to_copy"):
        to_device(OnDevice(torch.zeros(4)), torch.device(pretend_device().type, 1))


def test_what_goes_to_a_device_is_pinned_first(monkeypatch):
    """So that the copy holds nobody up; torch cannot pin for a pretend device, so its pinning is
    replaced.
    """
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda host: OnDevice(host))
    moved = to_device(torch.zeros(4), pretend_device())
    assert moved.device == pretend_device()


def test_on_a_cpu_nothing_is_copied():
    """The tensor itself is handed back."""
    tensor = torch.zeros(4)
    assert to_device(tensor, torch.device("cpu")) is tensor
