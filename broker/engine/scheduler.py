"""Which job is looked at when: every open job when it is due, so many at once, until the broker ends."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
from starlette.concurrency import run_in_threadpool

from broker.engine.core import Core
from broker.errors import BrokerError
from broker.store.jobs import JobStore

log = structlog.get_logger(__name__)

IDLE_SECONDS = 1.0
#: What the refresh of the listings is called among the tasks in hand.
LISTING = "listing"
COUNT_SECONDS = 5.0
AT_ONCE = 12
#: Given-up attempts are no hurry, and must not keep jobs waiting.
ORPHANS_AT_ONCE = 4


class Scheduler:
    """Keeps looking. A slow job holds up no other; what cannot be reached is looked at again later.

    Args:
        clock: milliseconds since the epoch.
        on_failure: called with why a look came to nothing.
    """

    def __init__(
        self,
        store: JobStore,
        core: Core,
        clock: Callable[[], int],
        on_failure: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._store = store
        self._core = core
        self._on_failure = on_failure
        self._clock = clock
        self._woken = asyncio.Event()
        self._closed = False
        self._counted_at = -1
        self._in_hand: dict[str, asyncio.Task[None]] = {}

    def wake(self) -> None:
        """Has it look at once: a job came in, or somebody asked for a cancel."""
        self._woken.set()

    def close(self) -> None:
        """Has `run` return as soon as the looks that were begun are at their end.

        Cancelling it would leave their threads behind, in the middle of a transaction.
        """
        self._closed = True
        self._woken.set()

    async def run(self) -> None:
        """Looks until closed."""
        async with asyncio.TaskGroup() as tasks:
            while not self._closed:
                self._woken.clear()
                try:
                    await self._start_due(tasks)
                except Exception:  # a full disk, say: the loop must outlive it
                    log.exception("store_failed")
                try:
                    await asyncio.wait_for(self._woken.wait(), IDLE_SECONDS)
                except TimeoutError:
                    continue

    async def _start_due(self, tasks: asyncio.TaskGroup) -> None:
        now = self._clock()
        if not 0 <= now - self._counted_at < COUNT_SECONDS * 1000:
            self._counted_at = now
            self._core.reconciler.crowd(await run_in_threadpool(self._store.count_open))
            await self._core.drain.read()
            self._take(tasks, LISTING, AT_ONCE, self._core.listings.refresh)
        # Those in hand are still due; asked for beyond them, so that they do not hide the others.
        for job, attempts in await run_in_threadpool(self._store.due, now, AT_ONCE * 2):
            look = partial(self._core.reconciler.advance, job, attempts)
            self._take(tasks, job.id, AT_ONCE, look)
        if len(self._in_hand) < ORPHANS_AT_ONCE:
            for _, orphan in await run_in_threadpool(self._store.orphans, now, ORPHANS_AT_ONCE):
                release = partial(self._core.orphans.release, orphan.token)
                self._take(tasks, orphan.token, ORPHANS_AT_ONCE, release)

    def _take(
        self, tasks: asyncio.TaskGroup, name: str, most: int, look: Callable[[], Awaitable[None]]
    ) -> None:
        if name not in self._in_hand and len(self._in_hand) < most:
            task = self._in_hand[name] = tasks.create_task(self._safely(name, look))
            task.add_done_callback(partial(self._put_down, name))

    def _put_down(self, name: str, _task: asyncio.Task[None]) -> None:
        del self._in_hand[name]
        if len(self._in_hand) < AT_ONCE // 2:
            self._woken.set()  # there may be more due than were taken in hand

    async def _safely(self, name: str, look: Callable[[], Awaitable[None]]) -> None:
        """Looks; the trouble of one job, of whatever kind, must not stop the others."""
        try:
            await look()
        except Exception as error:
            # Which job it was about is bound by then; the name of an orphan is a token, and nobody's business.
            if isinstance(error, BrokerError):
                log.warning("look_failed", error=str(error))
            else:
                log.exception("look_crashed")
            self._on_failure("unreachable" if isinstance(error, BrokerError) else "crashed")
            await self._postpone(name)

    async def _postpone(self, name: str) -> None:
        try:
            await self._core.reconciler.postpone(name)
        except Exception:
            log.exception("store_failed")
            await asyncio.sleep(IDLE_SECONDS)  # still due, and still failing: do not spin
