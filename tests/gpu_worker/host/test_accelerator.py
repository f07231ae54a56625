"""What an error of a device means."""

import re
from pathlib import Path

import pytest
import torch

from gpu_worker.host import accelerator
from gpu_worker.host.accelerator import chosen_device, is_out_of_memory


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_too_little_memory_is_known_by_its_words(error, expected):
    """Libraries beside torch's allocator raise plain RuntimeErrors."""
    assert is_out_of_memory(error) is expected


def test_a_device_lives_until_a_sum_fails(pretend):
    """Whatever class the error has; too little memory for the sum is no such error."""
    assert pretend.accelerator.is_alive()
    pretend.limit = pretend.used
    assert pretend.accelerator.is_alive()
    pretend.limit, pretend.dead = None, True
    assert not pretend.accelerator.is_alive()


def test_a_device_has_its_index():
    """As tensors have it."""
    assert chosen_device("cpu") == torch.device("cpu")
    assert chosen_device("cuda").index == 0


def test_one_module_names_a_kind_of_gpu():
    """All others ask whether a device is the CPU, and so run on any; ffmpeg's options have a module
    of their own.
    """
    worker = Path(accelerator.__file__).parents[1]
    naming = {
        str(path.relative_to(worker))
        for path in worker.rglob("*.py")
        if re.search(r"torch\.cuda|\.is_cuda|\"cuda\"", path.read_text())
    }
    assert naming == {"host/accelerator.py", "media/hardware.py"}
