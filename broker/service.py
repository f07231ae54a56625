"""What a user may do with jobs: submit, get, list, cancel, download, upload. The rules, without HTTP.

Nothing in here waits for the GPU provider: a submit is a commit, a get is a read, a cancel is a request that the
reconciler carries out. Every query is scoped to one user; another user's job does not exist.
"""

import base64
import binascii
import hashlib
import json
import uuid
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool

from broker.errors import AlreadyFinished, InvalidRequest, KeyReused, NotFound
from broker.models import Job
from broker.reconciler import Reconciler
from broker.settings import Settings
from broker.storage import Bucket
from broker.store import JobFilter, JobStore, iso, now_ms
from schemas.jobs import (
    Evidence,
    JobList,
    JobRequest,
    JobStatus,
    JobUrls,
    JobView,
    OutputFacts,
    UploadRequest,
    UploadTicket,
)
from schemas.keys import object_key

#: The flag in the database that keeps new jobs from being sent.
DRAINING = "draining"


class JobService:
    """The jobs of all users, one user at a time."""

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        bucket: Bucket,
        reconciler: Reconciler,
        wake: Callable[[], None],
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._settings = settings
        self._store = store
        self._bucket = bucket
        self._reconciler = reconciler
        self._wake = wake
        self._clock = clock

    async def submit(
        self, user_id: str, request: JobRequest, key: str | None = None, job_id: str | None = None
    ) -> tuple[JobView, bool]:
        """Stores a job. Once this returns, the job is never lost.

        Args:
            key: the client's idempotency key.
            job_id: an id that the client has drawn.

        Returns:
            The job as it is now, and whether it was there already.

        Raises:
            KeyReused: the key, or the id, came before with another request.
            IdTaken: the id is in use.
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
            meta=json.dumps(request.metadata),
            fingerprint=hashlib.sha256(request.model_dump_json(exclude_none=True).encode()).hexdigest(),
            max_attempts=self._settings.max_attempts,
            created_at=now,
            due_at=now,
        )
        stored = await run_in_threadpool(self._store.add, job, key)
        if stored.fingerprint != job.fingerprint:
            raise KeyReused("This key or id was sent before, with another request.")
        self._wake()
        return view(stored), stored is not job

    async def get(self, user_id: str, job_id: str) -> JobView:
        """Returns the job, or raises NotFound."""
        return view(await self._job(user_id, job_id))

    async def page(self, user_id: str, only: JobFilter, cursor: str | None, limit: int) -> JobList:
        """Returns up to `limit` jobs, newest first, and the cursor of the next page."""
        if cursor is not None:
            only = JobFilter(only.status, only.type, only.project_id, _decoded(cursor))
        jobs = await run_in_threadpool(self._store.page, user_id, only, limit + 1)
        more = len(jobs) > limit
        jobs = jobs[:limit]
        return JobList(jobs=[view(job) for job in jobs], next_cursor=_encoded(jobs[-1]) if more else None)

    async def cancel(self, user_id: str, job_id: str) -> JobView:
        """Asks for a cancel; asking again changes nothing. Raises AlreadyFinished after any other end."""
        while True:
            job = await self._job(user_id, job_id)
            if job.status in (JobStatus.COMPLETE, JobStatus.ERROR):
                raise AlreadyFinished(f"The job has ended already: {job.status}.")
            if job.status is JobStatus.CANCELLED or job.cancel_requested_at is not None:
                return view(job)
            now = self._clock()
            changes = {"cancel_requested_at": now, "due_at": now, "message": "Cancelling"}
            asked = await run_in_threadpool(self._store.move, job, "cancel_requested", changes)
            if asked is not None:
                self._wake()
                return view(asked)

    async def hint(self, job_id: str, token: str, runpod_job_id: str | None) -> None:
        """Takes a call of the GPU provider, or raises NotFound."""
        if not await self._reconciler.hint(job_id, token, runpod_job_id):
            raise NotFound("There is no such attempt.")
        self._wake()

    async def drain(self, on: bool) -> None:
        """Holds back new jobs from the GPU provider, or sends them again; those that run go on."""
        await run_in_threadpool(self._store.set_flag, DRAINING, on)
        self._reconciler.dispatch.draining = on
        self._wake()

    @property
    def draining(self) -> bool:
        return self._reconciler.dispatch.draining

    async def output_url(self, user_id: str, job_id: str) -> str:
        """Returns a fresh presigned URL of the finished file, or raises NotFound while there is none."""
        job = await self._job(user_id, job_id)
        if job.output_key is None:
            raise NotFound(f"The job has no output: it is {job.status}.")
        key = object_key(user_id, job.output_key)
        name = f"{job.type}_{job.id}.mp4"
        return self._bucket.presigned_get(key, name, self._settings.url_lifetime_seconds)

    def upload_ticket(self, user_id: str, request: UploadRequest) -> UploadTicket:
        """Returns where to PUT a video, under a key that no other upload has."""
        key = f"uploads/{uuid.uuid4()}/{request.filename}"
        seconds = self._settings.url_lifetime_seconds
        return UploadTicket(
            upload_url=self._bucket.presigned_put(object_key(user_id, key), request.content_type, seconds),
            method="PUT",
            headers={"Content-Type": request.content_type},
            video_key=key,
            expires_in_seconds=seconds,
        )

    async def _job(self, user_id: str, job_id: str) -> Job:
        job = await run_in_threadpool(self._store.get, job_id, user_id)
        if job is None:
            raise NotFound(f"There is no job {job_id[:64]}.")
        return job


def view(job: Job) -> JobView:
    """Shows a job as the API does."""
    path = f"/api/jobs/{job.id}"
    done = job.status is JobStatus.COMPLETE
    evidence = None
    if job.evidence_source is not None and job.evidence_at is not None:
        evidence = Evidence(source=job.evidence_source, at=iso(job.evidence_at))
    return JobView(
        **job.model_dump(include=_AS_THEY_ARE),
        job_id=job.id,
        retryable=job.error_code is not None and job.error_code.retryable,
        stalled=job.stalled_since is not None,
        metadata=json.loads(job.meta),
        params=json.loads(job.params),
        created_at=iso(job.created_at),
        started_at=iso(job.started_at) if job.started_at else None,
        completed_at=iso(job.completed_at) if job.completed_at else None,
        cancel_requested_at=iso(job.cancel_requested_at) if job.cancel_requested_at else None,
        result=OutputFacts.model_validate_json(job.result) if job.result else None,
        last_evidence=evidence,
        urls=JobUrls(self=path, cancel=f"{path}/cancel", output=f"{path}/output" if done else None),
    )


_AS_THEY_ARE = set(JobView.model_fields) & set(Job.model_fields) - {
    "created_at",
    "started_at",
    "completed_at",
    "cancel_requested_at",
    "params",
    "result",
}


def _encoded(last: Job) -> str:
    return base64.urlsafe_b64encode(f"{last.created_at}:{last.id}".encode()).decode()


def _decoded(cursor: str) -> tuple[int, str]:
    try:
        created_at, _, job_id = base64.urlsafe_b64decode(cursor.encode()).decode().partition(":")
        return int(created_at), job_id
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest([("/cursor", "this is not a cursor that we gave out")]) from error
