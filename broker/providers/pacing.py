"""Bounds on the calls to a GPU provider: a pace for each verb, and a breaker for each endpoint.

A 429 slows one verb down. It does not open the breaker, because the provider is up. While the
breaker is open, nothing is sent, so nothing can have been accepted, and jobs wait; one call now
and then tests whether the provider is back.
"""

import asyncio
import time
from collections.abc import Callable

from broker.errors import ProviderError, ProviderHeld, ProviderNotReady, ProviderPaced

#: So many failures in a row open the breaker. Then one call passes after 2, 4, 8 … 60 seconds.
FAILURES, FIRST_PAUSE, LONGEST_PAUSE = 5, 2.0, 60.0

#: The longest wait for a turn. A caller whose turn is further off tries again later, so that the
#: few jobs in hand do not all wait for one verb.
LONGEST_WAIT = 0.5
#: A 429 doubles the gap between calls, up to this; each accepted call shortens the gap again.
LONGEST_GAP, RECOVERY = 2.0, 0.95
#: How long a verb rests after a 429 without `Retry-After`, and the longest rest with one.
REST_SECONDS, LONGEST_REST = 1.0, 60.0


class Pace:
    """The pace of one verb at one endpoint: even, and slower after a 429.

    Args:
        per_second: how many calls may begin in a second, at most.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._least_gap = self._gap = 1 / per_second
        self._clock = clock
        self._next = 0.0
        self._rests_until = 0.0

    async def turn(self) -> None:
        """Waits for the caller's turn.

        Raises:
            ProviderPaced: the turn is too far off; do not send.
        """
        now = self._clock()
        wait = max(0.0, self._next - now)
        if wait > LONGEST_WAIT:
            raise ProviderPaced(f"too many calls; the next may go in {wait:.1f} s")
        self._next = now + wait + self._gap
        await asyncio.sleep(wait)

    def accepted(self) -> None:
        """The provider took the call."""
        self._gap = max(self._least_gap, self._gap * RECOVERY)

    def refused(self, seconds: float | None = None) -> None:
        """The provider answered 429; `seconds` is its `Retry-After`."""
        now = self._clock()
        # Calls that were under way together are refused together; they count as one 429.
        if now >= self._rests_until:
            self._gap = min(LONGEST_GAP, self._gap * 2)
        rest = REST_SECONDS if seconds is None else min(seconds, LONGEST_REST)
        self._rests_until = max(self._rests_until, now + rest)
        self._next = max(self._next, self._rests_until)


class Breaker:
    """Whether an endpoint is called at all. Check before each call; report its outcome after."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._closed_at = 0.0
        self._cause: ProviderError | None = None

    @property
    def is_open(self) -> bool:
        """Whether the last calls all failed."""
        return self._failures >= FAILURES

    @property
    def holds(self) -> bool:
        """Whether a call would be held back now."""
        return self.is_open and self._clock() < self._closed_at

    def check(self) -> None:
        """Raises ProviderHeld where the call must not be sent."""
        if not self.is_open:
            return
        now = self._clock()
        if now < self._closed_at:
            wait = f"trying again in {self._closed_at - now:.0f} s"
            raise ProviderHeld(f"the provider is down; {wait}", self._cause)
        # For all calls but this one.
        self._pause()

    def succeeded(self) -> None:
        """The provider answered."""
        self._failures = 0

    def failed(self, cause: ProviderError) -> None:
        """The provider did not answer, or cannot take the call.

        A wrong account or key opens the breaker at once: all other calls would fail alike.
        """
        self._cause = cause
        self._failures += 1
        if isinstance(cause, ProviderNotReady):
            self._failures = max(self._failures, FAILURES)
        if self.is_open:
            self._pause()

    def _pause(self) -> None:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(10, self._failures - FAILURES))
        self._closed_at = self._clock() + pause
