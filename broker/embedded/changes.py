"""Long polls: calls that wait for a change of the queue."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
#: How often a waiting call checks whether its caller is still there.
CHECK_SECONDS = 1.0


async def _never() -> bool:
    return False


class Changes:
    """Wakes every call that waits for a change."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Something has changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def first(
        self,
        poll: Callable[[], T],
        seconds: float,
        is_gone: Callable[[], Awaitable[bool]] = _never,
    ) -> T | None:
        """Calls `poll` after every change and returns its first result that is not empty.

        Returns None after so many seconds, or when the caller is gone.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not await is_gone():
                    changed = self._changed
                    if found := poll():
                        return found
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), CHECK_SECONDS)
        return None
