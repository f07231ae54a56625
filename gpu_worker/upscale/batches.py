"""How many pictures a network takes at once: what one needs is measured, and memory that is free is
not left over.
"""

from collections.abc import Callable
from typing import Protocol

import torch

#: More hardly helps: from there on a GPU is as busy as it can be.
LARGEST = 8
#: What stays free for the rest of the worker, and for what the allocator cannot use.
USABLE = 0.8


class Memory(Protocol):
    """A device's memory."""

    def free(self) -> int:
        """Returns the bytes that could be had."""
        ...

    def peak(self, work: Callable[[], object]) -> int:
        """Returns by how many bytes the use was higher during `work` than before it."""
        ...


class CudaMemory:
    """As torch and the driver report."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free(self) -> int:
        """Counts what torch holds without using it, too."""
        held = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(torch.cuda.mem_get_info(self._device)[0]) + held

    def peak(self, work: Callable[[], object]) -> int:
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        work()
        return torch.cuda.max_memory_allocated(self._device) - before


class Batches:
    """The size of batches by the size of pictures; without a `memory`, on a CPU, always 1: its
    caches are the limit.
    """

    def __init__(self, memory: Memory | None) -> None:
        self._memory = memory
        self.largest = LARGEST if memory is not None else 1
        self._cost: dict[tuple[int, int], int] = {}

    def size(self, shape: tuple[int, int], try_one: Callable[[], object]) -> int:
        """Returns how many pictures of (height, width) to take at once.

        Args:
            try_one: runs the network on one such picture; called where that size is new.
        """
        if self._memory is None or self.largest == 1:
            return 1
        if shape not in self._cost:
            self._cost[shape] = max(1, self._memory.peak(try_one))
        return max(1, min(self.largest, int(self._memory.free() * USABLE) // self._cost[shape]))

    def too_large(self, count: int) -> None:
        """Takes at most half as many from now on: what was measured did not hold."""
        self.largest = min(self.largest, max(1, count // 2))
