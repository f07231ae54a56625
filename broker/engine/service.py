"""What a user may do with jobs: submit, get, watch, list, cancel, retry, download. The rules, without HTTP.

Nothing in here waits for the GPU provider: a submit is a commit, a get is a read, a cancel is a request that the
reconciler carries out. Every query is scoped to one user; another user's job does not exist.
"""

import asyncio
import base64
import binascii
import hashlib
import json
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress

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
from broker.jobs.model import EventKind, Job, JobChange
from broker.jobs.policy import longest_output, output_seconds
from broker.jobs.pricing import quote
from broker.jobs.views import ends, event_view, view
from broker.settings import Settings
from broker.store.jobs import JobFilter, JobStore, Quota
from schemas.jobs import (
    EventView,
    JobList,
    JobRequest,
    JobStatus,
    JobView,
    Quote,
    QuoteRequest,
    Snapshot,
)
from schemas.keys import object_key

log = structlog.get_logger(__name__)

#: From how many jobs like it a quote is made.
ALIKE = 50
#: How long a submit may take to learn the sizes of its sources.
LOOK_SECONDS = 2.0


class JobService:
    """The jobs of all users, one user at a time."""

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        bucket: Bucket,
        reconciler: Reconciler,
        drain: DrainSwitch,
        hub: EventHub,
        disk: DiskSpace,
        wake: Callable[[], None],
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._settings = settings
        self._store = store
        self._bucket = bucket
        self._reconciler = reconciler
        self._drain = drain
        self._hub = hub
        self._disk = disk
        self._wake = wake
        self._clock = clock

    # ── submit ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def submit(
        self,
        user_id: str,
        request: JobRequest,
        key: str | None = None,
        job_id: str | None = None,
        traceparent: str | None = None,
    ) -> tuple[Job, bool]:
        """Stores a job. Once this returns, the job is never lost.

        Args:
            key: the client's idempotency key.
            job_id: an id that the client has drawn.
            traceparent: whose request it is (trace.py).

        Returns:
            The job as it is now, and whether it was there already.

        Raises:
            KeyReused: the key, or the id, came before with another request.
            IdTaken: the id is in use.
            QuotaExceeded: the user has as many as one may have.
            Unavailable: no job is taken at the moment.
        """
        now = self._clock()
        job = Job(
            id=job_id or str(uuid.uuid4()),
            user_id=user_id,
            project_id=request.project_id,
            game_id=request.game_id,
            type=request.type,
            input_key=request.input_key,
            params=request.params.model_dump_json(exclude_none=True),
            meta=json.dumps(request.metadata, ensure_ascii=False),  # as people search for it
            media_seconds=output_seconds(request.params),
            fingerprint=hashlib.sha256(
                request.model_dump_json(exclude_none=True).encode()
            ).hexdigest(),
            traceparent=traceparent,
            max_attempts=self._settings.max_attempts,
            created_at=now,
            due_at=now,
        )
        return await self._add(job, request, key)

    async def retry(
        self, user_id: str, job_id: str, traceparent: str | None = None
    ) -> tuple[Job, bool]:
        """Sends a job that failed once more, as a new job; asking again returns the same one.

        Raises:
            NotFound: no such job.
            NotRetryable: it has not failed.
            QuotaExceeded, Unavailable: as for a submit.
        """
        failed = await self.job(user_id, job_id)
        if failed.status not in (JobStatus.ERROR, JobStatus.CANCELLED):
            raise NotRetryable(
                f"Only a job that failed or was cancelled is retried; this one is {failed.status}."
            )
        now = self._clock()
        request = _request_of(failed)
        job = Job(
            **failed.model_dump(include=_OF_THE_REQUEST),
            # What was counted for the job that failed may have been a guess.
            media_seconds=output_seconds(request.params),
            id=ids.derived("retry", failed.id),  # so that there is one retry of each job
            retry_of=failed.id,
            traceparent=traceparent,
            max_attempts=self._settings.max_attempts,
            created_at=now,
            due_at=now,
        )
        return await self._add(job, request, None)

    async def _add(self, job: Job, request: JobRequest, key: str | None) -> tuple[Job, bool]:
        settings = self._settings
        allowed, longest = settings.media_seconds_per_day, 0.0
        if allowed is not None and job.media_seconds is None:
            longest = longest_output(request, await self._sizes(job.user_id, request.video_keys))
        quota = Quota(settings.max_open_jobs, allowed, job.created_at - DAY_MS, longest)
        try:
            self.check_open()
            stored = await run_in_threadpool(self._store.add, job, key, quota)
        except Unavailable:
            known = await run_in_threadpool(self._store.known, job, key)
            if known is None:
                raise
            stored = known
        if stored.fingerprint != job.fingerprint:
            raise KeyReused("This key or id was sent before, with another request.")
        self._wake()
        if stored is job:
            log.info("accepted", job_id=job.id, type=job.type)
        return stored, stored is not job

    async def _sizes(self, user_id: str, keys: Sequence[str]) -> dict[str, int | None]:
        """Returns the sizes of a user's objects, as far as the bucket tells them at once: a submit does not wait for it."""
        sizes: dict[str, int | None] = {}
        with suppress(StorageError), anyio.move_on_after(LOOK_SECONDS):
            for key in keys:
                whole = object_key(user_id, key)
                sizes[key] = await to_thread.run_sync(
                    self._bucket.size, whole, abandon_on_cancel=True
                )
        return sizes

    def check_open(self) -> None:
        """Raises Unavailable while no job is taken."""
        if self.draining:
            raise Unavailable("draining", "The broker is being drained, so it takes no new jobs.")
        self._disk.check()

    async def quote(self, user_id: str, request: QuoteRequest) -> Quote:
        """Estimates what a job would take; raises StorageError where its sources cannot be looked at."""
        keys = [object_key(user_id, key) for key in request.video_keys]
        size = 0
        if request.source_seconds is None and output_seconds(request.params) is None:
            sizes = [await run_in_threadpool(self._bucket.size, key) for key in keys]
            size = sum(found for found in sizes if found is not None)
        only = JobFilter(status=(JobStatus.COMPLETE,), type=(request.type,))
        done = await run_in_threadpool(self._store.page, user_id, only, ALIKE)
        mode = request.params.export_mode
        alike = [job for job in done if json.loads(job.params).get("export_mode") == mode]
        return quote(request.params, request.source_seconds, size, alike, self._settings.gpu_prices)

    # ── look ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def job(self, user_id: str, job_id: str) -> Job:
        """Returns the job, or raises NotFound."""
        job = await run_in_threadpool(self._store.get, job_id, user_id)
        if job is None:
            raise NotFound(f"There is no job {job_id[:64]}.")
        return job

    async def version(self, user_id: str, job_id: str) -> int:
        """Returns the `seq` of the job's newest event, or raises NotFound."""
        version = await run_in_threadpool(self._store.version, job_id, user_id)
        if version is None:
            raise NotFound(f"There is no job {job_id[:64]}.")
        return version

    async def expected(self, user_id: str, job_id: str) -> None:
        """Waits until the user has a job of that id."""
        with self._hub.subscribe(job_id) as feed:
            while await run_in_threadpool(self._store.version, job_id, user_id) is None:
                await feed.next()

    async def wait(self, user_id: str, job_id: str, version: int | None, seconds: float) -> Job:
        """Returns the job once it is past that version, or at its end where none is given; at the latest after `seconds`.

        Raises:
            NotFound: no such job.
        """
        with self._hub.subscribe(job_id) as feed:
            job = await self.job(user_id, job_id)
            if job.status.is_terminal or (version is not None and job.version != version):
                return job
            try:
                async with asyncio.timeout(seconds):
                    async for event in self._hub.follow(self._store, job_id, job.version, feed):
                        if version is not None or ends(event):
                            break
            except TimeoutError:
                pass
            return await self.job(user_id, job_id)

    async def watch(
        self, user_id: str, job_id: str, after: int | None = None
    ) -> AsyncGenerator[Snapshot | EventView]:
        """Yields what happens to a job until it has ended: each event above `after`, in order, none twice.

        A watcher that has seen nothing, or what cannot be, gets a snapshot first, and what comes after it.

        Raises:
            NotFound: no such job.
        """
        with self._hub.subscribe(job_id) as feed:
            job = await self.job(user_id, job_id)
            if after is None or after > job.version:
                after = job.version
                yield Snapshot(seq=job.version, job=self.view(job))
            if job.status.is_terminal and after == job.version:
                return
            async for event in self._hub.follow(self._store, job_id, after, feed):
                yield event_view(event)
                if ends(event):
                    return

    def view(self, job: Job) -> JobView:
        """Shows a job, with the URLs of this broker."""
        return view(job, self._settings.root_path)

    async def page(self, user_id: str, only: JobFilter, cursor: str | None, limit: int) -> JobList:
        """Returns up to `limit` jobs, newest first, and the cursor of the next page."""
        if cursor is not None:
            only = only.after(_decoded(cursor))
        return await run_in_threadpool(self._page, user_id, only, limit)

    def _page(self, user_id: str, only: JobFilter, limit: int) -> JobList:
        jobs = self._store.page(user_id, only, limit + 1)
        more = len(jobs) > limit
        jobs = jobs[:limit]
        return JobList(
            jobs=[self.view(job) for job in jobs], next_cursor=_encoded(jobs[-1]) if more else None
        )

    async def output_url(self, user_id: str, job_id: str) -> str:
        """Returns a fresh presigned URL of the finished file, or raises NotFound while there is none."""
        job = await self.job(user_id, job_id)
        if job.output_key is None:
            raise NotFound(f"The job has no output: it is {job.status}.")
        key = object_key(user_id, job.output_key)
        name = f"{job.type}_{job.id}.mp4"
        return self._bucket.presigned_get(key, name, self._settings.url_lifetime_seconds)

    # ── cancel, and what is asked from outside ──────────────────────────────────────────────────────────────────

    async def cancel(self, user_id: str, job_id: str) -> JobView:
        """Asks for a cancel; asking again changes nothing. Raises AlreadyFinished after any other end."""
        while True:
            job = await self.job(user_id, job_id)
            if job.status in (JobStatus.COMPLETE, JobStatus.ERROR):
                raise AlreadyFinished(f"The job has ended already: {job.status}.")
            if job.status is JobStatus.CANCELLED or job.cancel_requested_at is not None:
                return self.view(job)
            now = self._clock()
            change = JobChange(cancel_requested_at=now, due_at=now, message="Cancelling")
            asked = await run_in_threadpool(
                self._store.transition, job, EventKind.CANCEL_REQUESTED, change
            )
            if asked is not None:
                self._wake()
                return self.view(asked)

    async def hint(self, job_id: str, token: str, provider_job_id: str | None) -> None:
        """Takes a call of the GPU provider, or raises NotFound."""
        if not await self._reconciler.hint(job_id, token, provider_job_id):
            raise NotFound("There is no such attempt.")
        self._wake()

    async def drain(self, on: bool) -> None:
        """Takes no new jobs and sends none, or does so again; those that run go on."""
        await self._drain.turn(on)
        self._wake()

    @property
    def draining(self) -> bool:
        return self._drain.is_on


def _request_of(job: Job) -> JobRequest:
    """Returns what was asked for, or raises NotRetryable where this release would not take it any more."""
    try:
        return JobRequest(type=job.type, input_key=job.input_key, params=json.loads(job.params))
    except ValidationError as error:
        first = error.errors()[0]
        raise NotRetryable(f"The job cannot be sent again as it is: {first['msg']}.") from error


_OF_THE_REQUEST = {
    "user_id",
    "project_id",
    "game_id",
    "type",
    "input_key",
    "params",
    "meta",
    "fingerprint",
}


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
