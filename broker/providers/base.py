"""The seam between the engine and whoever runs GPUs. Each provider's words stay in the module of its name.

Every method raises one of the four errors of a provider (errors.py): nothing was accepted (unreachable, held or paced),
nobody knows (uncertain), or this request will never be accepted (refused).
"""

from typing import Annotated, ClassVar, Protocol

from pydantic import StringConstraints

from broker.jobs.observation import Health, RemoteJob
from broker.jobs.policy import Deadlines
from schemas.worker import WorkerInput

#: A provider's id of a job; it becomes a part of paths.
ProviderJobId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,128}$")]


class Provider(Protocol):
    """Runs jobs on GPUs. A target says where an attempt goes; it is asked for where it was sent."""

    #: As attempts, metrics and settings have it.
    name: ClassVar[str]
    #: For so long after a job's end the provider says how long it ran, and what it returned.
    keeps_results_seconds: ClassVar[float]
    #: Whether the provider calls a URL when a job is over.
    calls_back: ClassVar[bool]

    @property
    def breaker_open(self) -> bool:
        """Whether calls are held back, since the last ones have failed."""

    async def submit(
        self, target: str, job: WorkerInput, deadlines: Deadlines, hook_url: str | None = None
    ) -> str:
        """Queues a job and returns the provider's id for it; `hook_url` is called when the job is over."""

    async def status(self, target: str, provider_job_id: str) -> RemoteJob:
        """Returns what the provider says of a job now; an unknown job is ABSENT."""

    async def cancel(self, target: str, provider_job_id: str) -> None:
        """Asks the provider to stop a job; one that it does not know is as good as stopped."""

    async def health(self, target: str) -> Health:
        """Returns the target's queue and workers."""
