"""The entry for Modal: the app that `modal deploy` deploys, and the function that Modal calls.

No other module of the worker imports Modal's client; `runner.py` does the job. The function is
synchronous around `asyncio.run`, for a measured reason: Modal's runtime reports an interrupted
asynchronous function as cancelled, so a preempted job would look as if its user had stopped it. A
synchronous one leaves no output, and Modal runs the call again.

| signal | sent for | here |
|---|---|---|
| SIGINT | preemption | asyncio cancels the work; KeyboardInterrupt ends the container |
| SIGUSR1 | a cancelled call | the work is cancelled; Modal records the call as terminated |

The machine that deploys has no torch, so this module's top imports none of the worker.
"""

import asyncio
import signal
from collections.abc import Awaitable
from functools import cache
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import modal
import modal.experimental
from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from schemas.jobs import ErrorCode
from schemas.worker import Failure, Progress

if TYPE_CHECKING:
    from gpu_worker.runner import Runner

T = TypeVar("T")


def _split(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), Field(min_length=1)]


class Deployment(BaseSettings):
    """The settings of the deployed function; the container gets the deployer's in its image.

    Modal compares the objects that the code declares in the container with those of the deploy, so
    both must read the same settings.
    """

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    app: str = Field("reelbroker", validation_alias="REELBROKER_MODAL_APP")
    function: str = Field("export", validation_alias="REELBROKER_MODAL_FUNCTION")
    #: The worker's image at a registry, the same as RunPod's.
    image: str = Field(validation_alias="REELBROKER_MODAL_IMAGE")
    #: Modal secrets, by name, with the R2_* settings and the worker's own.
    secrets: Names = Field(("reelbroker",), validation_alias="REELBROKER_MODAL_SECRETS")
    #: Modal takes the first one that is free. These have NVENC, unlike A100, H100 and B200.
    gpus: Names = Field(("L4", "A10", "L40S", "T4"), validation_alias="REELBROKER_MODAL_GPUS")
    max_containers: int = Field(10, validation_alias="REELBROKER_MODAL_MAX_CONTAINERS", ge=1)
    #: How long a container without a job stays, and costs.
    scaledown_window: int = Field(
        60, validation_alias="REELBROKER_MODAL_SCALEDOWN_WINDOW", ge=2, le=1200
    )
    #: The longest job; the broker's REELBROKER_EXECUTION_TIMEOUT_SECONDS must not be longer.
    timeout_seconds: int = Field(
        7200, validation_alias="REELBROKER_EXECUTION_TIMEOUT_SECONDS", ge=5, le=85_800
    )

    @property
    def environment(self) -> dict[str, str]:
        """These settings as environment variables."""
        values = self.model_dump(by_alias=True)
        return {
            str(Deployment.model_fields[name].validation_alias): (
                ",".join(value) if isinstance(value, tuple) else str(value)
            )
            for name, value in values.items()
        }


#: The worker ends a job at the job's own deadline. Modal's limit counts the worker's start too.
START_SECONDS = 600

deployment = Deployment()
image = (
    modal.Image.from_registry(deployment.image)
    .entrypoint([])
    # As in Dockerfile.gpu, where the code lies.
    .env({"PYTHONPATH": "/worker", **deployment.environment})
)
app = modal.App(
    deployment.app,
    image=image,
    include_source=False,
    secrets=[modal.Secret.from_name(name) for name in deployment.secrets],
)


@app.function(
    name=deployment.function,
    gpu=list(deployment.gpus),
    max_containers=deployment.max_containers,
    scaledown_window=deployment.scaledown_window,
    timeout=deployment.timeout_seconds + START_SECONDS,
)
def export(job: dict[str, Any]) -> dict[str, Any]:
    """Does a job: WorkerInput to Result, or to a Failure with `error`."""
    return asyncio.run(_cancellable(_export(job, modal.current_function_call_id() or "")))


async def _export(job: dict[str, Any], call_id: str) -> dict[str, Any]:
    try:
        # In a thread, so that a cancel waits for the end of the imports.
        runner = await asyncio.to_thread(_started)
    except SystemExit as error:
        # Another container may be fit. This one must not fail the jobs that follow.
        await modal.experimental.stop_fetching_inputs.aio()
        failure = Failure(error_code=ErrorCode.WORKER_LOST, retryable=True, detail=str(error.code))
        return {"error": "The GPU worker is not fit.", **failure.model_dump(mode="json")}
    from gpu_worker.runner import output_of

    return output_of(await runner.run(job, call_id, _nowhere))


async def _nowhere(progress: Progress) -> None:
    """Modal shows no progress; the runner writes progress.json."""


@cache
def _started() -> "Runner":
    """Returns the runner of this container, started at the first call."""
    from gpu_worker.host.logs import log_lines
    from gpu_worker.runner import start_runner
    from gpu_worker.settings import load_settings

    log_lines()
    return start_runner(load_settings())


async def _cancellable(work: Awaitable[T]) -> T:
    """Awaits the work; SIGUSR1 cancels it.

    Modal's own handler raises in whatever the main thread does at the moment, which may be a task
    that nobody awaits.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None  # noqa: S101

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(task.cancel)

    former = signal.signal(signal.SIGUSR1, on_signal)
    try:
        return await work
    finally:
        signal.signal(signal.SIGUSR1, former)
