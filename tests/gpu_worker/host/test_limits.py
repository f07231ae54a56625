"""What a container may use."""

import os

import pytest

from gpu_worker.host.limits import memory_bytes, usable_cores

ALLOWED = len(os.sched_getaffinity(0))


def written(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, ALLOWED),
        ({"cpu.max": "max 100000\n"}, ALLOWED),
        ({"cpu.max": "150000 100000\n"}, min(ALLOWED, 2)),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, ALLOWED),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ],
)
def test_cores_are_those_of_affinity_and_quota(tmp_path, files, cores):
    """Of cgroup v2 and v1; a part of a core counts as one."""
    assert usable_cores(written(tmp_path, files)) == cores


def test_affinity_alone_limits_too(monkeypatch, tmp_path):
    """As `taskset` and Kubernetes' static policy set it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert usable_cores(tmp_path) == 1


@pytest.mark.parametrize(
    "files",
    [{"memory.max": "1073741824\n"}, {"memory/memory.limit_in_bytes": "1073741824\n"}],
)
def test_memory_is_what_the_cgroup_allows(tmp_path, files):
    """Of cgroup v2 and v1."""
    assert memory_bytes(written(tmp_path, files)) == 1 << 30


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"memory.max": "max\n"},
        {"memory/memory.limit_in_bytes": "9223372036854771712\n"},
    ],
)
def test_without_a_limit_memory_is_the_machines(tmp_path, files):
    """cgroup v1 has a number that is larger than any machine."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_bytes(written(tmp_path, files)) == machine
