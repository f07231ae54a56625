"""What this container may use of its machine: cores by affinity and quota, memory by its cgroup.

A container on a machine with 64 cores often has a quota of a few: with a thread for each core of
the machine, a process is held back for most of each period. The files are those of the kernel's
cgroup v2 and v1 interfaces (docs.kernel.org, "Control Group v2", "CPU" and "Memory").
"""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Returns how many cores this process may use, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.ceil(min(allowed or 1, _quota(cgroup))))


def memory_bytes(cgroup: Path = CGROUP) -> int:
    """Returns how much memory this process may use: the machine's, or less by its cgroup."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes")
    words = [word for path in limits for word in _words(path)[:1]]
    return min([machine, *(int(word) for word in words if word.isdigit())])


def _quota(cgroup: Path) -> float:
    """Returns the cgroup's CPU time per wall-clock time; infinite without a limit."""
    words = _words(cgroup / "cpu.max")
    if not words:
        folder = cgroup / "cpu"
        words = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
    # Without a limit, v2 has the word `max`, and v1 a quota of -1.
    if len(words) != 2 or not words[0].isdigit():
        return math.inf
    return int(words[0]) / int(words[1])


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
