"""Reconcile: takes one job a step further, whatever state a crash or the provider left it in.

Load, observe, decide, apply. jobs/decide.py holds the decisions.
"""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from broker.engine.apply import Applier
from broker.engine.drain import DrainSwitch
from broker.engine.observe import Observer
from broker.jobs.decide import Decision, Rules, decide
from broker.jobs.model import Attempt, AttemptState, Job
from broker.store.jobs import JobStore
from broker.trace import bind_job

POSTPONED_SECONDS = 5.0


@dataclass(frozen=True, eq=False)
class Reconciler:
    """Takes open jobs to their end.

    Args:
        clock: milliseconds since the epoch; tests bring their own.
        on_reconcile: called with how many seconds after its due time each job is reconciled.
    """

    store: JobStore
    observer: Observer
    applier: Applier
    drain: DrainSwitch
    rules: Rules
    clock: Callable[[], int]
    on_reconcile: Callable[[float], None] = lambda late: None

    async def reconcile(self, job_id: str) -> None:
        """Loads a job and takes it a step further."""
        await self.advance(*await run_in_threadpool(self.store.load, job_id))

    async def advance(self, job: Job, attempts: list[Attempt]) -> None:
        """Takes a job a step further, by what the broker observes now.

        Raises:
            BrokerError: the bucket or the provider could not be reached; nothing was changed.
        """
        await self.applier.apply(job, attempts, await self.decision(job, attempts))

    async def decision(self, job: Job, attempts: list[Attempt]) -> Decision:
        """Returns what to do with a job now; changes nothing."""
        bind_job(job)
        if not job.status.is_terminal:
            self.on_reconcile((self.clock() - job.due_at) / 1000)
        seen = await self.observer.observe(job, attempts, self.drain.is_on)
        return decide(job, attempts, seen, self.clock(), self.rules)

    def set_open_jobs(self, count: int) -> None:
        """Sets how many jobs are open. The more there are, the rarer each is due."""
        self.applier.open_jobs = count

    async def postpone(self, job_id: str) -> None:
        """Makes an open job due again in a while, after an error."""
        job = await run_in_threadpool(self.store.find, job_id)
        if job is not None and not job.status.is_terminal:
            await self.applier.postpone(job, POSTPONED_SECONDS)

    async def hint(self, job_id: str, token: str, provider_job_id: str | None) -> bool:
        """Makes a job due now, because the provider called; believes nothing else of the call.

        Args:
            provider_job_id: the id in the call. After a submit in doubt, the broker asks for it.

        Returns:
            False where there is no such attempt.
        """
        attempt = await run_in_threadpool(self.store.hint, job_id, token, self.clock())
        if attempt is None:
            return False
        in_doubt = attempt.state is AttemptState.SUBMITTING and attempt.provider_job_id is None
        if in_doubt and provider_job_id:
            known = attempt.evolve(provider_job_id=provider_job_id)
            await run_in_threadpool(self.store.note, known)
        return True
