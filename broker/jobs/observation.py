"""What can be seen of an attempt: documents in the bucket, which prove, and the provider's word, which is a hint."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from broker.jobs.model import Attempt
from schemas.worker import Result, Started

Model = TypeVar("Model", bound=BaseModel)


class RemoteState(StrEnum):
    """Where a job is, as the provider says: a hint, never proof."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    ABSENT = "absent"  #: the provider does not know the id (any more)

    @property
    def is_over(self) -> bool:
        """Whether nothing runs there any more; an absent job may never have been there."""
        return self not in (RemoteState.QUEUED, RemoteState.RUNNING)


@dataclass(frozen=True)
class RemoteJob:
    """One answer about one job; `output` is progress while it runs, and may be missing at any time."""

    state: RemoteState
    output: Any = None
    error: str | None = None
    execution_seconds: float | None = None


@dataclass(frozen=True)
class Health:
    """An endpoint's queue and workers; a worker that is up is idle or at work."""

    jobs_queued: int
    jobs_running: int
    workers_idle: int
    workers_running: int
    workers_ready: int = 0  #: idle or at work, where the provider counts them so
    workers_starting: int = 0
    workers_throttled: int = 0
    workers_unhealthy: int = 0

    @property
    def workers_up(self) -> int:
        return max(self.workers_ready, self.workers_idle + self.workers_running)


@dataclass(frozen=True)
class Committed:
    """A `result.json`, whose it is, and whether the output that it names is there, of the size that it names."""

    attempt: Attempt
    result: Result
    output_is_there: bool


@dataclass(frozen=True)
class Observation:
    """What was seen of a job's attempts at one moment. None: not there, or nothing that this state asks for."""

    draining: bool = False  #: an operator lets no job be sent
    committed: Committed | None = None
    started: Started | None = None
    remote: RemoteJob | None = None
    health: Health | None = None

    @property
    def is_done(self) -> bool:
        """Whether a result is committed and its output is there: the only proof of success."""
        return self.committed is not None and self.committed.output_is_there


def parsed(model: type[Model], output: Any) -> Model | None:
    """Reads a provider job's `output`; None where it makes no sense."""
    try:
        return model.model_validate(output)
    except ValidationError:
        return None
