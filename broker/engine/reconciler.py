"""Reconcile: takes one job a step further, from whatever state a crash, a restart or the provider left it in.

Load, observe, decide, apply: what is decided is said in jobs/decide.py.
"""

from collections.abc import Callable

import structlog
from starlette.concurrency import run_in_threadpool

from broker.engine.apply import Applier
from broker.engine.drain import DrainSwitch
from broker.engine.observe import Observer
from broker.jobs.decide import Decision, Rules, decide
from broker.jobs.model import Attempt, AttemptState, Job
from broker.store.jobs import JobStore
from broker.trace import follow

log = structlog.get_logger(__name__)

POSTPONED_SECONDS = 5.0


class Reconciler:
    """Moves open jobs along until they end.

    Args:
        clock: milliseconds since the epoch; tests bring their own.
        on_reconcile: called with how late each look is, in seconds.
    """

    def __init__(
        self,
        store: JobStore,
        observer: Observer,
        applier: Applier,
        drain: DrainSwitch,
        rules: Rules,
        clock: Callable[[], int],
        on_reconcile: Callable[[float], None] = lambda late: None,
    ) -> None:
        self._store = store
        self._observer = observer
        self._applier = applier
        self._drain = drain
        self._rules = rules
        self._clock = clock
        self._on_look = on_reconcile

    async def reconcile(self, job_id: str) -> None:
        """Loads a job and takes it one step further."""
        await self.advance(*await run_in_threadpool(self._store.load, job_id))

    async def advance(self, job: Job, attempts: list[Attempt]) -> None:
        """Takes one job one step further, by what can be seen of it now.

        Raises:
            BrokerError: something could not be reached; nothing was changed.
        """
        await self._applier.apply(job, attempts, await self.decision(job, attempts))

    async def decision(self, job: Job, attempts: list[Attempt]) -> Decision:
        """Returns what is to be done with a job now; changes nothing."""
        follow(job)
        if not job.status.is_terminal:
            self._on_look((self._clock() - job.due_at) / 1000)
        seen = await self._observer.observe(job, attempts, self._drain.is_on)
        return decide(job, attempts, seen, self._clock(), self._rules)

    def crowd(self, open_jobs: int) -> None:
        """Says how many jobs are open: the more, the rarer each is looked at."""
        self._applier.open_jobs = open_jobs

    async def postpone(self, job_id: str) -> None:
        """Has an open job looked at again in a while, after a look that failed."""
        job = await run_in_threadpool(self._store.find, job_id)
        if job is not None and not job.status.is_terminal:
            await self._applier.look_again(job, POSTPONED_SECONDS)

    async def hint(self, job_id: str, token: str, provider_job_id: str | None) -> bool:
        """Takes the provider's call: has the job looked at now; what it says is otherwise not believed.

        Args:
            provider_job_id: the id that it gives; where the submit's end is unknown, it is what to ask for.

        Returns:
            False where there is no such attempt.
        """
        attempt = await run_in_threadpool(self._store.hint, job_id, token, self._clock())
        if attempt is None:
            return False
        in_doubt = attempt.state is AttemptState.SUBMITTING and attempt.provider_job_id is None
        if in_doubt and provider_job_id:
            await run_in_threadpool(
                self._store.note, attempt.evolve(provider_job_id=provider_job_id)
            )
        return True
