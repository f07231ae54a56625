"""Makes attempts and submits them to their provider.

The engine commits an attempt as "submitting" before the first byte leaves. The outcome is an id,
nothing accepted, or unknown; jobs/decide.py decides what follows.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import structlog

from broker.engine.sources import Sources
from broker.errors import ProviderError
from broker.jobs.decide import Decision, End, decide_sent
from broker.jobs.model import Attempt, AttemptState, Job
from broker.jobs.place import Place, choose_place
from broker.jobs.policy import MOST_DELIVERIES, Deadlines, deadlines
from broker.providers.registry import Providers
from broker.settings import Settings
from schemas.worker import WorkerInput

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Prepared:
    """An attempt as it is committed before it is sent, and what is sent."""

    attempt: Attempt
    input: WorkerInput
    deadlines: Deadlines


@dataclass(frozen=True, eq=False)
class Dispatch:
    """Makes attempts and submits them; stores nothing."""

    settings: Settings
    sources: Sources
    providers: Providers
    clock: Callable[[], int]

    def attempt(self, job: Job, earlier: Sequence[Attempt]) -> Attempt:
        """Returns the job's next attempt, with a token that cannot be guessed."""
        return Attempt(
            token=secrets.token_hex(16),
            job_id=job.id,
            number=job.attempt + 1,
            state=AttemptState.READY,
            created_at=self.clock(),
            **asdict(self._place(earlier)),
        )

    def placed(self, ready: Attempt, earlier: Sequence[Attempt]) -> Attempt:
        """Returns an attempt that no provider has, for the place that is best by now."""
        return ready.evolve(**asdict(self._place(earlier)))

    def _place(self, earlier: Sequence[Attempt]) -> Place:
        failed = earlier[-1] if earlier else None
        return choose_place(self.providers.places, failed, self.providers.holds)

    async def prepare(self, job: Job, attempt: Attempt) -> Prepared | End:
        """Returns what to commit and submit, or the job's end where a source cannot be used."""
        worker_input = _worker_input(job, attempt)
        size = await self.sources.bytes(job, attempt, worker_input.video_keys)
        if isinstance(size, End):
            return size
        longest, queue = (
            self.settings.execution_timeout_seconds,
            self.settings.queue_timeout_seconds,
        )
        limits = deadlines(worker_input.params, size, longest, queue)
        sending = attempt.evolve(
            state=AttemptState.SUBMITTING,
            submitted_at=self.clock(),
            timeout_seconds=limits.execution,
            ttl_seconds=limits.ttl,
        )
        limited = worker_input.model_copy(update={"timeout_seconds": limits.execution})
        return Prepared(sending, limited, limits)

    async def send(self, job: Job, ready: Attempt, prepared: Prepared) -> Decision:
        """Submits a committed attempt; returns what follows from the provider's answer."""
        outcome: str | ProviderError
        try:
            provider = self.providers.of(ready)
            hook_url = self._hook_url(job, ready) if provider.calls_back else None
            outcome = await provider.submit(
                ready.target, prepared.input, prepared.deadlines, hook_url
            )
        except ProviderError as error:
            log.warning("submit_failed", outcome=type(error).__name__, error=str(error))
            outcome = error
        return decide_sent(job, ready, prepared.attempt, outcome, self.clock())

    def _hook_url(self, job: Job, attempt: Attempt) -> str | None:
        """Returns the URL for the provider's webhook."""
        base = self.settings.public_url
        return None if base is None else f"{base}/hooks/{attempt.provider}/{job.id}/{attempt.token}"


def _worker_input(job: Job, attempt: Attempt) -> WorkerInput:
    return WorkerInput(
        job_id=job.id,
        user_id=job.user_id,
        type=job.type,
        input_key=job.input_key,
        params=job.edit,
        attempt_token=attempt.token,
        traceparent=job.traceparent,
        max_deliveries=MOST_DELIVERIES,
    )
