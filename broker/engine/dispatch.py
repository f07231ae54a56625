"""From a stored job to one that the provider has: once, whatever happens in between.

An attempt is committed as "submitting" before the first byte leaves. What comes back decides: an id, nothing accepted, or
nobody knows. In the last case the job is never sent again blindly: signs of the run are looked for, and only after a
grace period is the attempt fenced, and the next one begun.
"""

import json
import secrets
from collections.abc import Callable, Iterable

import structlog
from starlette.concurrency import run_in_threadpool

from broker.engine.apply import Moves, phase
from broker.engine.observe import Evidence, started_at
from broker.errors import ProviderPaced, ProviderRefused, ProviderUncertain, ProviderUnreachable
from broker.jobs.policy import deadlines
from broker.providers.runpod import RemoteState, RunPodClient
from broker.settings import Settings
from broker.store.jobs import JobStore
from broker.store.tables import Attempt, AttemptState, Job
from schemas.jobs import ErrorCode, JobStatus, Phase
from schemas.worker import WorkerInput

log = structlog.get_logger(__name__)

#: The flag in the database that keeps new jobs from being taken and sent.
DRAINING = "draining"

#: A queue that is seen empty twice, so far apart, does not hold the job whose submit is in doubt.
EMPTY_SECONDS = 10.0

_AWAY = "The GPU provider cannot be reached; the job goes as soon as it is back"
_PACED = "The GPU provider takes no more jobs for the moment; the job goes in its turn"


class Dispatch:
    """Sends jobs to the provider."""

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        evidence: Evidence,
        moves: Moves,
        runpod: RunPodClient,
        clock: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._store = store
        self._evidence = evidence
        self._moves = moves
        self._runpod = runpod
        self._clock = clock
        #: While true, no job is sent; those that were go on.
        self.draining = False

    async def look_at_flag(self) -> None:
        """Learns whether the broker is being drained; of several on one database, another may have been told."""
        before = self.draining
        flag = await run_in_threadpool(self._store.flag, DRAINING)
        if self.draining is before:  # else we were told ourselves, meanwhile
            self.draining = flag

    async def begin_attempt(self, job: Job) -> None:
        """Commits a new attempt and sends it."""
        if self.draining:
            await self._hold_back(job)
            return
        attempt = Attempt(
            token=secrets.token_hex(16),
            job_id=job.id,
            number=job.attempt + 1,
            state=AttemptState.READY,
            endpoint_url=self._settings.runpod_endpoint_url,
            created_at=self._clock(),
        )
        changes = {"attempt": attempt.number, "phase": Phase.SUBMITTING, "runpod_job_id": None, "progress": 0}
        moved = await self._moves.move(job, "attempt_begun", changes, attempt)
        if moved is not None:
            await self.submit(moved, attempt)

    async def submit(self, job: Job, attempt: Attempt) -> None:
        """Sends an attempt of which nothing is at the provider."""
        if self.draining:
            await self._hold_back(job)
            return
        asked = _worker_input(job, attempt)
        source_bytes = await self._source_bytes(job, attempt, asked.video_keys)
        if source_bytes is None:
            return
        settings = self._settings
        limits = deadlines(
            asked.params, source_bytes, settings.execution_timeout_seconds, settings.queue_timeout_seconds
        )
        # Committed before the first byte leaves: a crash from here on means "unknown", never "not sent".
        told = {
            "state": AttemptState.SUBMITTING,
            "submitted_at": self._clock(),
            "timeout_seconds": limits.execution,
            "ttl_seconds": limits.ttl,
        }
        sending = attempt.model_copy(update=told)
        touched = await self._moves.look_again(job, 2.0, attempt=sending)
        if touched is None:
            return
        try:
            runpod_job_id = await self._runpod.submit(
                attempt.endpoint_url, asked, limits, self._webhook(job, attempt)
            )
        except ProviderUnreachable as error:
            await self._hold(touched, attempt, error)
        except ProviderRefused as error:
            log.error("submit_refused", error=str(error))
            sentence = "The GPU provider refused the job."
            await self._moves.fail(touched, attempt, ErrorCode.PROVIDER_REFUSED, sentence, "runpod:/run")
        except ProviderUncertain as error:
            log.warning("submit_unknown", error=str(error))
            sentence = "Checking whether the GPU provider has the job"
            changes = {"status": JobStatus.PROCESSING, "message": sentence}
            await self._moves.move(touched, "submit_unknown", changes)
        else:
            await self._adopt(touched, sending, runpod_job_id, "runpod:/run")

    async def _source_bytes(self, job: Job, attempt: Attempt, keys: Iterable[str]) -> int | None:
        """Returns the size of all sources together; None where one is not there or too large, and the job has ended so."""
        most, total = self._settings.max_upload_bytes, 0
        for key in keys:
            size = await self._evidence.size(job, key)
            if size is None:
                code, sentence = ErrorCode.SOURCE_NOT_FOUND, f"{key}: The file is not in the bucket."
            elif size > most and await self._moves.refuse_upload(job, key, size):
                told = f"{key}: The file has {size} bytes; an upload may have {most}."
                code, sentence = ErrorCode.FILE_TOO_LARGE, told
            else:
                total += size
                continue
            await self._moves.fail(job, attempt, code, sentence, "bucket")
            return None
        return total

    async def look_for_signs(self, job: Job, attempt: Attempt) -> None:
        """After a submit whose end is unknown: adopt the run that it started, or supersede it, but never repeat it."""
        if await self._moves.finish_from_bucket(job, attempt):
            return
        started = await self._evidence.started(job, attempt)
        if started is not None:
            running = attempt.model_copy(update={"started_at": started_at(attempt, started, self._clock())})
            await self._adopt(job, running, started.runpod_job_id, "bucket:started.json")
        elif attempt.runpod_job_id is not None:
            await self._believe(job, attempt, attempt.runpod_job_id)
        elif self._moves.seconds_since(attempt.submitted_at) > self._settings.submit_grace_seconds:
            sentence = "The GPU provider lost the job."
            await self._moves.supersede(job, attempt, ErrorCode.PROVIDER_UNAVAILABLE, sentence)
        else:
            await self._look_into_the_queue(job, attempt)

    async def _adopt(self, job: Job, attempt: Attempt, runpod_job_id: str, evidence: str) -> None:
        known = attempt.model_copy(
            update={
                "state": AttemptState.SUBMITTED,
                "runpod_job_id": runpod_job_id,
                # What was seen before says nothing about a run that is known now.
                "queue_empty_since": None,
                "absent_since": None,
            }
        )
        changes = {
            "status": JobStatus.PROCESSING,
            "runpod_job_id": runpod_job_id,
            "progressed_at": self._clock(),
            **phase(Phase.QUEUED),
        }
        log.info("submitted", runpod_job_id=runpod_job_id)
        if await self._moves.move(job, "submitted", changes, known, evidence) is None:
            # Somebody asked for a cancel meanwhile: the id is what that cancel needs.
            await run_in_threadpool(self._store.note, known)

    async def _believe(self, job: Job, attempt: Attempt, runpod_job_id: str) -> None:
        """Adopts the id that came by webhook if the provider knows it."""
        if (await self._evidence.remote(attempt)).state is not RemoteState.ABSENT:
            await self._adopt(job, attempt, runpod_job_id, "webhook")
        else:
            unknown = attempt.model_copy(update={"runpod_job_id": None})
            await self._moves.look_again(job, 2.0, attempt=unknown)

    async def _look_into_the_queue(self, job: Job, attempt: Attempt) -> None:
        """An endpoint that has nothing to do, twice, does not have this job either: no need to sit out the grace."""
        health = await self._evidence.health(attempt.endpoint_url, since=attempt.submitted_at or 0)
        empty_since = attempt.queue_empty_since
        if health.jobs_queued or health.jobs_running:
            empty_since = None
        elif empty_since is None:
            empty_since = self._clock()
        elif self._moves.seconds_since(empty_since) > EMPTY_SECONDS:
            sentence = "The GPU provider did not get the job."
            await self._moves.supersede(job, attempt, ErrorCode.PROVIDER_UNAVAILABLE, sentence, gone=True)
            return
        noted = attempt.model_copy(update={"queue_empty_since": empty_since})
        await self._moves.look_again(job, 2.0, attempt=noted)

    async def _hold(self, job: Job, attempt: Attempt, error: ProviderUnreachable) -> None:
        """Nothing reached the provider: the job waits, and the same attempt goes when the provider is back."""
        log.warning("submit_held", error=str(error))
        await run_in_threadpool(self._store.note, attempt)
        sentence = _PACED if isinstance(error, ProviderPaced) else _AWAY
        await self._moves.wait(job, sentence, self._moves.pause(attempt.created_at))

    async def _hold_back(self, job: Job) -> None:
        await self._moves.wait(job, "The broker sends no jobs for the moment; the job waits", 5.0)

    def _webhook(self, job: Job, attempt: Attempt) -> str | None:
        """Returns where the provider may call when it is done; nobody can guess the token."""
        base = self._settings.public_url
        return None if base is None else f"{base}/hooks/runpod/{job.id}/{attempt.token}"


def _worker_input(job: Job, attempt: Attempt) -> WorkerInput:
    return WorkerInput(
        job_id=job.id,
        user_id=job.user_id,
        type=job.type,
        input_key=job.input_key,
        params=json.loads(job.params),
        attempt_token=attempt.token,
        traceparent=job.traceparent,
    )
