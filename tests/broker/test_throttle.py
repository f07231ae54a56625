"""Within a pace, and away from a provider that is down; on a clock of its own."""

import asyncio

import pytest

from broker import throttle
from broker.errors import ProviderUnreachable
from broker.throttle import FAILURES, FIRST_PAUSE, LONGEST_PAUSE, Throttle


class Clock:
    """Seconds that pass only by sleeping."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        self._sleep = asyncio.sleep
        monkeypatch.setattr(throttle.asyncio, "sleep", self.sleep)

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += max(0.0, seconds)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


async def test_calls_keep_a_pace(clock):
    """Twenty at ten a second take two seconds; after a rest there is no burst."""
    paced = Throttle(10, clock)
    began = clock.now
    for _ in range(21):
        await paced.turn()
    assert clock.now - began == pytest.approx(2.0)
    clock.now += 60
    began = clock.now
    for _ in range(6):
        await paced.turn()
    assert clock.now - began == pytest.approx(0.5)


async def test_a_provider_that_is_down_is_left_alone_and_tried_now_and_then(clock):
    """Open after some failures; one call a pause; longer pauses; one success closes it."""
    broken = Throttle(1000, clock)
    for _ in range(FAILURES):
        await broken.turn()
        broken.failed()
    pauses = []
    for _ in range(8):
        with pytest.raises(ProviderUnreachable):
            await broken.turn()
        began = clock.now
        while True:
            clock.now += 0.5
            try:
                await broken.turn()
            except ProviderUnreachable:
                continue
            break
        pauses.append(clock.now - began)
        with pytest.raises(ProviderUnreachable):  # only one tries
            await broken.turn()
        broken.failed()
    assert pauses[0] == pytest.approx(FIRST_PAUSE, abs=0.6)
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE, abs=0.6)
    broken.succeeded()
    await broken.turn()


async def test_a_failure_now_and_then_opens_nothing(clock):
    """Only so many in a row."""
    shaky = Throttle(1000, clock)
    for _ in range(10):
        for _ in range(FAILURES - 1):
            await shaky.turn()
            shaky.failed()
        shaky.succeeded()
