"""Live events: each watcher of a job gets each of its events, in order and once.

The event log in the database is complete; the hub spares watchers from polling it. The `seq` of an
event is the job's version, so a watcher that finds a gap reads the missing events from the log. An
idle watcher costs memory and nothing else.
"""

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator

import structlog
from starlette.concurrency import run_in_threadpool

from broker.jobs.model import Event
from broker.store.jobs import JobStore

log = structlog.get_logger(__name__)

#: How many events a watcher may lag behind before it reads the log.
BACKLOG = 64
#: How often the hub polls watched jobs, where other processes change jobs too.
POLL_SECONDS = 1.0


class Feed:
    """The events of one job, for one watcher."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=BACKLOG)
        self._some = asyncio.Event()

    def put(self, event: Event) -> None:
        self._events.append(event)
        self._some.set()

    async def next(self) -> Event:
        """Waits for an event. A slow watcher may have missed others before it."""
        while not self._events:
            self._some.clear()
            await self._some.wait()
        return self._events.popleft()


class EventHub:
    """Passes events to the watchers of their job.

    Create the hub inside the event loop. Any thread may call `publish`.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._feeds: defaultdict[str, set[Feed]] = defaultdict(set)
        #: The newest seq that was passed on, of watched jobs.
        self._seen: dict[str, int] = {}
        self._closed = asyncio.Event()

    def publish(self, event: Event) -> None:
        """Passes an event to the watchers of its job."""
        # A RuntimeError means that the loop has ended, and with it all watchers.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._hand_on, event)

    @contextlib.contextmanager
    def subscribe(self, job_id: str) -> Iterator[Feed]:
        """Collects a job's events from now on. Read the log after this call: none is missed."""
        feed = Feed()
        self._feeds[job_id].add(feed)
        try:
            yield feed
        finally:
            self._feeds[job_id].discard(feed)
            if not self._feeds[job_id]:
                del self._feeds[job_id]
                self._seen.pop(job_id, None)

    async def follow(
        self, store: JobStore, job_id: str, after: int, feed: Feed
    ) -> AsyncIterator[Event]:
        """Yields a job's events with a seq above `after`, in order and without gaps, for ever."""
        missing = True
        while True:
            if missing:
                for event in await run_in_threadpool(store.events, job_id, after):
                    yield event
                    after = event.seq
            event = await feed.next()
            missing = event.seq > after + 1
            if event.seq == after + 1:
                yield event
                after = event.seq

    async def poll(self, store: JobStore) -> None:
        """Polls for the changes of other brokers on the database, until closed."""
        while not await self._is_closed_within(POLL_SECONDS):
            try:
                newest = await run_in_threadpool(store.versions, list(self._feeds))
                for job_id, version in newest.items():
                    if version > self._seen.get(job_id, 0):
                        for event in await run_in_threadpool(store.events, job_id, version - 1):
                            self._hand_on(event)
            except Exception:
                # Watchers wait until the database is back.
                log.exception("poll_failed")

    def close(self) -> None:
        """Lets `poll` return after its current query."""
        self._closed.set()

    async def _is_closed_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), seconds)
        return self._closed.is_set()

    def _hand_on(self, event: Event) -> None:
        if feeds := self._feeds.get(event.job_id):
            self._seen[event.job_id] = max(event.seq, self._seen.get(event.job_id, 0))
            for feed in feeds:
                feed.put(event)
