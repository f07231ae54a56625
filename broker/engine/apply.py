"""Carries out decisions; each transition is one compare-and-set together with its event."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

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

#: How long a job's end may wait for the billed seconds of its run.
BILL_SECONDS = 5.0


@dataclass(eq=False)
class Applier:
    """Carries decisions out. Where somebody else changed the job meanwhile, nothing happens.

    Raises:
        BrokerError: the bucket or the provider could not be reached; the job is unchanged.
    """

    store: JobStore
    bucket: Bucket
    providers: Providers
    observer: Observer
    dispatch: Dispatch
    rules: Rules
    prices: Mapping[str, float]
    clock: Callable[[], int]
    #: How many jobs are open. The more there are, the rarer each is due.
    open_jobs: int = 0

    async def apply(  # noqa: C901  # one case a decision
        self, job: Job, attempts: list[Attempt], decision: Decision
    ) -> None:
        """Carries out a decision, and those that follow from it at once."""
        match decision:
            case NoOp():
                return
            case Reschedule():
                await self._reschedule(job, attempts, decision)
            case Change():
                await self._change(job, attempts, decision)
            case BeginAttempt():
                await self._begin(job, attempts)
            case Submit(attempt):
                await self._submit(job, attempts, attempt)
            case StopAttempt(attempt):
                await self.apply(job, attempts, await self._stop(job, attempt))
            case Complete(attempt, result):
                await self._complete(job, attempts, attempt, result)
            case End():
                await self._end(job, attempts, decision)

    async def postpone(self, job: Job, seconds: float) -> None:
        """Makes a job due again after so many seconds."""
        await self._reschedule(job, [], Reschedule(seconds))

    async def _reschedule(self, job: Job, attempts: list[Attempt], decision: Reschedule) -> None:
        due, attempt = self._due(job, attempts, decision.wait), decision.attempt
        touched = await run_in_threadpool(self.store.touch, job, due, decision.evidence, attempt)
        if touched is None and attempt is not None and decision.keep_attempt:
            await run_in_threadpool(self.store.note, attempt)

    async def _change(self, job: Job, attempts: list[Attempt], decision: Change) -> Job | None:
        attempt = decision.attempt
        if decision.fence and attempt is not None:
            await self._fence(job, attempt)
        change = decision.change.merged(JobChange(due_at=self._due(job, attempts, decision.wait)))
        changed = await self._transition(job, decision.kind, change, attempt, decision.evidence)
        if changed is None and attempt is not None and decision.keep_attempt:
            await run_in_threadpool(self.store.note, attempt)
        if changed is not None and decision.kind in (EventKind.SUBMITTED, EventKind.SUPERSEDED):
            log.info(decision.kind, attempt=job.attempt, code=attempt and attempt.error_code)
        return changed

    # ── submit ──────────────────────────────────────────────────────────────────────────────────

    async def _begin(self, job: Job, attempts: list[Attempt]) -> None:
        attempt = self.dispatch.attempt(job, attempts)
        change = JobChange(
            attempt=attempt.number,
            phase=Phase.SUBMITTING,
            provider=attempt.provider,
            provider_job_id=None,
            progress=0,
        )
        begun = await self._change(job, attempts, Change(EventKind.ATTEMPT_BEGUN, change, attempt))
        if begun is not None:
            await self._submit(begun, [*attempts, attempt], attempt)

    async def _submit(self, job: Job, attempts: list[Attempt], ready: Attempt) -> None:
        attempt = self.dispatch.placed(ready, [one for one in attempts if one.token != ready.token])
        prepared = await self.dispatch.prepare(job, attempt)
        if isinstance(prepared, End):
            await self._end(job, attempts, prepared)
            return
        # Committed before the first byte leaves. After a crash from here on, the outcome is
        # unknown; the broker never assumes that nothing was sent.
        due = self.clock() + 2000
        sending = await run_in_threadpool(self.store.touch, job, due, None, prepared.attempt)
        if sending is not None:
            decision = await self.dispatch.send(sending, attempt, prepared)
            await self.apply(sending, attempts, decision)

    # ── to the end ──────────────────────────────────────────────────────────────────────────────

    async def _stop(self, job: Job, attempt: Attempt) -> Decision:
        """Fences an attempt, cancels it at the provider, and observes which was faster."""
        await self._fence(job, attempt)
        outcome: bool | ProviderError = False
        if attempt.provider_job_id is not None:
            try:
                await self.providers.of(attempt).cancel(attempt.target, attempt.provider_job_id)
                outcome = (await self.observer.remote(attempt)).state.is_over
            except ProviderError as error:
                log.warning("cancel_unanswered", error=str(error))
                outcome = error
        seen = Observation(committed=await self.observer.committed(job, attempt))
        return decide_stopped(job, attempt, seen, outcome, self.clock(), self.rules)

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
            provider=attempt.provider,
            provider_job_id=result.provider_job_id,
            media_seconds=result.facts.duration_seconds,
        )
        billed = await self._billed(attempt, result)
        change = change.merged(spent(attempts, billed, result.gpu, self.prices))
        end = End(EventKind.COMPLETE, change, billed, EvidenceSource.RESULT)
        await self._finish(job, end)
        await self._drop_temporary(job)

    async def _end(self, job: Job, attempts: list[Attempt], end: End) -> None:
        if end.fence and end.attempt is not None:
            await self._fence(job, end.attempt)
            late = await self.observer.committed(job, end.attempt)
            # The worker committed just before the fence.
            if late is not None and late.output_is_there:
                await self._complete(job, attempts, late.attempt, late.result)
                return
        change = end.change.merged(spent(attempts, end.attempt, None, self.prices))
        await self._finish(job, End(end.kind, change, end.attempt, end.evidence, gone=end.gone))

    async def _finish(self, job: Job, end: End) -> None:
        now, attempt = self.clock(), None
        if end.attempt is not None and end.attempt.state is not AttemptState.SUPERSEDED:
            attempt = over(end.attempt, AttemptState.ENDED, now, end.gone)
        change = end.change.merged(JobChange(completed_at=now, stalled_since=None, due_at=now))
        if await self._transition(job, end.kind, change, attempt, end.evidence) is not None:
            log.info("ended", status=change.status, error_code=change.error_code)

    async def _billed(self, attempt: Attempt, result: Result) -> Attempt:
        """Adds the GPU seconds: as the provider bills them, else as the worker measured them."""
        took = result.timings
        worked = took.fetch_seconds + took.edit_seconds + took.upload_seconds
        billed = attempt.gpu_seconds
        try:
            provider = self.providers.of(attempt)
            since_end = seconds_since(attempt.submitted_at, self.clock()) - worked
            is_kept = since_end < provider.keeps_results_seconds
            if billed is None and provider.bills_seconds and is_kept:
                async with asyncio.timeout(BILL_SECONDS):
                    remote = await self.observer.remote(attempt)
                billed = remote.execution_seconds if remote.state is RemoteState.FINISHED else None
        except (ProviderError, TimeoutError):
            # A bill is no reason to keep the user waiting.
            pass
        return attempt.evolve(gpu_seconds=round(worked if billed is None else billed, 3))

    async def _drop_temporary(self, job: Job) -> None:
        """Removes a file that came with the job; a failed job keeps it (see retention.py)."""
        if job.input_key is None or not job.input_key.startswith(f"{TEMPORARY}/"):
            return
        try:
            await run_in_threadpool(self.bucket.delete, object_key(job.user_id, job.input_key))
        except StorageError as error:
            # The daily sweep removes the file.
            log.warning("temporary_left", error=str(error))

    # ── used by all ─────────────────────────────────────────────────────────────────────────────

    async def _fence(self, job: Job, attempt: Attempt) -> None:
        """Writes `stop.json`, on which the attempt's workers stop."""
        key = object_key(job.user_id, document_key(attempt, "stop.json"))
        await run_in_threadpool(self.bucket.write, key, b"{}")

    async def _transition(
        self,
        job: Job,
        kind: EventKind,
        change: JobChange,
        attempt: Attempt | None,
        evidence: EvidenceSource | None,
    ) -> Job | None:
        if evidence is not None:
            seen = JobChange(evidence_source=evidence, evidence_at=self.clock())
            change = change.merged(seen)
        return await run_in_threadpool(self.store.transition, job, kind, change, attempt)

    def _due(self, job: Job, attempts: list[Attempt], wait: float | None) -> int:
        """Returns when the job is due: after `wait` seconds, or by its newest attempt's age."""
        now = self.clock()
        if wait is None:
            newest = attempts[-1] if attempts else None
            begun = job.created_at if newest is None else newest.submitted_at or newest.created_at
            wait = wait_seconds(seconds_since(begun, now), self.open_jobs)
        return now + int(wait * 1000)
