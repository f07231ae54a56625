"""What can be seen of an attempt: its documents in the bucket, which prove, and the provider's word, which is a hint."""

from collections.abc import Callable
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from broker.bucket import Bucket
from broker.providers.runpod import Health, RemoteJob, RemoteState, RunPodClient
from broker.store.tables import Attempt, Job
from schemas.keys import object_key
from schemas.worker import Result, Started, attempt_folder

log = structlog.get_logger(__name__)
Model = TypeVar("Model", bound=BaseModel)

#: How old an answer about an endpoint's queue and workers may be.
HEALTH_SECONDS = 10.0


class Evidence:
    """Reads, and changes nothing.

    Raises:
        StorageError, ProviderError: from every method, where the bucket or the provider cannot be asked.
    """

    def __init__(self, bucket: Bucket, runpod: RunPodClient, clock: Callable[[], int]) -> None:
        self._bucket = bucket
        self._runpod = runpod
        self._clock = clock
        self._health: dict[str, tuple[int, Health]] = {}

    async def started(self, job: Job, attempt: Attempt) -> Started | None:
        """Returns the worker's word that it has taken up the attempt."""
        return await self._document(job, attempt, "started.json", Started)

    async def result(self, job: Job, attempt: Attempt) -> tuple[Result, bool] | None:
        """Returns what the worker has committed, and whether the output is there, of the size that it names."""
        result = await self._document(job, attempt, "result.json", Result)
        if result is None:
            return None
        size = await self.size(job, result.output_key)
        return result, size == result.facts.bytes

    async def size(self, job: Job, key: str) -> int | None:
        """Returns the size of one of the user's objects, or None where it is not there."""
        return await run_in_threadpool(self._bucket.size, object_key(job.user_id, key))

    async def remote(self, attempt: Attempt) -> RemoteJob:
        """Returns what the provider says of the attempt."""
        if attempt.runpod_job_id is None:
            return RemoteJob(RemoteState.ABSENT)
        return await self._runpod.status(attempt.endpoint_url, attempt.runpod_job_id)

    async def health(self, endpoint_url: str, since: int = 0) -> Health:
        """Returns an endpoint's queue and workers, as they were a few seconds ago, and not before `since`."""
        now = self._clock()
        at, known = self._health.get(endpoint_url, (0, None))
        if known is None or at < since or now - at > HEALTH_SECONDS * 1000:
            known = await self._runpod.health(endpoint_url)
            self._health[endpoint_url] = (now, known)
        return known

    async def _document(self, job: Job, attempt: Attempt, name: str, model: type[Model]) -> Model | None:
        body = await run_in_threadpool(self._bucket.read, document_key(job, attempt, name))
        if body is None:
            return None
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            # Written by a worker that speaks another protocol: as good as not there, but somebody must know.
            log.error("document_unreadable", error=str(error))
            return None


def document_key(job: Job, attempt: Attempt, name: str) -> str:
    """Returns the object key of one of an attempt's documents."""
    return object_key(job.user_id, f"{attempt_folder(job.id, attempt.token)}/{name}")


def started_at(attempt: Attempt, started: Started, now: int) -> int:
    """Returns when a worker took the attempt, by the worker's clock; within what ours allows."""
    return min(max(started.at_ms, attempt.submitted_at or 0), now)


def parsed(model: type[Model], output: Any) -> Model | None:
    """Reads a provider job's `output`; None where it makes no sense."""
    try:
        return model.model_validate(output)
    except ValidationError:
        return None
