"""A pretend accelerator: tensors that say that they are on a device of their own, on a machine that
has none.

torch lets Python stand in for a device (its "PrivateUse1"). Host and device cannot be mixed up on
it unnoticed, as on a GPU.
"""

import functools

import torch
from torch.utils import backend_registration


@functools.cache
def pretend_device() -> torch.device:
    """Returns the device; torch takes one such backend a process."""
    backend_registration._setup_privateuseone_for_python_backend("pretend")
    return torch.device("pretend", 0)


class OnDevice(torch.Tensor):
    """A tensor on the pretend device. Nothing can be computed with it or copied from it: all work
    on it raises.
    """

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> "OnDevice":
        return torch.Tensor._make_wrapper_subclass(
            cls, host.shape, dtype=host.dtype, device=pretend_device()
        )

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(f"{func} was called on the device")
