"""What a user may do with jobs: submit, get, watch, list, cancel, retry, download; without HTTP.

Nothing here waits for the GPU provider: a submit is a commit, a get is a read, a cancel is a
request that the reconciler carries out. Every query is scoped to one user; another user's job does
not exist.
"""

import asyncio
import base64
import binascii
import hashlib
import json
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import anyio
import structlog
from anyio import to_thread
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from broker import ids
from broker.bucket import Bucket
from broker.clock import DAY_MS, now_ms
from broker.engine.admission import DiskSpace
from broker.engine.drain import DrainSwitch
from broker.engine.reconciler import Reconciler
from broker.engine.watch import EventHub
from broker.errors import (
    AlreadyFinished,
    InvalidRequest,
    KeyReused,
    NotFound,
    NotRetryable,
    StorageError,
    Unavailable,
)
from broker.jobs.model import Attempt, Event, EventKind, Job, JobChange
from broker.jobs.policy import longest_output, output_seconds
from broker.jobs.views import ends
from broker.settings import Settings
from broker.store.jobs import JobFilter, JobStore, Quota
from schemas.jobs import JobRequest, JobStatus
from schemas.keys import object_key

log = structlog.get_logger(__name__)

#: How long a submit may wait for the sizes of its sources.
SIZES_SECONDS = 2.0
#: How long a caller who wants the newest state waits for a change.
RECONCILE_SECONDS = 1.0
#: What a retry keeps of the failed job.
_KEPT = {"user_id", "project_id", "game_id", "type", "input_key", "params", "meta", "fingerprint"}


@dataclass(frozen=True)
class JobPage:
    """Jobs, the newest first, and the cursor of the page that follows; None on the last one."""

    jobs: list[Job]
    next_cursor: str | None


@dataclass(frozen=True, eq=False)
class JobService:
    """The jobs of all users, for one user at a time."""

    settings: Settings
    store: JobStore
    bucket: Bucket
    reconciler: Reconciler
    drain_switch: DrainSwitch
    hub: EventHub
    disk: DiskSpace
    wake: Callable[[], None]
    clock: Callable[[], int] = now_ms

    # ── submit ──────────────────────────────────────────────────────────────────────────────────

    async def submit(
        self,
        user_id: str,
        request: JobRequest,
        key: str | None = None,
        job_id: str | None = None,
        traceparent: str | None = None,
    ) -> tuple[Job, bool]:
        """Stores a job. Once this returns, the job cannot be lost.

        Args:
            key: the client's idempotency key.
            job_id: an id that the client chose.
            traceparent: of the client's request (trace.py).

        Returns:
            The job as it is now, and whether it was stored before.

        Raises:
            KeyReused: the key or the id came before with another request.
            IdTaken: the id is in use.
            QuotaExceeded: the user has as many jobs as allowed.
            Unavailable: the broker accepts no jobs at the moment.
        """
        now, content = self.clock(), request.model_dump_json(exclude_none=True)
        job = Job(
            id=job_id or str(uuid.uuid4()),
            user_id=user_id,
            project_id=request.project_id,
            game_id=request.game_id,
            type=request.type,
            input_key=request.input_key,
            params=request.params.model_dump_json(exclude_none=True),
            # Without escapes, so that a search finds other alphabets.
            meta=json.dumps(request.metadata, ensure_ascii=False),
            media_seconds=output_seconds(request.params),
            fingerprint=hashlib.sha256(content.encode()).hexdigest(),
            traceparent=traceparent,
            max_attempts=self.settings.max_attempts,
            created_at=now,
            due_at=now,
        )
        return await self._add(job, request, key)

    async def retry(
        self, user_id: str, job_id: str, traceparent: str | None = None
    ) -> tuple[Job, bool]:
        """Submits a failed job again, as a new job; a second call returns the same new job.

        Raises:
            NotFound: no such job.
            NotRetryable: the job has not failed.
            QuotaExceeded, Unavailable: as for a submit.
        """
        failed = await self.job(user_id, job_id)
        if failed.status not in (JobStatus.ERROR, JobStatus.CANCELLED):
            raise NotRetryable(
                f"Only a job that failed or was cancelled is retried; this one is {failed.status}."
            )
        now, request = self.clock(), _request_of(failed)
        job = Job(
            **failed.model_dump(include=_KEPT),
            # Computed anew: the failed job may carry an upper bound.
            media_seconds=output_seconds(request.params),
            # Derived, so that each job has one retry.
            id=ids.derived("retry", failed.id),
            retry_of=failed.id,
            traceparent=traceparent,
            max_attempts=self.settings.max_attempts,
            created_at=now,
            due_at=now,
        )
        return await self._add(job, request, None)

    async def _add(self, job: Job, request: JobRequest, key: str | None) -> tuple[Job, bool]:
        settings = self.settings
        allowed, longest = settings.media_seconds_per_day, 0.0
        if allowed is not None and job.media_seconds is None:
            longest = longest_output(request, await self._sizes(job.user_id, request.video_keys))
        quota = Quota(settings.max_open_jobs, allowed, job.created_at - DAY_MS, longest)
        try:
            self.check_open()
            stored = await run_in_threadpool(self.store.add, job, key, quota)
        except Unavailable:
            known = await run_in_threadpool(self.store.known, job, key)
            if known is None:
                raise
            stored = known
        if stored.fingerprint != job.fingerprint:
            raise KeyReused("This key or id was sent before, with another request.")
        self.wake()
        if stored is job:
            log.info("accepted", job_id=job.id, type=job.type)
        return stored, stored is not job

    async def _sizes(self, user_id: str, keys: Sequence[str]) -> dict[str, int | None]:
        """Returns the sizes of a user's objects, as far as the bucket answers within a moment."""
        sizes: dict[str, int | None] = {}
        with suppress(StorageError), anyio.move_on_after(SIZES_SECONDS):
            for key in keys:
                whole = object_key(user_id, key)
                size = await to_thread.run_sync(self.bucket.size, whole, abandon_on_cancel=True)
                sizes[key] = size
        return sizes

    def check_open(self) -> None:
        """Raises Unavailable while the broker accepts no jobs."""
        if self.draining:
            raise Unavailable("draining", "The broker is being drained, so it takes no new jobs.")
        self.disk.check()

    # ── get, watch, list ────────────────────────────────────────────────────────────────────────

    async def job(self, user_id: str, job_id: str) -> Job:
        """Returns the job, or raises NotFound."""
        job = await run_in_threadpool(self.store.get, job_id, user_id)
        if job is None:
            raise NotFound(f"There is no job {job_id[:64]}.")
        return job

    async def version(self, user_id: str, job_id: str) -> int:
        """Returns the `seq` of the job's newest event, or raises NotFound."""
        version = await run_in_threadpool(self.store.version, job_id, user_id)
        if version is None:
            raise NotFound(f"There is no job {job_id[:64]}.")
        return version

    async def expected(self, user_id: str, job_id: str) -> None:
        """Waits until the user has a job of that id."""
        with self.hub.subscribe(job_id) as feed:
            while await run_in_threadpool(self.store.version, job_id, user_id) is None:
                await feed.next()

    async def wait(self, user_id: str, job_id: str, version: int | None, seconds: float) -> Job:
        """Returns the job once it is past that version, or after `seconds`.

        Args:
            version: None: wait for the job's end.

        Raises:
            NotFound: no such job.
        """
        with self.hub.subscribe(job_id) as feed:
            job = await self.job(user_id, job_id)
            if job.status.is_terminal or (version is not None and job.version != version):
                return job
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    async for event in self.hub.follow(self.store, job_id, job.version, feed):
                        if version is not None or ends(event):
                            break
            return await self.job(user_id, job_id)

    async def watch(
        self, user_id: str, job_id: str, after: int | None = None
    ) -> AsyncGenerator[Job | Event]:
        """Yields each event of a job above `after`, in order and once, until the job has ended.

        A watcher without `after`, or with one that cannot be, gets the job first, and then the
        events that follow.

        Raises:
            NotFound: no such job.
        """
        with self.hub.subscribe(job_id) as feed:
            job = await self.job(user_id, job_id)
            if after is None or after > job.version:
                after = job.version
                yield job
            if job.status.is_terminal and after == job.version:
                return
            async for event in self.hub.follow(self.store, job_id, after, feed):
                yield event
                if ends(event):
                    return

    async def page(self, user_id: str, only: JobFilter, cursor: str | None, limit: int) -> JobPage:
        """Returns up to `limit` jobs, the newest first; raises InvalidRequest for a bad cursor."""
        if cursor is not None:
            only = only.after(_decoded(cursor))
        jobs = await run_in_threadpool(self.store.page, user_id, only, limit + 1)
        more = len(jobs) > limit
        return JobPage(jobs[:limit], _encoded(jobs[limit - 1]) if more else None)

    async def output_url(self, user_id: str, job_id: str) -> str:
        """Returns a fresh presigned URL of the output; raises NotFound while there is none."""
        job = await self.job(user_id, job_id)
        if job.output_key is None:
            raise NotFound(f"The job has no output: it is {job.status}.")
        key, name = object_key(user_id, job.output_key), f"{job.type}_{job.id}.mp4"
        return self.bucket.presigned_get(key, name, self.settings.url_lifetime_seconds)

    # ── cancel, webhook, drain ──────────────────────────────────────────────────────────────────

    async def cancel(self, user_id: str, job_id: str) -> Job:
        """Requests a cancel; a second request changes nothing.

        Raises:
            AlreadyFinished: the job has ended otherwise.
        """
        while True:
            job = await self.job(user_id, job_id)
            if job.status in (JobStatus.COMPLETE, JobStatus.ERROR):
                raise AlreadyFinished(f"The job has ended already: {job.status}.")
            if job.status is JobStatus.CANCELLED or job.cancel_requested_at is not None:
                return job
            now = self.clock()
            change = JobChange(cancel_requested_at=now, due_at=now, message="Cancelling")
            kind = EventKind.CANCEL_REQUESTED
            requested = await run_in_threadpool(self.store.transition, job, kind, change)
            if requested is not None:
                self.wake()
                return requested

    async def hint(self, job_id: str, token: str, provider_job_id: str | None) -> None:
        """Takes a webhook call of the GPU provider, or raises NotFound."""
        if not await self.reconciler.hint(job_id, token, provider_job_id):
            raise NotFound("There is no such attempt.")
        self.wake()

    async def reconciled(self, user_id: str, job_id: str) -> tuple[Job, Attempt | None]:
        """Reconciles an open job now; returns the job and its newest attempt a moment later.

        Raises:
            NotFound: no such job.
        """
        job = await self.job(user_id, job_id)
        if not job.status.is_terminal:
            await run_in_threadpool(self.store.make_due, job_id, self.clock())
            self.wake()
            await self.wait(user_id, job_id, job.version, RECONCILE_SECONDS)
        job, attempts = await run_in_threadpool(self.store.load, job_id)
        return job, attempts[-1] if attempts else None

    async def drain(self, on: bool) -> None:
        """Stops or resumes accepting and submitting jobs; jobs that run go on."""
        await self.drain_switch.turn(on)
        self.wake()

    @property
    def draining(self) -> bool:
        return self.drain_switch.is_on


def _request_of(job: Job) -> JobRequest:
    """Returns the request of a job; raises NotRetryable where this release refuses it."""
    try:
        return JobRequest(type=job.type, input_key=job.input_key, params=json.loads(job.params))
    except ValidationError as error:
        first = error.errors()[0]
        raise NotRetryable(f"The job cannot be sent again as it is: {first['msg']}.") from error


def _encoded(last: Job) -> str:
    return base64.urlsafe_b64encode(f"{last.created_at}:{last.id}".encode()).decode()


def _decoded(cursor: str) -> tuple[int, str]:
    try:
        created_at, _, job_id = base64.urlsafe_b64decode(cursor.encode()).decode().partition(":")
        if "\0" in job_id or not 0 <= int(created_at) < 2**53:
            raise ValueError
        return int(created_at), job_id
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest([("/cursor", "this is not a cursor that we gave out")]) from error
