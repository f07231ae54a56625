"""Pixels between host and device, under a device's rules."""

import pytest
import torch

from gpu_worker.media.resample import Filter, taps
from gpu_worker.media.transfer import Landing, all_to_device, batch_to_device, to_device, upload
from tests.gpu_worker.pictures import CPU, noise, same
from tests.gpu_worker.pretend import OnDevice


def test_what_is_on_the_device_is_handed_back(pretend):
    """It is not copied, whether the device is named with its index or without."""
    there = OnDevice(torch.zeros(4))
    assert to_device(there, pretend.device) is there
    assert to_device(there, torch.device(pretend.device.type)) is there
    assert pretend.counts["operations"] == 0


def test_another_device_of_the_type_is_another_place(pretend):
    """A tensor on the first device is not handed back where the second is asked for."""
    there = OnDevice(torch.zeros(4))
    assert to_device(there, torch.device(pretend.device.type, 1)) is not there


def test_tensors_of_several_types_go_up_in_one_copy(pretend):
    """Nobody waits for it, and each arrives as it was."""
    groups = [
        [torch.arange(5, dtype=torch.uint8), torch.arange(5, 10, dtype=torch.uint8)],
        [torch.arange(6, dtype=torch.int32).view(2, 3)],
        [torch.rand(7)],
    ]
    there = upload(groups, pretend.device)
    assert (pretend.counts["uploads"], pretend.counts["syncs"]) == (1, 0)
    assert all(tensor.device == pretend.device for tensor in there)
    for group, tensor in zip(groups, there, strict=True):
        assert torch.equal(tensor.cpu(), torch.stack(group))


def test_on_a_cpu_nothing_is_copied():
    """The tensor itself is handed back; a single one of a group is viewed."""
    tensor = torch.zeros(4)
    assert to_device(tensor, CPU) is tensor
    assert upload([[tensor]], CPU)[0].data_ptr() == tensor.data_ptr()


def test_a_batch_and_its_filters_go_up_in_one_copy(pretend):
    """Frames of the host and filters together."""
    frames = [noise(30, 20, seed) for seed in range(3)]
    axis = Filter.of([taps(0.3, 0.5, 12)] * 3, 30)
    batch, [(columns, _)] = batch_to_device(frames, [(axis, axis)], pretend.device)
    assert (pretend.counts["uploads"], pretend.counts["syncs"]) == (1, 0)
    assert torch.equal(columns.indices.cpu(), axis.indices)
    assert same(Landing(batch.frames()).frames(), frames)


@pytest.mark.parametrize("on_device", [0, 1, 3])
def test_frames_of_both_sides_become_one_batch(pretend, on_device):
    """What a highlight has touched is on the device already; the rest follows in one copy."""
    frames = [noise(30, 20, seed) for seed in range(3)]
    mixed = [*all_to_device(frames[:on_device], pretend.device), *frames[on_device:]]
    pretend.counts.clear()
    batch, _ = batch_to_device(mixed, [], pretend.device)
    assert pretend.counts["uploads"] == (1 if on_device < 3 else 0)
    assert same(Landing(batch.frames()).frames(), frames)


def test_a_batch_lands_in_one_copy(pretend):
    """The host has the frames when it has waited, and not before; a repeated frame lands once, and
    a frame of the host passes through.
    """
    frames = [noise(30, 20, seed) for seed in range(2)]
    there = all_to_device(frames, pretend.device)
    host = noise(30, 20, 9)
    pretend.counts.clear()
    landing = Landing([there[0], host, there[1], there[1]])
    assert (pretend.counts["downloads"], pretend.counts["syncs"]) == (1, 0)
    assert not same([landing._frames[0]], frames[:1])
    landed = landing.frames()
    assert pretend.counts["waits"] == 1
    assert same(landed, [frames[0], host, frames[1], frames[1]])
    assert landed[1] is host
    assert landed[2] is landed[3]


def test_mixing_host_and_device_raises(pretend):
    """The pretend device is as strict as a GPU: else its tests would show nothing."""
    with pytest.raises(RuntimeError, match="on the host and on the device"):
        OnDevice(torch.zeros(4)) + torch.zeros(4)
    OnDevice(torch.zeros(4)).add_(torch.tensor(1.0))
    assert pretend.counts["syncs"] == 0
    torch.zeros(4).to(pretend.device)
    assert float(OnDevice(torch.zeros(4)).sum()) == 0.0
    assert pretend.counts["syncs"] == 2


def test_the_host_must_leave_alone_what_is_on_its_way(pretend):
    """A buffer that is changed before its copy has arrived is found."""
    frame = noise(30, 20)
    buffer = pretend.accelerator.pinned(4).fill_(1)
    buffer.to(pretend.device, non_blocking=True)
    buffer.fill_(2)
    with pytest.raises(AssertionError, match="being copied"):
        Landing(all_to_device([frame], pretend.device)).frames()


def test_memory_runs_out_and_comes_back(pretend):
    """A tensor that nobody holds gives its memory back."""
    pretend.limit = pretend.used + 1000
    held = torch.zeros(200, device=pretend.device)
    with pytest.raises(torch.OutOfMemoryError):
        torch.zeros(200, device=pretend.device)
    del held
    torch.zeros(200, device=pretend.device)
