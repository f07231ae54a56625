"""What the worker needs of a GPU beside tensors: pinned memory, events, free memory, its health.

This is the only module that names a kind of GPU. All others ask `device.type != "cpu"`.
"""

import functools
from collections.abc import Callable
from typing import Literal, Protocol

import torch

#: What `REELBROKER_DEVICE` takes.
Choice = Literal["auto", "cpu", "cuda"]
#: What cuDNN, cuBLAS and the driver report when they have no memory for a workspace, a handle or a
#: kernel: plain RuntimeErrors, unlike those of torch's own allocator.
_OUT_OF_MEMORY = (
    "out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
)


class Event(Protocol):
    """A point in a device's queue of work."""

    def synchronize(self) -> None:
        """Waits until the device has reached it."""
        ...


class Accelerator:
    """One device that is not the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def pinned(self, count: int) -> torch.Tensor:
        """Returns (count,) uint8 in page-locked host memory, not initialised.

        A copy between such memory and the device holds up neither side. torch reuses a block only
        when the copies from it and to it are done.
        """
        return torch.empty(count, dtype=torch.uint8, pin_memory=True)

    def record(self) -> Event:
        """Returns an event behind all work that was queued so far."""
        # One that sleeps: by default, the driver spins on a core while it waits, and `torch.Event`
        # ignores the wish (its documentation, 2.13).
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def synchronize(self) -> None:
        """Waits until the device has done all work that was queued so far."""
        torch.accelerator.synchronize(self.device)

    def free_bytes(self) -> int:
        """Returns the bytes that could be allocated; those that torch holds unused count too."""
        unused = torch.accelerator.memory_reserved(self.device)
        unused -= torch.accelerator.memory_allocated(self.device)
        return int(torch.accelerator.get_memory_info(self.device)[0]) + unused

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Runs `work`; returns by how many bytes the use was higher then than before."""
        before = torch.accelerator.memory_allocated(self.device)
        torch.accelerator.reset_peak_memory_stats(self.device)
        work()
        return torch.accelerator.max_memory_allocated(self.device) - before

    def recorded(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Records the launches of `work`; returns what launches them again, and what they write.

        The work has run before, and waits for nothing.
        """
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device's driver meanwhile, for pinned memory.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            made = work()
        return graph.replay, made

    def release(self) -> None:
        """Gives memory that torch holds unused back to the device."""
        torch.accelerator.empty_cache()

    def is_alive(self) -> bool:
        """False where a sum on the device fails: its context is dead, and only a new process helps.

        Errors reach the host late, in whatever call comes next, and as several classes. So the
        class of an error does not say whether the device has failed.
        """
        try:
            return float(torch.ones(2, device=self.device).sum()) == 2.0
        except torch.OutOfMemoryError:
            return True
        except RuntimeError:
            return False

    def describe(self) -> str:
        """Returns the device's name, memory and software, for the log."""
        properties = torch.cuda.get_device_properties(self.device)
        return f"{properties.name}, {properties.total_memory >> 20} MiB, CUDA {torch.version.cuda}"

    def name(self) -> str:
        """Returns the device's name, as price lists have it."""
        return torch.cuda.get_device_name(self.device)


@functools.cache
def accelerator(device: torch.device) -> Accelerator:
    """Returns the accelerator that a device is."""
    return Accelerator(device)


def chosen_device(choice: Choice) -> torch.device:
    """Returns the device of a choice: a GPU with its index, as tensors have it."""
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", 0)


def is_out_of_memory(error: BaseException) -> bool:
    """True where an error means that the device has too little memory for what was tried."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )
