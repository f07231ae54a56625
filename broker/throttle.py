"""What keeps calls to the GPU provider within bounds: a pace, and a breaker that opens while the provider is down.

One for each endpoint. While the breaker is open nothing is sent at all, so "nothing was accepted" is certain, and jobs
wait where they are; from time to time one call tries whether the provider is back.
"""

import asyncio
import time
from collections.abc import Callable

from broker.errors import ProviderHeld

#: So many failures in a row open the breaker; then one call after 2, 4, 8 … up to 60 seconds is let through.
FAILURES, FIRST_PAUSE, LONGEST_PAUSE = 5, 2.0, 60.0


class Throttle:
    """Asked before each call, and told how it went.

    Args:
        per_second: how many calls may begin in a second.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._gap = 1 / per_second
        self._clock = clock
        self._next = 0.0
        self._failures = 0
        self._closed_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the last calls have failed, all of them: until one succeeds, hardly any is sent."""
        return self._failures >= FAILURES

    async def turn(self) -> None:
        """Waits for its turn.

        Raises:
            ProviderHeld: the breaker is open; do not send.
        """
        now = self._clock()
        if self.is_open:
            if now < self._closed_at:
                raise ProviderHeld(f"the provider is down; trying again in {self._closed_at - now:.0f} s")
            self._pause()  # for all but this one
        self._next = max(self._next, now) + self._gap
        await asyncio.sleep(self._next - self._gap - now)

    def succeeded(self) -> None:
        """The provider is there."""
        self._failures = 0

    def failed(self) -> None:
        """It did not answer, or said that it cannot."""
        self._failures += 1
        if self.is_open:
            self._pause()

    def _pause(self) -> None:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(10, self._failures - FAILURES))
        self._closed_at = self._clock() + pause
