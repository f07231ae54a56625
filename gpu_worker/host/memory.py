"""A bound on the memory that this process may take while it parses a stranger's file."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

#: An 8K video of 10 bits needs 400 MB until its first frame; an index, 36 bytes a sample: six hours
#: at 240 frames a second need 190 MB. Both were measured with PyAV 18.
PARSING_BYTES = 1 << 30


@contextlib.contextmanager
def bounded_memory(more_bytes: int = PARSING_BYTES) -> Iterator[None]:
    """Limits this process's address space to its size now and `more_bytes`, while entered.

    A file may claim an index of any size, in a few bytes. FFmpeg's libraries then fail to allocate
    it, and report the file as damaged. Linux only: elsewhere there is no bound.
    """
    status = Path("/proc/self/statm")
    if not status.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(status.read_text().split()[0]) * resource.getpagesize()
    limit = size + more_bytes
    if soft == resource.RLIM_INFINITY or limit < soft:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
