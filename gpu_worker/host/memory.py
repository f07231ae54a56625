"""A bound on the memory that this process may take while it parses a stranger's file."""

import contextlib
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

#: An 8K video of 10 bits needs 400 MB until its first frame; an index, 36 bytes a sample: six hours
#: at 240 frames a second need 190 MB. Both were measured with PyAV 18.
PARSING_BYTES = 1 << 30


class _Bound:
    """The limit of the process: the first who enters sets it, and the last who leaves lifts it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    def enter(self, more_bytes: int) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = soft, hard = resource.getrlimit(resource.RLIMIT_AS)
                limit = _address_space() + more_bytes
                if soft == resource.RLIM_INFINITY or limit < soft:
                    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                resource.setrlimit(resource.RLIMIT_AS, self._before)


_bound = _Bound()


@contextlib.contextmanager
def bounded_memory(more_bytes: int = PARSING_BYTES) -> Iterator[None]:
    """Limits this process's address space to its size now and `more_bytes`, while entered.

    A file may claim an index of any size, in a few bytes. FFmpeg's libraries then fail to allocate
    it, and report the file as damaged. Linux only: elsewhere there is no bound.
    """
    if not Path("/proc/self/statm").exists():
        yield
        return
    _bound.enter(more_bytes)
    try:
        yield
    finally:
        _bound.leave()


def _address_space() -> int:
    """Returns the size of this process's address space in bytes."""
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()
