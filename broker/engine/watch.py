"""The live side of the event log: who watches a job hears of each of its events at once, and of none twice.

The log in the database is the truth; the hub only spares watchers from asking it. Each move writes one event whose `seq` is the
job's version, so a watcher that sees a gap, because it was slow or because two events were told in the wrong order, reads
what it missed. An idle watcher costs memory and nothing else.
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

#: How much a watcher may lag behind before it has to read the log.
BACKLOG = 64
#: How often watched jobs are asked for, where other processes move jobs too.
POLL_SECONDS = 1.0


class Feed:
    """The events of one job, as one watcher gets them."""

    def __init__(self) -> None:
        self._told: deque[Event] = deque(maxlen=BACKLOG)
        self._some = asyncio.Event()

    def put(self, event: Event) -> None:
        self._told.append(event)
        self._some.set()

    async def next(self) -> Event:
        """Waits for an event; there may be others between the last one and this."""
        while not self._told:
            self._some.clear()
            await self._some.wait()
        return self._told.popleft()


class EventHub:
    """Hands events on to those who watch their job. Made inside the event loop; `publish` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._feeds: defaultdict[str, set[Feed]] = defaultdict(set)
        self._seen: dict[str, int] = {}  #: the newest seq that was handed on, of watched jobs
        self._closed = asyncio.Event()

    def publish(self, event: Event) -> None:
        """Tells those who watch the event's job."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and everybody has gone
            self._loop.call_soon_threadsafe(self._hand_on, event)

    @contextlib.contextmanager
    def subscribe(self, job_id: str) -> Iterator[Feed]:
        """Has a job's events collected from now on; read the log afterwards, and nothing falls between."""
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
        """Yields a job's events with a seq above `after`, in order and without a gap, for ever."""
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
        """Hears of what other processes move, until closed; needed where several brokers share a database."""
        while not await self._is_closed_within(POLL_SECONDS):
            try:
                newest = await run_in_threadpool(store.versions, list(self._feeds))
                for job_id, version in newest.items():
                    if version > self._seen.get(job_id, 0):
                        for event in await run_in_threadpool(store.events, job_id, version - 1):
                            self._hand_on(event)
            except Exception:  # the database is away: watchers wait, as everybody does
                log.exception("poll_failed")

    def close(self) -> None:
        """Has `poll` return, once what it asks the database has been answered."""
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
