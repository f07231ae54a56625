"""A limit of requests a minute for each user."""

import time
from collections.abc import Callable

_USERS = 10_000


class RequestLimit:
    """A token bucket for each user (GCRA), kept as the moment at which the bucket is full again."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._gap = 60.0 / per_minute
        self._clock = clock
        self._full_at: dict[str, float] = {}

    def take(self, user_id: str) -> tuple[int, float]:
        """Counts one request.

        Returns:
            How many more are allowed now, and 0.0; or -1 and how many seconds to wait.
        """
        now = self._clock()
        if len(self._full_at) > _USERS:
            self._full_at = {user: full for user, full in self._full_at.items() if full > now}
        full_at = max(now, self._full_at.get(user_id, 0.0)) + self._gap
        # The tolerance covers the precision of floats after a long uptime.
        if full_at - now > 60.0 + 1e-6:
            return -1, full_at - now - 60.0
        self._full_at[user_id] = full_at
        return int((60.0 - (full_at - now)) / self._gap), 0.0
