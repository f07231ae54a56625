"""What the broker can observe of an attempt: documents in the bucket, and the provider's status.

Documents are proof. The provider's status is a hint.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from broker.jobs.model import Attempt
from schemas.worker import Result, Started

Model = TypeVar("Model", bound=BaseModel)


class RemoteState(StrEnum):
    """The state of a job, as the provider reports it."""

    QUEUED = "queued"
    RUNNING = "running"
    OPEN = "open"  #: queued or running; the observer resolves which, by `started.json`
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    ABSENT = "absent"  #: the provider has no job of this id, or none any more

    @property
    def is_over(self) -> bool:
        """Whether nothing runs there any more; an absent job may never have run."""
        return self not in (RemoteState.QUEUED, RemoteState.RUNNING, RemoteState.OPEN)


@dataclass(frozen=True)
class RemoteJob:
    """A provider's report about one job; `output` is progress while the job runs."""

    state: RemoteState
    output: Any = None
    error: str | None = None
    execution_seconds: float | None = None


@dataclass(frozen=True)
class Health:
    """An endpoint's queue and workers; a worker that is up is idle or running.

    None: the provider does not report workers in that state.
    """

    jobs_queued: int
    jobs_running: int
    workers_idle: int
    workers_running: int
    workers_ready: int = 0  #: idle or running, where the provider counts them together
    workers_starting: int | None = None
    workers_throttled: int | None = None
    workers_unhealthy: int | None = None

    @property
    def workers_up(self) -> int:
        return max(self.workers_ready, self.workers_idle + self.workers_running)


@dataclass(frozen=True)
class Committed:
    """An attempt's `result.json`."""

    attempt: Attempt
    result: Result
    output_is_there: bool  #: the named output exists, with the named size


@dataclass(frozen=True)
class Observation:
    """A job's attempts at one moment. None: absent, or not needed in the job's state."""

    draining: bool = False  #: an operator lets the broker submit no job
    committed: Committed | None = None
    started: Started | None = None
    remote: RemoteJob | None = None
    health: Health | None = None
    #: The attempt's provider does not answer, and another place would take the job.
    out_of_reach: bool = False

    @property
    def is_done(self) -> bool:
        """Whether a result is committed and its output exists: the only proof of success."""
        return self.committed is not None and self.committed.output_is_there


def parsed(model: type[Model], output: Any) -> Model | None:
    """Parses a provider job's `output`; None where it does not fit the model."""
    try:
        return model.model_validate(output)
    except ValidationError:
        return None
