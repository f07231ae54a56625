"""Dispatch and reconcile: the one place where a job moves by evidence.

`Reconciler.look_at` takes one open job a step further, from whatever state a crash, a restart or the provider left
it in. RunPod's answers are hints; the proof of success is `result.json` with an output of the size that it names.
What fails or is unreachable changes nothing: the job is looked at again later.

    pending ── begin attempt ── submit ─┬─ accepted ────────── follow: bucket first, then /status
                                        ├─ nothing sent ────── stays pending, again in a moment
                                        └─ end unknown ─────── look for started.json / result.json, then supersede

An attempt that is given up is first fenced by `stop.json`, so that two workers never publish one job.
"""

import asyncio
import json
import random
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from broker.errors import BrokerError, ProviderRefused, ProviderUncertain, ProviderUnreachable
from broker.models import Attempt, AttemptState, Job
from broker.runpod import RemoteJob, RemoteState, RunPodClient
from broker.settings import Settings
from broker.storage import Bucket
from broker.store import JobStore, now_ms
from schemas.jobs import ErrorCode, JobStatus, Phase
from schemas.keys import object_key
from schemas.worker import Failure, Progress, Result, Started, WorkerInput, attempt_folder

log = structlog.get_logger(__name__)
Model = TypeVar("Model", bound=BaseModel)

IDLE_SECONDS = 1.0
AT_ONCE = 8
#: How long to wait before attempt 2, 3, … (seconds).
BACKOFF_SECONDS = (2, 10, 60)
_MESSAGES = {
    Phase.QUEUED: "Waiting for a GPU worker",
    Phase.STARTING: "A GPU worker has taken the job",
    Phase.DOWNLOADING: "Fetching the video",
    Phase.PROCESSING: "Editing frames",
    Phase.UPLOADING: "Uploading the result",
    Phase.VERIFYING: "Checking the result",
}


class Reconciler:
    """Moves open jobs along until they end.

    Args:
        clock: milliseconds since the epoch; tests bring their own.
    """

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        bucket: Bucket,
        runpod: RunPodClient,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._settings = settings
        self._store = store
        self._bucket = bucket
        self._runpod = runpod
        self._clock = clock
        self._woken = asyncio.Event()
        self._in_hand: dict[str, asyncio.Task[None]] = {}

    def wake(self) -> None:
        """Has the loop look at once: a job came in, or somebody asked for a cancel."""
        self._woken.set()

    async def run(self) -> None:
        """Looks at every open job when it is due, until cancelled. A slow job holds up no other."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._woken.clear()
                await self._start_due(tasks)
                try:
                    await asyncio.wait_for(self._woken.wait(), IDLE_SECONDS)
                except TimeoutError:
                    continue

    async def _start_due(self, tasks: asyncio.TaskGroup) -> None:
        if len(self._in_hand) >= AT_ONCE:
            return
        try:
            due = await run_in_threadpool(self._store.due, self._clock(), AT_ONCE * 4)
        except Exception:  # a full disk, say: the loop must outlive it
            log.exception("store_failed")
            return
        for job_id in due:
            if job_id not in self._in_hand and len(self._in_hand) < AT_ONCE:
                task = self._in_hand[job_id] = tasks.create_task(self._look_safely(job_id))
                task.add_done_callback(partial(self._put_down, job_id))

    def _put_down(self, job_id: str, _task: asyncio.Task[None]) -> None:
        del self._in_hand[job_id]
        self._woken.set()  # there may be more due than were taken in hand

    async def _look_safely(self, job_id: str) -> None:
        """Looks at one job; its trouble, of whatever kind, must not stop the others."""
        try:
            await self.look_at(job_id)
        except BrokerError as error:
            log.warning("look_failed", job_id=job_id, error=str(error))
            await self._postpone(job_id)
        except Exception:
            log.exception("look_crashed", job_id=job_id)
            await self._postpone(job_id)

    async def _postpone(self, job_id: str) -> None:
        try:
            job, _ = await run_in_threadpool(self._store.load, job_id)
            await self._look_again(job, 5.0)
        except Exception:
            log.exception("store_failed", job_id=job_id)

    async def look_at(self, job_id: str) -> None:
        """Takes one job one step further, by what can be seen of it now.

        Raises:
            BrokerError: something could not be reached; nothing was changed.
        """
        job, attempt = await run_in_threadpool(self._store.load, job_id)
        if job.status.is_terminal:
            return
        if job.cancel_requested_at is not None:
            await self._stop(job, attempt)
        elif attempt is None or attempt.state is AttemptState.SUPERSEDED:
            await self._begin_attempt(job)
        elif attempt.state is AttemptState.READY:
            await self._submit(job, attempt)
        elif attempt.state is AttemptState.SUBMITTING:
            await self._look_for_signs(job, attempt)
        else:
            await self._follow(job, attempt)

    # ── dispatch ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _begin_attempt(self, job: Job) -> None:
        attempt = Attempt(
            token=secrets.token_hex(16),
            job_id=job.id,
            number=job.attempt + 1,
            state=AttemptState.READY,
            endpoint_url=self._settings.runpod_endpoint_url,
            created_at=self._clock(),
        )
        changes = {"attempt": attempt.number, "phase": Phase.SUBMITTING, "runpod_job_id": None, "progress": 0}
        moved = await self._move(job, "attempt_begun", changes, attempt)
        if moved is not None:
            await self._submit(moved, attempt)

    async def _submit(self, job: Job, attempt: Attempt) -> None:
        # Committed before the first byte leaves: a crash from here on means "unknown", never "not sent".
        sending = attempt.model_copy(update={"state": AttemptState.SUBMITTING, "submitted_at": self._clock()})
        if not await self._look_again(job, 2.0, attempt=sending):
            return
        try:
            runpod_job_id = await self._runpod.submit(
                attempt.endpoint_url,
                _worker_input(job, attempt),
                self._settings.execution_timeout_seconds,
                self._settings.queue_timeout_seconds,
            )
        except ProviderUnreachable as error:
            await self._hold(job, attempt, error)
        except ProviderRefused as error:
            log.error("submit_refused", job_id=job.id, error=str(error))
            await self._fail(job, attempt, ErrorCode.PROVIDER_REFUSED, "The GPU provider refused the job.")
        except ProviderUncertain as error:
            log.warning("submit_unknown", job_id=job.id, error=str(error))
            changes = {
                "status": JobStatus.PROCESSING,
                "message": "Checking whether the GPU provider has the job",
            }
            await self._move(job, "submit_unknown", changes)
        else:
            await self._adopt(job, sending, runpod_job_id, "runpod:/run")

    async def _hold(self, job: Job, attempt: Attempt, error: ProviderUnreachable) -> None:
        """Nothing reached the provider: the job waits, and the same attempt goes when the provider is back."""
        log.warning("submit_held", job_id=job.id, error=str(error))
        await run_in_threadpool(self._store.note, attempt)
        sentence = "The GPU provider cannot be reached; the job goes as soon as it is back"
        if job.message != sentence:
            await self._move(job, "submit_held", {"message": sentence})
        else:
            await self._look_again(job, _wait_seconds(attempt.created_at, self._clock()))

    async def _adopt(self, job: Job, attempt: Attempt, runpod_job_id: str, evidence: str) -> None:
        known = attempt.model_copy(update={"state": AttemptState.SUBMITTED, "runpod_job_id": runpod_job_id})
        changes = {"status": JobStatus.PROCESSING, "runpod_job_id": runpod_job_id, **_phase(Phase.QUEUED)}
        log.info("submitted", job_id=job.id, runpod_job_id=runpod_job_id)
        if await self._move(job, "submitted", changes, known, evidence) is None:
            # Somebody asked for a cancel meanwhile: the id is what that cancel needs.
            await run_in_threadpool(self._store.note, known)

    async def _look_for_signs(self, job: Job, attempt: Attempt) -> None:
        """After a submit whose end is unknown: adopt the run that it started, or supersede it, but never repeat it."""
        if await self._finish_from_bucket(job, attempt):
            return
        started = await self._document(job, attempt, "started.json", Started)
        if started is not None:
            await self._adopt(job, attempt, started.runpod_job_id, "bucket:started.json")
        elif self._seconds_since(attempt.submitted_at) > self._settings.submit_grace_seconds:
            await self._supersede(
                job, attempt, ErrorCode.PROVIDER_UNAVAILABLE, "The GPU provider lost the job."
            )
        else:
            await self._look_again(job, 2.0)

    # ── reconcile ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _follow(self, job: Job, attempt: Attempt) -> None:
        if await self._finish_from_bucket(job, attempt):
            return
        remote = await self._remote(attempt)
        match remote.state:
            case RemoteState.QUEUED | RemoteState.RUNNING:
                await self._show(job, attempt, remote)
            case RemoteState.ABSENT:
                await self._count_absence(job, attempt)
            case _:
                # The worker commits before it returns, so whatever it had to say is in the bucket by now.
                if not await self._finish_from_bucket(job, attempt):
                    await self._end_without_result(job, attempt, remote)

    async def _finish_from_bucket(self, job: Job, attempt: Attempt) -> bool:
        """Completes the job if its result is committed and its output is there. The only way to `complete`."""
        result = await self._document(job, attempt, "result.json", Result)
        if result is None:
            return False
        size = await run_in_threadpool(self._bucket.size, object_key(job.user_id, result.output_key))
        if size != result.facts.bytes:
            log.error("result_without_output", job_id=job.id, size=size)
            await self._supersede(
                job, attempt, ErrorCode.RESULT_LOST, "The finished file is not in the bucket."
            )
            return True
        spent = result.timings
        changes = {
            "status": JobStatus.COMPLETE,
            "phase": Phase.DONE,
            "progress": 100,
            "message": "Done",
            "output_key": result.output_key,
            "result": result.facts.model_dump_json(),
            "runpod_job_id": result.runpod_job_id,
            "gpu_seconds": round(spent.fetch_seconds + spent.edit_seconds + spent.upload_seconds, 3),
        }
        await self._end(job, attempt, "complete", changes, "bucket:result.json")
        return True

    async def _show(self, job: Job, attempt: Attempt, remote: RemoteJob) -> None:
        """Shows what the provider tells of a job that goes on."""
        seen: dict[str, Any] = _phase(Phase.QUEUED)
        if remote.state is RemoteState.RUNNING:
            told = _parsed(Progress, remote.output) or Progress(phase=Phase.STARTING, progress=0)
            seen = _phase(told.phase, told.message) | {"progress": max(job.progress, told.progress)}
            seen["started_at"] = job.started_at or self._clock()
        if attempt.absent_since is not None:
            attempt = attempt.model_copy(update={"absent_since": None})
        changes = {name: value for name, value in seen.items() if value != getattr(job, name)}
        evidence = "runpod:/status"
        if changes:
            await self._move(job, "progress", changes, attempt, evidence)
        else:
            wait = _wait_seconds(attempt.submitted_at or job.created_at, self._clock())
            await self._look_again(job, wait, evidence, attempt)

    async def _count_absence(self, job: Job, attempt: Attempt) -> None:
        """404 has three meanings (forgotten, deleted, never there), so only a lasting one loses the attempt."""
        if attempt.absent_since is None:
            noted = attempt.model_copy(update={"absent_since": self._clock()})
            await self._look_again(job, 2.0, "runpod:404", noted)
        elif self._seconds_since(attempt.absent_since) < self._settings.lost_after_seconds:
            await self._look_again(job, 2.0, "runpod:404")
        else:
            await self._supersede(job, attempt, ErrorCode.WORKER_LOST, "The GPU provider lost the job.")

    async def _end_without_result(self, job: Job, attempt: Attempt, remote: RemoteJob) -> None:
        match remote.state:
            case RemoteState.CANCELLED:
                changes = {"status": JobStatus.CANCELLED, "message": "Cancelled at the GPU provider"}
                await self._end(job, attempt, "cancelled", changes, "runpod:CANCELLED")
            case RemoteState.TIMED_OUT:
                sentence = (
                    f"The job ran longer than {self._settings.execution_timeout_seconds} s and was stopped."
                )
                await self._fail(job, attempt, ErrorCode.EXECUTION_TIMEOUT, sentence)
            case RemoteState.FAILED if (failure := _parsed(Failure, remote.output)) is not None:
                log.info("worker_failed", job_id=job.id, detail=failure.detail)
                sentence = remote.error or "The worker could not do the job."
                # "cancelled" without a cancel: we fenced it, and then somebody else moved the job first.
                again = failure.retryable or failure.error_code is ErrorCode.CANCELLED
                fail = self._supersede if again else self._fail
                await fail(job, attempt, failure.error_code, sentence)
            case RemoteState.FAILED:
                log.error("provider_failed", job_id=job.id, error=remote.error)
                await self._supersede(job, attempt, ErrorCode.WORKER_LOST, "The GPU worker was lost.")
            case _:
                await self._supersede(job, attempt, ErrorCode.RESULT_LOST, "The job ended without a result.")

    async def _stop(self, job: Job, attempt: Attempt | None) -> None:
        """Carries out a cancel: fence, tell the provider, and see who won. A result that is committed wins."""
        if attempt is None or attempt.state in (AttemptState.READY, AttemptState.SUPERSEDED):
            await self._end(job, attempt, "cancelled", _CANCELLED, "broker")
            return
        if await self._finish_from_bucket(job, attempt):
            return
        await self._fence(job, attempt)
        try:
            stopped = await self._stopped_at_provider(attempt)
        except (ProviderUnreachable, ProviderUncertain) as error:
            log.warning("cancel_unanswered", job_id=job.id, error=str(error))
            stopped = False
        waited = self._seconds_since(job.cancel_requested_at)
        if await self._finish_from_bucket(job, attempt):
            return
        if stopped or waited > self._settings.cancel_grace_seconds:
            await self._end(
                job, attempt, "cancelled", _CANCELLED, "runpod:/cancel" if stopped else "stop.json"
            )
        else:
            await self._look_again(job, 2.0)

    async def _stopped_at_provider(self, attempt: Attempt) -> bool:
        if attempt.runpod_job_id is None:
            return False
        await self._runpod.cancel(attempt.endpoint_url, attempt.runpod_job_id)
        return (await self._remote(attempt)).state not in (RemoteState.QUEUED, RemoteState.RUNNING)

    # ── the ends ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _supersede(self, job: Job, attempt: Attempt, code: ErrorCode, sentence: str) -> None:
        """Gives an attempt up for good, and begins the next one where the policy has one left."""
        await self._fence(job, attempt)
        if job.attempt >= job.max_attempts:
            await self._fail(job, attempt, code, f"{sentence} Gave up after {job.attempt} attempts.")
            return
        wait = BACKOFF_SECONDS[min(job.attempt, len(BACKOFF_SECONDS)) - 1]
        changes = {
            **_phase(Phase.ACCEPTED, f"{sentence} Trying again."),
            "runpod_job_id": None,
            "progress": 0,
        }
        given_up = attempt.model_copy(update={"state": AttemptState.SUPERSEDED})
        log.warning("superseded", job_id=job.id, code=code, attempt=job.attempt)
        await self._move(job, "superseded", changes, given_up, wait=wait)

    async def _fail(self, job: Job, attempt: Attempt, code: ErrorCode, sentence: str) -> None:
        changes = {"status": JobStatus.ERROR, "error": sentence, "error_code": code, "message": sentence}
        await self._end(job, attempt, "error", changes, "runpod")

    async def _end(
        self, job: Job, attempt: Attempt | None, kind: str, changes: dict[str, Any], evidence: str
    ) -> None:
        ended = attempt.model_copy(update={"state": AttemptState.ENDED}) if attempt else None
        log.info("ended", job_id=job.id, status=changes["status"])
        await self._move(job, kind, {**changes, "completed_at": self._clock()}, ended, evidence)

    async def _fence(self, job: Job, attempt: Attempt) -> None:
        """Tells whoever still works on the attempt to stop; raises StorageError where that cannot be said."""
        await run_in_threadpool(self._bucket.write, _document_key(job, attempt, "stop.json"), b"{}")

    # ── small steps ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _move(
        self,
        job: Job,
        kind: str,
        changes: dict[str, Any],
        attempt: Attempt | None = None,
        evidence: str | None = None,
        wait: float | None = None,
    ) -> Job | None:
        now = self._clock()
        seconds = (
            _wait_seconds(attempt.created_at if attempt else job.created_at, now) if wait is None else wait
        )
        changes = {**changes, "due_at": now + int(seconds * 1000)}
        if evidence is not None:
            changes |= {"evidence_source": evidence, "evidence_at": now}
        return await run_in_threadpool(self._store.move, job, kind, changes, attempt)

    async def _look_again(
        self, job: Job, seconds: float, evidence: str | None = None, attempt: Attempt | None = None
    ) -> bool:
        due = self._clock() + int(seconds * 1000)
        return await run_in_threadpool(self._store.touch, job, due, evidence, attempt)

    async def _remote(self, attempt: Attempt) -> RemoteJob:
        if attempt.runpod_job_id is None:
            return RemoteJob(RemoteState.ABSENT)
        return await self._runpod.status(attempt.endpoint_url, attempt.runpod_job_id)

    async def _document(self, job: Job, attempt: Attempt, name: str, model: type[Model]) -> Model | None:
        body = await run_in_threadpool(self._bucket.read, _document_key(job, attempt, name))
        if body is None:
            return None
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            # Written by a worker that speaks another protocol: as good as not there, but somebody must know.
            log.error("document_unreadable", job_id=job.id, error=str(error))
            return None

    def _seconds_since(self, moment: int | None) -> float:
        return 0.0 if moment is None else (self._clock() - moment) / 1000


_CANCELLED = {"status": JobStatus.CANCELLED, "message": "Cancelled by user"}


def _phase(phase: Phase, message: str = "") -> dict[str, Any]:
    return {"phase": phase, "message": message or _MESSAGES[phase]}


def _worker_input(job: Job, attempt: Attempt) -> WorkerInput:
    return WorkerInput(
        job_id=job.id,
        user_id=job.user_id,
        type=job.type,
        input_key=job.input_key,
        params=json.loads(job.params),
        attempt_token=attempt.token,
    )


def _document_key(job: Job, attempt: Attempt, name: str) -> str:
    return object_key(job.user_id, f"{attempt_folder(job.id, attempt.token)}/{name}")


def _parsed(model: type[Model], output: Any) -> Model | None:
    try:
        return model.model_validate(output)
    except ValidationError:
        return None


def _wait_seconds(since_ms: int, now: int) -> float:
    """Returns when to look next: every second at first, then rarer, ±20 % so that jobs do not march in step."""
    age = (now - since_ms) / 1000
    base = 1.0 if age < 60 else 5.0 if age < 600 else 15.0
    return base * random.uniform(0.8, 1.2)  # noqa: S311  # jitter, not a secret
