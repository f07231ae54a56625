"""From a stored job to one that the provider has: once, whatever happens in between.

An attempt is committed as "submitting" before the first byte leaves. What comes back decides: an id, nothing accepted, or
nobody knows. In the last case the job is never sent again blindly (jobs/decide.py).
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from broker.engine.sources import Sources
from broker.errors import ProviderError
from broker.jobs.decide import Decision, End, decide_sent
from broker.jobs.model import Attempt, AttemptState, Job
from broker.jobs.policy import Deadlines, deadlines
from broker.providers.registry import Providers
from broker.settings import Settings
from schemas.worker import WorkerInput

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Prepared:
    """An attempt as it is committed before it is sent, and what is sent."""

    attempt: Attempt
    asked: WorkerInput
    deadlines: Deadlines


class Dispatch:
    """Makes attempts and sends them; it stores nothing."""

    def __init__(
        self, settings: Settings, sources: Sources, providers: Providers, clock: Callable[[], int]
    ) -> None:
        self._settings = settings
        self._sources = sources
        self._providers = providers
        self._clock = clock

    def attempt(self, job: Job) -> Attempt:
        """Returns the job's next attempt; nobody can guess its token."""
        place = self._providers.places[0]
        return Attempt(
            token=secrets.token_hex(16),
            job_id=job.id,
            number=job.attempt + 1,
            state=AttemptState.READY,
            provider=place.provider,
            target=place.target,
            created_at=self._clock(),
        )

    async def prepare(self, job: Job, attempt: Attempt) -> Prepared | End:
        """Returns what is to be committed and sent, or the job's end where a source will not do."""
        asked = _worker_input(job, attempt)
        size = await self._sources.bytes(job, attempt, asked.video_keys)
        if isinstance(size, End):
            return size
        settings = self._settings
        limits = deadlines(
            asked.params, size, settings.execution_timeout_seconds, settings.queue_timeout_seconds
        )
        sending = attempt.evolve(
            state=AttemptState.SUBMITTING,
            submitted_at=self._clock(),
            timeout_seconds=limits.execution,
            ttl_seconds=limits.ttl,
        )
        return Prepared(sending, asked, limits)

    async def send(self, job: Job, ready: Attempt, prepared: Prepared) -> Decision:
        """Sends what is committed, and returns what follows from the provider's answer."""
        outcome: str | ProviderError
        try:
            provider = self._providers.of(ready)
            hook_url = self._hook_url(job, ready) if provider.calls_back else None
            outcome = await provider.submit(
                ready.target, prepared.asked, prepared.deadlines, hook_url
            )
        except ProviderError as error:
            log.warning("submit_failed", outcome=type(error).__name__, error=str(error))
            outcome = error
        return decide_sent(job, ready, prepared.attempt, outcome, self._clock())

    def _hook_url(self, job: Job, attempt: Attempt) -> str | None:
        """Returns where the provider may call when it is done."""
        base = self._settings.public_url
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
    )
