"""The bound on memory while a file is parsed."""

import resource

from gpu_worker.host.memory import bounded_memory


def limit():
    return resource.getrlimit(resource.RLIMIT_AS)[0]


def test_the_last_who_leaves_lifts_the_bound():
    """Threads of two jobs may overlap; neither leaves a bound behind."""
    before = limit()
    first, second = bounded_memory(1 << 30), bounded_memory(1 << 30)
    first.__enter__()
    bounded = limit()
    second.__enter__()
    assert limit() == bounded != before
    first.__exit__(None, None, None)
    assert limit() == bounded
    second.__exit__(None, None, None)
    assert limit() == before


def test_a_tighter_bound_stays():
    """A container's own limit is never raised."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    tight = 64 << 40
    resource.setrlimit(resource.RLIMIT_AS, (tight, before[1]))
    try:
        with bounded_memory(128 << 40):
            assert limit() == tight
        assert limit() == tight
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
