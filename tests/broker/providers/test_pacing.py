"""Within a pace for each verb, and away from a provider that is down; on a clock of its own."""

import asyncio

import pytest

from broker.errors import ProviderHeld, ProviderNotReady, ProviderPaced, ProviderUncertain
from broker.providers import pacing
from broker.providers.pacing import (
    FAILURES,
    FIRST_PAUSE,
    LONGEST_GAP,
    LONGEST_PAUSE,
    LONGEST_REST,
    Breaker,
    Pace,
)


class Clock:
    """Seconds that pass only by sleeping."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(pacing.asyncio, "sleep", self.sleep)

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += max(0.0, seconds)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


async def until_taken(pace, clock):
    """Comes again until the pace gives a turn; returns the seconds that it took."""
    began = clock.now
    while True:
        try:
            await pace.turn()
        except ProviderPaced:
            clock.now += 0.05
        else:
            return clock.now - began


async def test_calls_keep_a_pace(clock):
    """Twenty at ten a second take two seconds; after a rest there is no burst."""
    pace = Pace(10, clock)
    began = clock.now
    for _ in range(21):
        await pace.turn()
    assert clock.now - began == pytest.approx(2.0)
    clock.now += 60
    began = clock.now
    for _ in range(6):
        await pace.turn()
    assert clock.now - began == pytest.approx(0.5)


async def test_whose_turn_is_far_off_is_sent_away():
    """Of 400 that come at once, those of the next half second wait; the others hold nothing up."""
    real = Pace(100)
    waits = await asyncio.gather(*(real.turn() for _ in range(400)), return_exceptions=True)
    paced = [one for one in waits if isinstance(one, ProviderPaced)]
    assert 340 <= len(paced) < 400


async def test_a_429_rests_the_verb_and_slows_it_down_and_success_brings_it_back(clock):
    """The rest is the provider's own word where it gives one; the pace recovers by itself."""
    pace = Pace(10, clock)
    await pace.turn()
    pace.refused(seconds=7.0)
    assert await until_taken(pace, clock) == pytest.approx(7.0, abs=0.6)
    assert await until_taken(pace, clock) == pytest.approx(0.2, abs=0.01)
    for _ in range(40):
        pace.accepted()
    await until_taken(pace, clock)
    assert await until_taken(pace, clock) == pytest.approx(0.1, abs=0.01)


async def test_calls_that_are_refused_together_count_once(clock):
    """Twelve answers of one moment are one 429; a long series ends at a bound, and so does a long
    rest.
    """
    pace = Pace(10, clock)
    for _ in range(12):
        pace.refused()
    await until_taken(pace, clock)
    assert await until_taken(pace, clock) == pytest.approx(0.2, abs=0.01)
    for _ in range(30):
        clock.now += 2
        pace.refused()
    clock.now += 2
    await until_taken(pace, clock)
    assert await until_taken(pace, clock) == pytest.approx(LONGEST_GAP, abs=0.06)
    pace.refused(seconds=1e9)
    assert await until_taken(pace, clock) <= LONGEST_REST + 0.06


DOWN = ProviderUncertain("500")


def test_a_provider_that_is_down_is_left_alone_and_tried_now_and_then(clock):
    """Open after some failures; one call a pause; longer pauses; one success closes it."""
    breaker = Breaker(clock)
    for _ in range(FAILURES):
        breaker.check()
        breaker.failed(DOWN)
    pauses = []
    for _ in range(8):
        with pytest.raises(ProviderHeld):
            breaker.check()
        began = clock.now
        while True:
            clock.now += 0.5
            try:
                breaker.check()
            except ProviderHeld:
                continue
            break
        pauses.append(clock.now - began)
        # Only one tries.
        with pytest.raises(ProviderHeld):
            breaker.check()
        breaker.failed(DOWN)
    assert pauses[0] == pytest.approx(FIRST_PAUSE, abs=0.6)
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE, abs=0.6)
    breaker.succeeded()
    breaker.check()


def test_a_failure_now_and_then_opens_nothing(clock):
    """Only so many in a row."""
    breaker = Breaker(clock)
    for _ in range(10):
        for _ in range(FAILURES - 1):
            breaker.check()
            breaker.failed(DOWN)
        breaker.succeeded()
    breaker.check()


def test_a_wrong_key_opens_the_breaker_at_once(clock):
    """All other calls would fail alike; those held back report the same cause."""
    breaker, wrong = Breaker(clock), ProviderNotReady("the key is wrong")
    breaker.failed(wrong)
    assert breaker.holds
    with pytest.raises(ProviderHeld) as held:
        breaker.check()
    assert held.value.cause is wrong
    clock.now += FIRST_PAUSE
    assert (breaker.is_open, breaker.holds) == (True, False)
