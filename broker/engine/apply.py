"""Carries out what was decided: fences, moves and ends; each move one compare-and-set with its event."""

import asyncio
from collections.abc import Callable, Mapping

import structlog
from starlette.concurrency import run_in_threadpool

from broker.bucket import Bucket
from broker.engine.dispatch import Dispatch
from broker.engine.observe import Observer, document_key
from broker.errors import ProviderError, StorageError
from broker.jobs.decide import (
    BeginAttempt,
    Change,
    Complete,
    Decision,
    End,
    NoOp,
    Reschedule,
    Rules,
    StopAttempt,
    Submit,
    decide_stopped,
    over,
    seconds_since,
)
from broker.jobs.model import Attempt, AttemptState, EventKind, EvidenceSource, Job, JobChange
from broker.jobs.observation import Observation, RemoteState
from broker.jobs.policy import wait_seconds
from broker.jobs.pricing import spent
from broker.providers.registry import Providers
from broker.store.jobs import JobStore
from schemas.jobs import JobStatus, Phase
from schemas.keys import TEMPORARY, object_key
from schemas.worker import Result

log = structlog.get_logger(__name__)

#: How long the question may take what a provider bills.
BILL_SECONDS = 5.0


class Applier:
    """Carries decisions out; where somebody else has moved the job meanwhile, nothing happens.

    Raises:
        BrokerError: something could not be reached; the job is as it was.
    """

    def __init__(
        self,
        store: JobStore,
        bucket: Bucket,
        providers: Providers,
        observer: Observer,
        dispatch: Dispatch,
        rules: Rules,
        prices: Mapping[str, float],
        clock: Callable[[], int],
    ) -> None:
        self._store = store
        self._bucket = bucket
        self._providers = providers
        self._observer = observer
        self._dispatch = dispatch
        self._rules = rules
        self._prices = prices
        self._clock = clock
        #: How many jobs are open: the more, the rarer each is looked at.
        self.open_jobs = 0

    async def apply(self, job: Job, attempts: list[Attempt], decision: Decision) -> None:
        """Carries a decision out, and what follows from it at once."""
        match decision:
            case NoOp():
                return
            case Reschedule():
                await self._look_again(job, attempts, decision)
            case Change():
                await self._change(job, attempts, decision)
            case BeginAttempt():
                await self._begin(job, attempts)
            case Submit(attempt):
                await self._send(job, attempts, attempt)
            case StopAttempt(attempt):
                await self.apply(job, attempts, await self._stop(job, attempt))
            case Complete() | End():
                await self._conclude(job, attempts, decision)

    async def _conclude(self, job: Job, attempts: list[Attempt], decision: Complete | End) -> None:
        if isinstance(decision, Complete):
            await self._complete(job, attempts, decision.attempt, decision.result)
        else:
            await self._end(job, attempts, decision)

    async def look_again(self, job: Job, seconds: float) -> None:
        """Has a job looked at again after so many seconds."""
        await self._look_again(job, [], Reschedule(seconds))

    async def _look_again(self, job: Job, attempts: list[Attempt], decision: Reschedule) -> None:
        due, attempt = self._due(job, attempts, decision.wait), decision.attempt
        touched = await run_in_threadpool(self._store.touch, job, due, decision.evidence, attempt)
        if touched is None and attempt is not None and decision.keep_attempt:
            await run_in_threadpool(self._store.note, attempt)

    async def _change(self, job: Job, attempts: list[Attempt], decision: Change) -> Job | None:
        attempt = decision.attempt
        if decision.fence and attempt is not None:
            await self._fence(job, attempt)
        change = decision.change.merged(JobChange(due_at=self._due(job, attempts, decision.wait)))
        moved = await self._move(job, decision.kind, change, attempt, decision.evidence)
        if moved is None and attempt is not None and decision.keep_attempt:
            await run_in_threadpool(self._store.note, attempt)
        if moved is not None and decision.kind in (EventKind.SUBMITTED, EventKind.SUPERSEDED):
            log.info(decision.kind, attempt=job.attempt, code=attempt and attempt.error_code)
        return moved

    # ── send ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _begin(self, job: Job, attempts: list[Attempt]) -> None:
        attempt = self._dispatch.attempt(job)
        change = JobChange(
            attempt=attempt.number, phase=Phase.SUBMITTING, provider_job_id=None, progress=0
        )
        moved = await self._change(job, attempts, Change(EventKind.ATTEMPT_BEGUN, change, attempt))
        if moved is not None:
            await self._send(moved, [*attempts, attempt], attempt)

    async def _send(self, job: Job, attempts: list[Attempt], attempt: Attempt) -> None:
        prepared = await self._dispatch.prepare(job, attempt)
        if isinstance(prepared, End):
            await self._end(job, attempts, prepared)
            return
        # Committed before the first byte leaves: a crash from here on means "unknown", never "not sent".
        due = self._clock() + 2000
        touched = await run_in_threadpool(self._store.touch, job, due, None, prepared.attempt)
        if touched is not None:
            await self.apply(
                touched, attempts, await self._dispatch.send(touched, attempt, prepared)
            )

    # ── to the end ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _stop(self, job: Job, attempt: Attempt) -> Decision:
        """Fences an attempt, has the provider stop it, and looks who was faster."""
        await self._fence(job, attempt)
        outcome: bool | ProviderError = False
        if attempt.provider_job_id is not None:
            try:
                await self._providers.of(attempt).cancel(attempt.target, attempt.provider_job_id)
                outcome = (await self._observer.remote(attempt)).state.is_over
            except ProviderError as error:
                log.warning("cancel_unanswered", error=str(error))
                outcome = error
        seen = Observation(committed=await self._observer.committed(job, attempt))
        return decide_stopped(job, attempt, seen, outcome, self._clock(), self._rules)

    async def _complete(
        self, job: Job, attempts: list[Attempt], attempt: Attempt, result: Result
    ) -> None:
        change = JobChange(
            status=JobStatus.COMPLETE,
            phase=Phase.DONE,
            progress=100,
            message="Done",
            output_key=result.output_key,
            result=result.facts.model_dump_json(),
            provider_job_id=result.provider_job_id,
            media_seconds=result.facts.duration_seconds,
        )
        billed = await self._billed(attempt, result)
        change = change.merged(spent(attempts, billed, result.gpu, self._prices))
        await self._finish(
            job, billed, End(EventKind.COMPLETE, change, billed, EvidenceSource.RESULT)
        )
        await self._drop_temporary(job)

    async def _end(self, job: Job, attempts: list[Attempt], end: End) -> None:
        if end.fence and end.attempt is not None:
            await self._fence(job, end.attempt)
            late = await self._observer.committed(job, end.attempt)
            if late is not None and late.output_is_there:  # committed just before the fence
                await self._complete(job, attempts, late.attempt, late.result)
                return
        change = end.change.merged(spent(attempts, end.attempt, None, self._prices))
        await self._finish(
            job, end.attempt, End(end.kind, change, end.attempt, end.evidence, gone=end.gone)
        )

    async def _finish(self, job: Job, attempt: Attempt | None, end: End) -> None:
        now = self._clock()
        ended = None
        if attempt is not None and attempt.state is not AttemptState.SUPERSEDED:
            ended = over(attempt, AttemptState.ENDED, now, end.gone)
        change = end.change.merged(JobChange(completed_at=now, stalled_since=None, due_at=now))
        if await self._move(job, end.kind, change, ended, end.evidence) is not None:
            log.info("ended", status=change.status, error_code=change.error_code)

    async def _billed(self, attempt: Attempt, result: Result) -> Attempt:
        """Notes what the run took: as the provider bills it, while it still tells, else as the worker measured."""
        took = result.timings
        worked = took.fetch_seconds + took.edit_seconds + took.upload_seconds
        billed = attempt.gpu_seconds
        try:
            since_end = seconds_since(attempt.submitted_at, self._clock()) - worked
            if billed is None and since_end < self._providers.of(attempt).keeps_results_seconds:
                async with asyncio.timeout(BILL_SECONDS):
                    remote = await self._observer.remote(attempt)
                billed = remote.execution_seconds if remote.state is RemoteState.FINISHED else None
        except (ProviderError, TimeoutError):  # no reason to keep anybody waiting
            pass
        return attempt.evolve(gpu_seconds=round(worked if billed is None else billed, 3))

    async def _drop_temporary(self, job: Job) -> None:
        """Removes a file that came with the job; of a job that failed it stays a while, for a retry (retention.py)."""
        if job.input_key is None or not job.input_key.startswith(f"{TEMPORARY}/"):
            return
        try:
            await run_in_threadpool(self._bucket.delete, object_key(job.user_id, job.input_key))
        except StorageError as error:  # the sweep gets it
            log.warning("temporary_left", error=str(error))

    # ── all of them ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _fence(self, job: Job, attempt: Attempt) -> None:
        """Tells whoever still works on the attempt to stop; raises StorageError where that cannot be written."""
        key = object_key(job.user_id, document_key(attempt, "stop.json"))
        await run_in_threadpool(self._bucket.write, key, b"{}")

    async def _move(
        self,
        job: Job,
        kind: EventKind,
        change: JobChange,
        attempt: Attempt | None,
        evidence: EvidenceSource | None,
    ) -> Job | None:
        if evidence is not None:
            seen = JobChange(evidence_source=evidence, evidence_at=self._clock())
            change = change.merged(seen)
        return await run_in_threadpool(self._store.transition, job, kind, change, attempt)

    def _due(self, job: Job, attempts: list[Attempt], wait: float | None) -> int:
        """Returns when to look next: after `wait` seconds, or by how long the newest attempt has been there."""
        now = self._clock()
        if wait is None:
            newest = attempts[-1] if attempts else None
            begun = job.created_at if newest is None else newest.submitted_at or newest.created_at
            wait = wait_seconds(seconds_since(begun, now), self.open_jobs)
        return now + int(wait * 1000)
