"""Reconciles every open job when it is due, a bounded number at once, until the broker ends."""

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
COUNT_SECONDS = 5.0
AT_ONCE = 12
#: Orphans are not urgent, and must not keep jobs waiting.
ORPHANS_AT_ONCE = 4
#: The name of the task that refreshes the listings, among those in hand.
LISTING = "listing"


class Scheduler:
    """Reconciles what is due. A slow job delays no other; a job with an error is due again later.

    Args:
        clock: milliseconds since the epoch.
        on_failure: called with the reason of each failed reconcile, `unreachable` or `crashed`.
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
        """Starts what is due at once: a job was accepted or cancelled."""
        self._woken.set()

    def close(self) -> None:
        """Lets `run` return as soon as the tasks in hand end.

        A cancel would leave their threads behind, in the middle of a transaction.
        """
        self._closed = True
        self._woken.set()

    async def run(self) -> None:
        """Runs until closed."""
        async with asyncio.TaskGroup() as tasks:
            while not self._closed:
                self._woken.clear()
                try:
                    await self._start_due(tasks)
                except Exception:
                    # The loop outlives any error of the store, such as a full disk.
                    log.exception("store_failed")
                try:
                    await asyncio.wait_for(self._woken.wait(), IDLE_SECONDS)
                except TimeoutError:
                    continue

    async def _start_due(self, tasks: asyncio.TaskGroup) -> None:
        now = self._clock()
        if not 0 <= now - self._counted_at < COUNT_SECONDS * 1000:
            self._counted_at = now
            count = await run_in_threadpool(self._store.count_open)
            self._core.reconciler.set_open_jobs(count)
            await self._core.drain.read()
            self._start(tasks, LISTING, AT_ONCE, self._core.listings.refresh)
        free, in_hand = AT_ONCE - len(self._in_hand), list(self._in_hand)
        due = await run_in_threadpool(self._store.due, now, free, in_hand) if free > 0 else ()
        for job, attempts in due:
            work = partial(self._core.reconciler.advance, job, attempts)
            self._start(tasks, job.id, AT_ONCE, work)
        if len(self._in_hand) < ORPHANS_AT_ONCE:
            for _, orphan in await run_in_threadpool(self._store.orphans, now, ORPHANS_AT_ONCE):
                work = partial(self._core.orphans.release, orphan.token)
                self._start(tasks, orphan.token, ORPHANS_AT_ONCE, work)

    def _start(
        self, tasks: asyncio.TaskGroup, name: str, most: int, work: Callable[[], Awaitable[None]]
    ) -> None:
        if name not in self._in_hand and len(self._in_hand) < most:
            task = self._in_hand[name] = tasks.create_task(self._safely(name, work))
            task.add_done_callback(partial(self._ended, name))

    def _ended(self, name: str, _task: asyncio.Task[None]) -> None:
        del self._in_hand[name]
        if len(self._in_hand) < AT_ONCE // 2:
            # More jobs may be due than were started.
            self._woken.set()

    async def _safely(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Runs one task; an error of whatever kind must not stop the others."""
        try:
            await work()
        except Exception as error:
            # The log line names the job, which is bound by then. An orphan's name is a secret.
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
            # The job is still due and still fails: do not spin.
            await asyncio.sleep(IDLE_SECONDS)
