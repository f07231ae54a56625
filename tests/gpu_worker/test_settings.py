"""What the environment says becomes settings."""

import pytest
import torch


@pytest.mark.parametrize(
    ("asked", "there_is_one", "device"),
    [
        ("auto", True, torch.device("cuda", 0)),
        ("auto", False, torch.device("cpu")),
        ("cuda", False, torch.device("cuda", 0)),
        ("cpu", True, torch.device("cpu")),
    ],
)
def test_a_gpu_has_its_index(settings, monkeypatch, asked, there_is_one, device):
    """So that it equals the device of a tensor that is on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is_one)
    assert settings(REELBROKER_DEVICE=asked).torch_device == device
