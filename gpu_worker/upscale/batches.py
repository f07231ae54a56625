"""How many pictures a network takes at once: what a pixel needs is measured, and memory that is
free is not left over.
"""

from collections.abc import Callable

from gpu_worker.host.accelerator import Accelerator

#: More hardly helps: from there on a GPU is as busy as it can be.
LARGEST = 8
#: What stays free for the rest of the worker, and for what the allocator cannot use.
USABLE = 0.8


class Batches:
    """The size of batches by the size of pictures; without an accelerator always 1: a CPU's caches
    are the limit.
    """

    def __init__(self, accelerator: Accelerator | None) -> None:
        self._accelerator = accelerator
        self.largest = LARGEST if accelerator is not None else 1
        self._bytes_a_pixel = 0.0

    def size(self, pixels: int) -> int:
        """Returns how many pictures of so many pixels to take at once; 1 while nothing was
        measured.
        """
        if self._accelerator is None or not self._bytes_a_pixel:
            return 1
        fitting = self._accelerator.free_bytes() * USABLE / (self._bytes_a_pixel * pixels)
        return max(1, min(self.largest, int(fitting)))

    def measured(self, pixels: int, work: Callable[[], object]) -> None:
        """Runs `work` on so many pixels, of all pictures together, and measures what it needs."""
        if self._accelerator is None:
            work()
        else:
            peak = self._accelerator.peak_bytes(work)
            self._bytes_a_pixel = max(self._bytes_a_pixel, peak / pixels)
