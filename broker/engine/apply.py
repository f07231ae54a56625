"""How a job is moved: on, to its end, or to its next attempt; each one compare-and-set with its event."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from starlette.concurrency import run_in_threadpool

from broker.bucket import Bucket
from broker.engine.observe import Evidence, document_key
from broker.errors import ProviderError, StorageError
from broker.jobs.policy import TRIES, backoff_seconds, tries_again, wait_seconds
from broker.jobs.pricing import cost
from broker.providers.runpod import RemoteState
from broker.store.jobs import JobStore
from broker.store.tables import Attempt, AttemptState, Job
from schemas.jobs import ErrorCode, JobStatus, Phase
from schemas.keys import TEMPORARY, object_key
from schemas.worker import Result

log = structlog.get_logger(__name__)

MESSAGES = {
    Phase.QUEUED: "Waiting for a GPU worker",
    Phase.STARTING: "A GPU worker has taken the job",
    Phase.DOWNLOADING: "Fetching the video",
    Phase.PROCESSING: "Editing frames",
    Phase.UPLOADING: "Uploading the result",
    Phase.VERIFYING: "Checking the result",
}
#: For so long after a job's end the provider tells how long it ran.
TELLS_SECONDS = 1800
BILL_SECONDS = 5.0
CANCELLED = {"status": JobStatus.CANCELLED, "message": "Cancelled by user"}


class Moves:
    """The moves of jobs; where somebody else has moved one meanwhile, nothing happens."""

    def __init__(
        self,
        store: JobStore,
        bucket: Bucket,
        evidence: Evidence,
        prices: Mapping[str, float],
        clock: Callable[[], int],
    ) -> None:
        self._store = store
        self._prices = prices
        self._bucket = bucket
        self._evidence = evidence
        self._clock = clock
        self.open_jobs = 0  #: told by the loop now and then

    # ── on ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def move(
        self,
        job: Job,
        kind: str,
        changes: dict[str, Any],
        attempt: Attempt | None = None,
        evidence: str | None = None,
        wait: float | None = None,
    ) -> Job | None:
        """Changes a job, and says when to look at it next; returns None where somebody was faster."""
        now = self._clock()
        begun = attempt.created_at if attempt else job.created_at
        seconds = self.pause(begun) if wait is None else wait
        changes = {**changes, "due_at": now + int(seconds * 1000)}
        if evidence is not None:
            changes |= {"evidence_source": evidence, "evidence_at": now}
        return await run_in_threadpool(self._store.move, job, kind, changes, attempt)

    async def look_again(
        self, job: Job, seconds: float, evidence: str | None = None, attempt: Attempt | None = None
    ) -> Job | None:
        """Changes nothing but when to look next, and what is known of the attempt."""
        due = self._clock() + int(seconds * 1000)
        return await run_in_threadpool(self._store.touch, job, due, evidence, attempt)

    async def wait(self, job: Job, sentence: str, seconds: float) -> None:
        """Says, once, why a job waits."""
        if job.message != sentence:
            await self.move(job, "held", {"message": sentence}, wait=seconds)
        else:
            await self.look_again(job, seconds)

    # ── to the end ──────────────────────────────────────────────────────────────────────────────────────────────

    async def finish_from_bucket(self, job: Job, attempt: Attempt) -> bool:
        """Completes the job if its result is committed and its output is there. The only way to `complete`."""
        seen = await self._evidence.result(job, attempt)
        if seen is None:
            return False
        result, output_is_there = seen
        if output_is_there:
            await self._complete(job, attempt, result)
            return True
        log.error("result_without_output")
        if attempt.state is AttemptState.SUPERSEDED:
            return False
        sentence = "The finished file is not in the bucket."
        await self.supersede(job, attempt, ErrorCode.RESULT_LOST, sentence, gone=True)
        return True

    async def finish_from_given_up(self, job: Job) -> bool:
        """A worker may have committed in the very moment in which its attempt was given up: work that is done counts."""
        for attempt in await run_in_threadpool(self._store.attempts, job.id):
            if await self.finish_from_bucket(job, attempt):
                return True
        return False

    async def _complete(self, job: Job, attempt: Attempt, result: Result) -> None:
        attempt = await self._with_bill(attempt, result)
        changes = {
            "status": JobStatus.COMPLETE,
            "phase": Phase.DONE,
            "progress": 100,
            "message": "Done",
            "output_key": result.output_key,
            "result": result.facts.model_dump_json(),
            "runpod_job_id": result.runpod_job_id,
            "media_seconds": result.facts.duration_seconds,
        }
        await self.end(job, attempt, "complete", changes, "bucket:result.json", gpu=result.gpu)
        await self._drop_temporary(job)

    async def refuse_upload(self, job: Job, key: str, size: int) -> bool:
        """Removes a file that is larger than an upload may be; False where it is no upload, so that no limit is for it."""
        if not await run_in_threadpool(self._store.refuse_upload, job.user_id, key, size):
            return False
        await run_in_threadpool(self._bucket.delete, object_key(job.user_id, key))
        log.warning("upload_refused", bytes=size)
        return True

    async def _drop_temporary(self, job: Job) -> None:
        """Removes a file that came with the job; of a job that failed it stays a while, for a retry (retention.py)."""
        if job.input_key is None or not job.input_key.startswith(f"{TEMPORARY}/"):
            return
        try:
            await run_in_threadpool(self._bucket.delete, object_key(job.user_id, job.input_key))
        except StorageError as error:  # the sweep gets it
            log.warning("temporary_left", error=str(error))

    async def _with_bill(self, attempt: Attempt, result: Result) -> Attempt:
        """Notes what the run took: as the provider bills it, while it still tells, else as the worker measured."""
        spent = result.timings
        worked = spent.fetch_seconds + spent.edit_seconds + spent.upload_seconds
        billed = attempt.gpu_seconds
        if billed is None and self.seconds_since(attempt.submitted_at) - worked < TELLS_SECONDS:
            try:
                async with asyncio.timeout(BILL_SECONDS):
                    remote = await self._evidence.remote(attempt)
                billed = remote.execution_seconds if remote.state is RemoteState.FINISHED else None
            except (ProviderError, TimeoutError):  # no reason to keep anybody waiting
                pass
        return attempt.model_copy(update={"gpu_seconds": round(worked if billed is None else billed, 3)})

    async def supersede(
        self, job: Job, attempt: Attempt, code: ErrorCode, sentence: str, gone: bool = False
    ) -> None:
        """Gives an attempt up for good, and begins the next one where the policy has one left.

        Args:
            gone: nothing of it is left at the provider.
        """
        before = await run_in_threadpool(self._store.attempts, job.id)
        failures = [one.error_code for one in before if one.error_code is not None] + [code]
        again = tries_again(failures, job.max_attempts)
        if code in TRIES or not gone:  # a worker that was lost to us may still be at it
            await self.fence(job, attempt)
        if not again:
            if not gone and await self.finish_from_bucket(job, attempt):
                return  # it was committed just before the fence
            told = f"{sentence} Gave up after {len(failures)} attempts." if len(failures) > 1 else sentence
            await self.fail(job, attempt, code, told, gone=gone)
            return
        changes = {
            **phase(Phase.ACCEPTED, f"{sentence} Trying again."),
            "runpod_job_id": None,
            "progress": 0,
            "stalled_since": None,
        }
        given_up = self._over(attempt, AttemptState.SUPERSEDED, gone).model_copy(update={"error_code": code})
        log.warning("superseded", code=code, attempt=job.attempt)
        await self.move(job, "superseded", changes, given_up, wait=backoff_seconds(len(failures)))

    async def fail(
        self,
        job: Job,
        attempt: Attempt,
        code: ErrorCode,
        sentence: str,
        evidence: str = "runpod:/status",
        gone: bool = True,
    ) -> None:
        """Ends a job in `error`."""
        changes = {"status": JobStatus.ERROR, "error": sentence, "error_code": code, "message": sentence}
        failed = attempt.model_copy(update={"error_code": code})
        await self.end(job, failed, "error", changes, evidence, gone=gone)

    async def end(
        self,
        job: Job,
        attempt: Attempt | None,
        kind: str,
        changes: dict[str, Any],
        evidence: str,
        gone: bool = True,
        gpu: str | None = None,
    ) -> None:
        """Ends a job, and its attempt with it; `gpu` is the name of what did it."""
        changes = changes | await self._spent(job, attempt, gpu)
        ended = None
        if attempt is not None and attempt.state is not AttemptState.SUPERSEDED:
            ended = self._over(attempt, AttemptState.ENDED, gone)
        changes = {**changes, "completed_at": self._clock(), "stalled_since": None}
        if await self.move(job, kind, changes, ended, evidence) is not None:
            log.info("ended", **{name: changes[name] for name in ("status", "error_code") if name in changes})

    async def _spent(self, job: Job, last: Attempt | None, gpu: str | None) -> dict[str, Any]:
        """Returns what all attempts together took and cost, as far as it is known."""
        attempts = await run_in_threadpool(self._store.attempts, job.id) if job.attempt > 1 else []
        known = [one.gpu_seconds for one in attempts if last is None or one.token != last.token]
        known += [last.gpu_seconds] if last is not None else []
        if not any(known):
            return {}
        seconds = round(sum(one for one in known if one is not None), 3)
        return {"gpu_seconds": seconds, "cost_usd": cost(self._prices, gpu, seconds)}

    async def fence(self, job: Job, attempt: Attempt) -> None:
        """Tells whoever still works on the attempt to stop; raises StorageError where that cannot be said."""
        await run_in_threadpool(self._bucket.write, document_key(job, attempt, "stop.json"), b"{}")

    def pause(self, since: int | None) -> float:
        """Returns how long to wait for the next look at something that began then."""
        return wait_seconds(self.seconds_since(since), self.open_jobs)

    def seconds_since(self, moment: int | None) -> float:
        """Returns the seconds since a moment in ms; 0 where there is none."""
        return 0.0 if moment is None else (self._clock() - moment) / 1000

    def _over(self, attempt: Attempt, state: AttemptState, gone: bool) -> Attempt:
        """Returns an attempt that nobody wants any more; what it may have left at the provider is due at once."""
        now = self._clock()
        due = None if gone or attempt.submitted_at is None else now
        return attempt.model_copy(update={"state": state, "ended_at": now, "orphan_due_at": due})


def phase(name: Phase, message: str = "") -> dict[str, Any]:
    """Returns the changes of a job that is in a phase now."""
    return {"phase": name, "message": message or MESSAGES[name]}
