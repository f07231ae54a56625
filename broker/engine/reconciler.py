"""Reconcile: the one place where a job moves by evidence.

`Reconciler.look_at` takes one open job a step further, from whatever state a crash, a restart or the provider left
it in. RunPod's answers are hints; the proof of success is `result.json` with an output of the size that it names.
What fails or is unreachable changes nothing: the job is looked at again later.

    pending ── begin attempt ── submit ─┬─ accepted ────────── follow: bucket first, then /status
                                        ├─ nothing sent ────── stays pending, again in a moment
                                        └─ end unknown ─────── look for started.json / result.json, then supersede

An attempt that is given up is first fenced by `stop.json`, so that two workers never publish one job. What it may have
left running at the provider is an orphan, and is cancelled there until the provider says that it is gone (`release`).
"""

from collections.abc import Callable
from typing import Any

import structlog
from starlette.concurrency import run_in_threadpool

from broker.bucket import Bucket
from broker.clock import now_ms
from broker.engine.apply import CANCELLED, MESSAGES, Moves, phase
from broker.engine.dispatch import Dispatch
from broker.engine.observe import Evidence, parsed, started_at
from broker.errors import ProviderPaced, ProviderUncertain, ProviderUnreachable
from broker.jobs.policy import timeout_code
from broker.providers.runpod import Health, RemoteJob, RemoteState, RunPodClient
from broker.settings import Settings
from broker.store.jobs import JobStore
from broker.store.tables import Attempt, AttemptState, Job
from broker.trace import follow
from schemas.jobs import ErrorCode, JobStatus, Phase
from schemas.worker import Failure, Progress

log = structlog.get_logger(__name__)

#: How long a job waits in the queue before it is asked why.
PATIENCE_SECONDS = 30.0
ORPHAN_SECONDS = 30.0
#: How soon to ask again for a cancel that is not carried out yet, and for one that the provider's pace
#: put off. The fence works meanwhile.
CANCEL_SECONDS, PACED_SECONDS = 2.0, 5.0
POSTPONED_SECONDS = 5.0

#: What a user reads of an attempt that timed out.
TIMED_OUT = {
    ErrorCode.QUEUE_TIMEOUT: "No GPU worker took the job in time.",
    ErrorCode.WORKER_LOST: "The GPU worker was lost.",
    ErrorCode.EXECUTION_TIMEOUT: "The job ran longer than such an export may take, and was stopped.",
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
        #: Told how late each look is, in seconds; whoever wants to hear of them sets it.
        self.on_look: Callable[[float], None] = lambda late: None
        self._settings = settings
        self._store = store
        self._runpod = runpod
        self._clock = clock
        self._evidence = Evidence(bucket, runpod, clock)
        self._moves = Moves(store, bucket, self._evidence, settings.gpu_prices, clock)
        self.dispatch = Dispatch(settings, store, self._evidence, self._moves, runpod, clock)

    async def look_at(self, job_id: str) -> None:
        """Takes one job one step further, by what can be seen of it now.

        Raises:
            BrokerError: something could not be reached; nothing was changed.
        """
        job, attempt = await run_in_threadpool(self._store.load, job_id)
        if job.status.is_terminal:
            return
        follow(job)
        self.on_look((self._clock() - job.due_at) / 1000)
        if job.cancel_requested_at is not None:
            await self._stop(job, attempt)
        elif attempt is None or attempt.state is AttemptState.SUPERSEDED:
            if not await self._moves.finish_from_given_up(job):
                await self.dispatch.begin_attempt(job)
        elif attempt.state is AttemptState.READY:
            await self.dispatch.submit(job, attempt)
        elif attempt.state is AttemptState.SUBMITTING:
            await self.dispatch.look_for_signs(job, attempt)
        else:
            await self._follow(job, attempt)

    def crowd(self, open_jobs: int) -> None:
        """Tells how many jobs are open: the more, the rarer each is looked at."""
        self._moves.open_jobs = open_jobs

    async def postpone(self, job_id: str) -> None:
        """Has an open job looked at again in a while, after a look that failed."""
        job = await run_in_threadpool(self._store.find, job_id)
        if job is not None and not job.status.is_terminal:
            await self._moves.look_again(job, POSTPONED_SECONDS)

    async def hint(self, job_id: str, token: str, runpod_job_id: str | None) -> bool:
        """Takes the provider's call: has the job looked at now; what it says is otherwise not believed.

        Args:
            runpod_job_id: the id that it gives; where the submit's end is unknown, it is what to ask for.

        Returns:
            False where there is no such attempt.
        """
        attempt = await run_in_threadpool(self._store.hint, job_id, token, self._clock())
        if attempt is None:
            return False
        if attempt.state is AttemptState.SUBMITTING and attempt.runpod_job_id is None and runpod_job_id:
            told = attempt.model_copy(update={"runpod_job_id": runpod_job_id})
            await run_in_threadpool(self._store.note, told)
        return True

    # ── follow ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _follow(self, job: Job, attempt: Attempt) -> None:
        if await self._moves.finish_from_bucket(job, attempt):
            return
        remote = await self._evidence.remote(attempt)
        match remote.state:
            case RemoteState.QUEUED | RemoteState.RUNNING:
                await self._show(job, attempt, remote)
            case RemoteState.ABSENT:
                await self._count_absence(job, attempt)
            case _:
                # The worker commits before it returns, so whatever it had to say is in the bucket by now.
                attempt = attempt.model_copy(update={"gpu_seconds": remote.execution_seconds})
                if not await self._moves.finish_from_bucket(job, attempt):
                    await self._end_without_result(job, attempt, remote)

    async def _show(self, job: Job, attempt: Attempt, remote: RemoteJob) -> None:
        """Shows what the provider tells of a job that goes on."""
        seen = self._told(job, remote)
        if (seen["phase"], seen["progress"]) != (job.phase, job.progress):
            seen |= {"progressed_at": self._clock(), "stalled_since": None}
        else:
            seen |= await self._slow_or_stuck(job, attempt, remote)
        known: dict[str, Any] = {"absent_since": None}
        if remote.state is RemoteState.RUNNING and attempt.started_at is None:
            known["started_at"] = self._clock()
        attempt = attempt.model_copy(update=known)
        changes = {name: value for name, value in seen.items() if value != getattr(job, name)}
        if changes:
            await self._moves.move(job, "progress", changes, attempt, "runpod:/status")
        else:
            pause = self._moves.pause(attempt.submitted_at)
            await self._moves.look_again(job, pause, "runpod:/status", attempt)

    def _told(self, job: Job, remote: RemoteJob) -> dict[str, Any]:
        if remote.state is RemoteState.QUEUED:
            return phase(Phase.QUEUED) | {"progress": job.progress}
        told = parsed(Progress, remote.output) or Progress(phase=Phase.STARTING, progress=0)
        progress = max(job.progress, told.progress)
        return phase(told.phase, told.message) | {
            "progress": progress,
            "started_at": job.started_at or self._clock(),
        }

    async def _slow_or_stuck(self, job: Job, attempt: Attempt, remote: RemoteJob) -> dict[str, Any]:
        """Says why nothing new is seen; that alone never fails a job."""
        since = job.stalled_since or self._clock()
        if remote.state is RemoteState.QUEUED:
            waited = self._moves.seconds_since(attempt.submitted_at)
            if waited <= PATIENCE_SECONDS:
                return {}
            long = waited > self._settings.stalled_after_seconds
            return _waiting(await self._evidence.health(attempt.endpoint_url), since, long)
        if self._moves.seconds_since(job.progressed_at) <= self._settings.stalled_after_seconds:
            return {}
        sentence = f"{MESSAGES.get(job.phase, '')}: no progress for a while; the worker may be stuck"
        return {"message": sentence, "stalled_since": since}

    async def _count_absence(self, job: Job, attempt: Attempt) -> None:
        """404 has three meanings (forgotten, deleted, never there), so only a lasting one loses the attempt."""
        seconds_since, lasting = self._moves.seconds_since, self._settings.lost_after_seconds
        if attempt.absent_since is None:
            noted = attempt.model_copy(update={"absent_since": self._clock()})
            await self._moves.look_again(job, lasting / 2, "runpod:404", noted)
        elif seconds_since(attempt.absent_since) < lasting:
            await self._moves.look_again(job, lasting / 2, "runpod:404")
        elif (
            seconds_since(attempt.submitted_at) > (attempt.ttl_seconds or 0)
            and await self._started_at(job, attempt) is None
        ):
            sentence = TIMED_OUT[ErrorCode.QUEUE_TIMEOUT]
            await self._moves.supersede(job, attempt, ErrorCode.QUEUE_TIMEOUT, sentence, gone=True)
        else:
            sentence = "The GPU provider lost the job."
            await self._moves.supersede(job, attempt, ErrorCode.WORKER_LOST, sentence, gone=True)

    async def _started_at(self, job: Job, attempt: Attempt) -> int | None:
        """Returns when a worker took the attempt; a short run may have been at no look."""
        if attempt.started_at is not None:
            return attempt.started_at
        started = await self._evidence.started(job, attempt)
        return None if started is None else started_at(attempt, started, self._clock())

    async def _timeout_code(self, job: Job, attempt: Attempt, remote: RemoteJob) -> ErrorCode:
        began = await self._started_at(job, attempt)
        ran = remote.execution_seconds or 0.0
        started = began is not None or ran > 0
        return timeout_code(started, ran or self._moves.seconds_since(began), attempt.timeout_seconds)

    async def _end_without_result(self, job: Job, attempt: Attempt, remote: RemoteJob) -> None:
        match remote.state:
            case RemoteState.CANCELLED:
                changes = {"status": JobStatus.CANCELLED, "message": "Cancelled at the GPU provider"}
                await self._moves.end(job, attempt, "cancelled", changes, "runpod:CANCELLED")
                return
            case RemoteState.TIMED_OUT:
                code = await self._timeout_code(job, attempt, remote)
                sentence = TIMED_OUT[code]
            case RemoteState.FAILED if (failure := parsed(Failure, remote.output)) is not None:
                log.info("worker_failed", detail=failure.detail)
                code, sentence = failure.error_code, remote.error or "The worker could not do the job."
                if (
                    code is ErrorCode.CANCELLED
                ):  # by nobody: we fenced it, and then somebody else moved the job first
                    code, sentence = ErrorCode.WORKER_LOST, "The GPU worker was stopped."
            case RemoteState.FAILED:
                log.error("provider_failed", error=remote.error)
                code, sentence = ErrorCode.WORKER_LOST, "The GPU worker was lost."
            case _:
                code, sentence = ErrorCode.RESULT_LOST, "The job ended without a result."
        await self._moves.supersede(job, attempt, code, sentence, gone=True)

    # ── stop ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _stop(self, job: Job, attempt: Attempt | None) -> None:
        """Carries out a cancel: fence, tell the provider, and see who won. A result that is committed wins."""
        if attempt is None or attempt.state in (AttemptState.READY, AttemptState.SUPERSEDED):
            if not await self._moves.finish_from_given_up(job):
                await self._moves.end(job, attempt, "cancelled", CANCELLED, "broker")
            return
        if await self._moves.finish_from_bucket(job, attempt):
            return
        await self._moves.fence(job, attempt)
        pause = CANCEL_SECONDS
        try:
            stopped = await self._stopped_at_provider(attempt)
        except (ProviderUnreachable, ProviderUncertain) as error:
            log.warning("cancel_unanswered", error=str(error))
            stopped = False
            if isinstance(error, ProviderPaced):
                pause = PACED_SECONDS
        waited = self._moves.seconds_since(job.cancel_requested_at)
        if await self._moves.finish_from_bucket(job, attempt):
            return
        if stopped or waited > self._settings.cancel_grace_seconds:
            evidence = "runpod:/cancel" if stopped else "stop.json"
            await self._moves.end(job, attempt, "cancelled", CANCELLED, evidence, gone=stopped)
        else:
            await self._moves.look_again(job, pause)

    async def _stopped_at_provider(self, attempt: Attempt) -> bool:
        if attempt.runpod_job_id is None:
            return False
        await self._runpod.cancel(attempt.endpoint_url, attempt.runpod_job_id)
        return (await self._evidence.remote(attempt)).state not in (RemoteState.QUEUED, RemoteState.RUNNING)

    async def release(self, token: str) -> None:
        """Sees to it that a given-up attempt no longer runs at the provider, where it would be paid for."""
        job, attempt = await run_in_threadpool(self._store.orphan, token)
        follow(job)
        later = attempt.model_copy(update={"orphan_due_at": self._clock() + int(ORPHAN_SECONDS * 1000)})
        await run_in_threadpool(self._store.note, later)
        if attempt.runpod_job_id is None:
            started = await self._evidence.started(job, attempt)
            if started is not None:
                later = later.model_copy(update={"runpod_job_id": started.runpod_job_id})
        gone: dict[str, Any] = {}
        if later.runpod_job_id is not None:
            await self._runpod.cancel(later.endpoint_url, later.runpod_job_id)
            remote = await self._evidence.remote(later)
            if remote.state not in (RemoteState.QUEUED, RemoteState.RUNNING):
                gone = {"orphan_due_at": None, "gpu_seconds": remote.execution_seconds}
        elif self._moves.seconds_since(attempt.submitted_at) > (attempt.ttl_seconds or 0):
            gone = {"orphan_due_at": None}  # it cannot be there any more
        if gone:
            log.info("orphan_gone", runpod_job_id=later.runpod_job_id)
        await run_in_threadpool(self._store.note, later.model_copy(update=gone))


def _waiting(health: Health, since: int, long: bool) -> dict[str, Any]:
    """Says why a job waits for a worker; with none at all it would wait for ever.

    An idle worker takes the next job at once. RunPod also calls a worker idle that is scaled down and does not come up
    (RunPod's guide, "Troubleshooting": jobs stay in the queue).
    """
    if health.workers_idle and long:
        sentence = "GPU workers are idle, but none takes the job: see their logs"
        return {"message": sentence, "stalled_since": since}
    if health.workers_up:
        return {"message": MESSAGES[Phase.QUEUED], "stalled_since": None}
    if health.workers_starting:
        return {"message": "A GPU worker is starting", "stalled_since": None}
    if health.workers_throttled:
        return {"message": "The GPU provider has no GPU free at the moment", "stalled_since": None}
    if health.workers_unhealthy:
        return {"message": "All GPU workers are unhealthy; see their logs", "stalled_since": since}
    sentence = "There is no GPU worker: the endpoint may be scaled to zero, or its workers cannot start"
    return {"message": sentence, "stalled_since": since}
