"""Orphans: attempts that the broker gave up and that may still run, and cost, at the provider."""

from collections.abc import Callable
from dataclasses import dataclass

import structlog
from starlette.concurrency import run_in_threadpool

from broker.engine.observe import Observer
from broker.jobs.decide import seconds_since
from broker.providers.registry import Providers
from broker.store.jobs import JobStore
from broker.trace import bind_job

log = structlog.get_logger(__name__)

ORPHAN_SECONDS = 30.0


@dataclass(frozen=True, eq=False)
class Orphans:
    """Cancels orphans until the provider has nothing left of them."""

    store: JobStore
    observer: Observer
    providers: Providers
    clock: Callable[[], int]

    async def release(self, token: str) -> None:
        """Cancels an orphan, and notes when it is gone.

        Raises:
            BrokerError: the bucket or the provider failed; the orphan is due again later.
        """
        job, attempt = await run_in_threadpool(self.store.orphan, token)
        bind_job(job)
        now = self.clock()
        attempt = attempt.evolve(orphan_due_at=now + int(ORPHAN_SECONDS * 1000))
        await run_in_threadpool(self.store.note, attempt)
        if attempt.provider_job_id is None and (
            started := await self.observer.started(job, attempt)
        ):
            attempt = attempt.evolve(provider_job_id=started.provider_job_id)
        if attempt.provider_job_id is not None:
            await self.providers.of(attempt).cancel(attempt.target, attempt.provider_job_id)
            remote = await self.observer.remote(attempt)
            if remote.state.is_over:
                attempt = attempt.evolve(orphan_due_at=None, gpu_seconds=remote.execution_seconds)
        elif seconds_since(attempt.submitted_at, now) > (attempt.ttl_seconds or 0):
            # The provider has deleted it by now, if it ever had it.
            attempt = attempt.evolve(orphan_due_at=None)
        if attempt.orphan_due_at is None:
            log.info("orphan_gone", provider_job_id=attempt.provider_job_id)
        await run_in_threadpool(self.store.note, attempt)
