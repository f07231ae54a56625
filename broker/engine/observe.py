"""Observes a job's attempts and changes nothing: the bucket first, then the provider."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import structlog
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from broker.bucket import Bucket
from broker.engine.listing import Listings
from broker.errors import ProviderError, ProviderPaced
from broker.jobs.decide import PATIENCE_SECONDS, Rules, seconds_since
from broker.jobs.model import Attempt, AttemptState, Job
from broker.jobs.observation import Committed, Health, Observation, RemoteJob, RemoteState, parsed
from broker.jobs.place import Place
from broker.providers.registry import Providers
from schemas.keys import object_key
from schemas.worker import Failure, Progress, Result, Started, attempt_folder

log = structlog.get_logger(__name__)
Model = TypeVar("Model", bound=BaseModel)

#: How old a report about an endpoint's queue and workers may be.
HEALTH_SECONDS = 10.0


class Observer:
    """Makes the requests that the state of a job calls for, and no more.

    Raises:
        StorageError, ProviderError: from every method, where the bucket or the provider fails.
    """

    def __init__(
        self,
        bucket: Bucket,
        listings: Listings,
        providers: Providers,
        rules: Rules,
        clock: Callable[[], int],
    ) -> None:
        self._bucket = bucket
        self._listings = listings
        self._providers = providers
        self._rules = rules
        self._clock = clock
        self._health: dict[tuple[str, str], tuple[int, Health]] = {}

    async def observe(
        self, job: Job, attempts: Sequence[Attempt], draining: bool = False
    ) -> Observation:
        """Returns what `decide` needs for a job in its state."""
        newest = attempts[-1] if attempts else None
        if newest is None or newest.state is AttemptState.READY or job.status.is_terminal:
            return Observation(draining)
        if newest.state is AttemptState.SUPERSEDED:
            # A worker may have committed in the moment in which its attempt was given up.
            return Observation(draining, await self._first_done(job, attempts))
        # A listing may be seconds old: once the run is over, the bucket is asked all the same.
        listed = not self._listings.lacks(job.user_id, document_key(newest, "result.json"))
        committed = await self.committed(job, newest) if listed else None
        if committed is not None or job.cancel_requested_at is not None:
            return Observation(draining, committed)
        if newest.state is AttemptState.SUBMITTING:
            return await self._signs(job, newest)
        return await self._run(job, newest)

    async def committed(self, job: Job, attempt: Attempt) -> Committed | None:
        """Returns the attempt's result, and whether the output that it names exists."""
        result = await self._document(job, attempt, "result.json", Result)
        if result is None:
            return None
        size = self._listings.size(job.user_id, result.output_key)
        if size is None:
            key = object_key(job.user_id, result.output_key)
            size = await run_in_threadpool(self._bucket.size, key)
        if size != result.facts.bytes:
            log.error("result_without_output", output_key=result.output_key)
        return Committed(attempt, result, size == result.facts.bytes)

    async def started(self, job: Job, attempt: Attempt) -> Started | None:
        """Returns the document that a worker writes when it takes the attempt."""
        return await self._document(job, attempt, "started.json", Started)

    async def remote(self, attempt: Attempt) -> RemoteJob:
        """Returns the provider's report about the attempt."""
        if attempt.provider_job_id is None:
            return RemoteJob(RemoteState.ABSENT)
        return await self._providers.of(attempt).status(attempt.target, attempt.provider_job_id)

    async def _first_done(self, job: Job, attempts: Sequence[Attempt]) -> Committed | None:
        for attempt in attempts:
            committed = await self.committed(job, attempt)
            if committed is not None and committed.output_is_there:
                return committed
        return None

    async def _signs(self, job: Job, attempt: Attempt) -> Observation:
        """Searches for a run that a submit with an unknown outcome may have started."""
        started = await self.started(job, attempt)
        if started is not None:
            return Observation(started=started)
        if attempt.provider_job_id is not None:
            return Observation(remote=await self.remote(attempt))
        if self._age(attempt) > self._rules.submit_grace:
            return Observation()
        return Observation(health=await self._endpoint(attempt, since=attempt.submitted_at or 0))

    async def _run(self, job: Job, attempt: Attempt) -> Observation:
        """Observes a run that the provider has, or had."""
        try:
            remote, started = await self.remote(attempt), None
        except ProviderError as error:
            if isinstance(error, ProviderPaced) or not self._others_take(attempt):
                raise
            log.warning("provider_out_of_reach", error=str(error))
            return Observation(started=await self.started(job, attempt), out_of_reach=True)
        if remote.state is RemoteState.OPEN:
            remote, started = await self._resolved(job, attempt, remote)
        if not remote.state.is_over:
            is_late = self._age(attempt) > PATIENCE_SECONDS
            is_stuck = remote.state is RemoteState.QUEUED and is_late
            health = await self._endpoint(attempt) if is_stuck else None
            return Observation(remote=remote, started=started, health=health)
        # A first "no such job" decides nothing yet.
        is_lasting = remote.state is RemoteState.ABSENT and attempt.absent_since is not None
        if attempt.started_at is None and (is_lasting or remote.state is RemoteState.TIMED_OUT):
            started = await self.started(job, attempt)
        if remote.state is RemoteState.FAILED:
            failure = parsed(Failure, remote.output)
            log.info("run_failed", error=remote.error, detail=failure and failure.detail)
        # The worker commits before it returns, so its result is in the bucket by now.
        committed = await self.committed(job, attempt)
        return Observation(committed=committed, remote=remote, started=started)

    async def _resolved(
        self, job: Job, attempt: Attempt, remote: RemoteJob
    ) -> tuple[RemoteJob, Started | None]:
        """Resolves OPEN by the worker's documents: started is running, with its newest progress."""
        started = None
        if attempt.started_at is None:
            started = await self.started(job, attempt)
            if started is None:
                return replace(remote, state=RemoteState.QUEUED), None
        progress = await self._document(job, attempt, "progress.json", Progress)
        output = None if progress is None else progress.model_dump()
        return replace(remote, state=RemoteState.RUNNING, output=output), started

    def _others_take(self, attempt: Attempt) -> bool:
        """Whether a place other than the attempt's would take a job now."""
        own = Place(attempt.provider, attempt.target)
        places = self._providers.places
        return any(place != own and not self._providers.holds(place) for place in places)

    def _age(self, attempt: Attempt) -> float:
        return seconds_since(attempt.submitted_at, self._clock())

    async def _endpoint(self, attempt: Attempt, since: int = 0) -> Health:
        """Returns the health of an attempt's target, a few seconds old, but not before `since`."""
        now = self._clock()
        place = (attempt.provider, attempt.target)
        at, known = self._health.get(place, (0, None))
        if known is None or at < since or now - at > HEALTH_SECONDS * 1000:
            known = await self._providers.of(attempt).health(attempt.target)
            self._health[place] = (now, known)
        return known

    async def _document(
        self, job: Job, attempt: Attempt, name: str, model: type[Model]
    ) -> Model | None:
        key = object_key(job.user_id, document_key(attempt, name))
        body = await run_in_threadpool(self._bucket.read, key)
        if body is None:
            return None
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            # A worker of another release wrote the document. It does not count; the log has it.
            log.error("document_unreadable", error=str(error))
            return None


def document_key(attempt: Attempt, name: str) -> str:
    """Returns the key of one of an attempt's documents, relative to the user's folder."""
    return f"{attempt_folder(attempt.job_id, attempt.token)}/{name}"
