"""Threads beside the edit: same items, same order, same errors, never more than a few at a time."""

import threading
import time

import pytest

from gpu_worker.render.stages import DEPTH, Ahead, Behind


def test_what_is_made_ahead_comes_in_order():
    """Each item once."""
    with Ahead(iter(range(100))) as ahead:
        assert list(ahead) == list(range(100))


def test_not_more_is_made_than_may_wait():
    """Memory stays constant, however slow the taker is."""
    made = []

    def items():
        for n in range(100):
            made.append(n)
            yield n

    with Ahead(items()) as ahead:
        next(iter(ahead))
        time.sleep(0.3)
        assert len(made) <= DEPTH + 2


def test_an_error_comes_after_what_was_made_before_it():
    """And again, for whoever asks again."""

    def items():
        yield 1
        raise ValueError("broken")

    with Ahead(items()) as ahead:
        taker = iter(ahead)
        assert next(taker) == 1
        with pytest.raises(ValueError, match="broken"):
            next(taker)
        with pytest.raises(ValueError, match="broken"):
            list(ahead)


def test_leaving_early_ends_the_thread():
    """Though items would go on for ever."""
    before = threading.active_count()
    with Ahead(iter(int, 1)) as ahead:
        next(iter(ahead))
    assert threading.active_count() == before


def test_what_is_handed_over_arrives_in_order():
    """All of it, before the `with` is left."""
    got = []
    with Behind(got.append) as behind:
        for n in range(100):
            behind.put(n)
    assert got == list(range(100))


def test_an_error_of_the_sink_reaches_the_one_who_puts():
    """Soon, and at the latest on leaving; nothing hangs."""

    def sink(item):
        raise OSError("full")

    with pytest.raises(OSError, match="full"), Behind(sink) as behind:
        for n in range(100):
            behind.put(n)
    with pytest.raises(OSError, match="full"), Behind(sink) as behind:
        behind.put(1)


def test_an_error_of_the_one_who_puts_drops_what_waits():
    """The sink gets no more than it has begun with."""
    got = []

    def slow(item):
        time.sleep(0.1)
        got.append(item)

    with pytest.raises(KeyError), Behind(slow) as behind:
        for n in range(DEPTH):
            behind.put(n)
        raise KeyError
    assert len(got) <= 1
