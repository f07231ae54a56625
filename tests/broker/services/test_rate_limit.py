"""Limits: so many requests a minute, evenly refilled; a disk that is nearly full."""

import pytest
from hypothesis import given, strategies as st

from broker.engine.admission import DiskSpace
from broker.errors import Unavailable
from broker.services.rate_limit import RequestLimit


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_minutes_worth_at_once_then_evenly():
    """Nothing is lost by a burst, and each user has a bucket of one's own."""
    clock = Clock()
    limit = RequestLimit(60, clock)
    assert [limit.take("a")[0] for _ in range(60)] == list(range(59, -1, -1))
    left, wait = limit.take("a")
    assert (left, wait) == (-1, pytest.approx(1.0))
    assert limit.take("b")[0] == 59
    clock.now += 1.001
    assert limit.take("a")[0] == 0
    assert limit.take("a")[0] == -1
    clock.now += 3600
    assert limit.take("a")[0] == 59


@given(st.lists(st.floats(0, 5), min_size=1, max_size=300), st.integers(1, 100))
def test_never_more_than_the_rate_allows(pauses, per_minute):
    """In any window: a minute's worth, and what was refilled meanwhile; who waits as told is let
    in.
    """
    clock = Clock()
    limit = RequestLimit(per_minute, clock)
    taken = []
    for pause in pauses:
        clock.now += pause
        left, wait = limit.take("a")
        if left >= 0:
            taken.append(clock.now)
        else:
            clock.now += wait + 1e-6
            assert limit.take("a")[0] >= 0
            taken.append(clock.now)
    for number, start in enumerate(taken):
        within = [moment for moment in taken[number:] if moment - start <= 60]
        assert len(within) <= 2 * per_minute + 1


def test_users_that_are_gone_are_forgotten():
    """Memory does not grow with those who ever came."""
    clock = Clock()
    limit = RequestLimit(60, clock)
    for number in range(10_050):
        limit.take(f"u{number}")
        clock.now += 1.5
    assert len(limit._full_at) < 10_050


def test_a_disk_that_is_nearly_full_takes_nothing(tmp_path):
    """And says so by a code of its own; a database elsewhere has a disk of its own."""
    DiskSpace(tmp_path, 1).check()
    DiskSpace(None, 2**60).check()
    with pytest.raises(Unavailable, match="nearly full") as caught:
        DiskSpace(tmp_path, 2**60).check()
    assert caught.value.code == "disk_full"
