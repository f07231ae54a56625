"""The seam between the engine and the providers of GPUs.

A provider's words stay in the module of its name. Every method raises one of a provider's errors
(errors.py): nothing was accepted (unreachable, held or paced), the outcome is unknown (uncertain),
or the provider will never accept this request (refused).
"""

from typing import Annotated, ClassVar, Protocol

from pydantic import StringConstraints

from broker.jobs.observation import Health, RemoteJob
from broker.jobs.policy import Deadlines
from schemas.worker import WorkerInput

#: A provider's id of a job; it is used in paths.
ProviderJobId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,128}$")]


class Provider(Protocol):
    """Runs jobs on GPUs. An attempt is polled at the target that it was submitted to."""

    #: In attempts, metrics and settings.
    name: ClassVar[str]
    #: How long after a job's end the provider returns its output and execution time.
    keeps_results_seconds: ClassVar[float]
    #: What an operator checks where the endpoint cannot be reached.
    remedy: ClassVar[str]
    #: Whether the provider calls a URL when a job is over.
    calls_back: ClassVar[bool]
    #: Whether a status reports the seconds that the provider bills.
    bills_seconds: ClassVar[bool]

    @property
    def breaker_open(self) -> bool:
        """Whether calls are held back, because the last ones failed."""

    def holds(self, target: str) -> bool:
        """Whether a call to the target would be held back now."""

    async def submit(
        self, target: str, job: WorkerInput, deadlines: Deadlines, hook_url: str | None = None
    ) -> str:
        """Queues a job; returns the provider's id. The provider calls `hook_url` at its end."""

    async def status(self, target: str, provider_job_id: str) -> RemoteJob:
        """Returns the provider's report about a job; an unknown job is ABSENT."""

    async def cancel(self, target: str, provider_job_id: str) -> None:
        """Asks the provider to stop a job; an unknown job counts as stopped."""

    async def health(self, target: str) -> Health:
        """Returns the target's queue and workers."""

    async def close(self) -> None:
        """Closes what the provider opened."""
