"""The RunPod handler: validate, run, map errors. The only module of the worker that knows RunPod's words.

The handler is async and the work is in a thread, for two measured reasons: the SDK cannot cancel a synchronous
handler, and it loses the result of one that blocks its loop for longer than a connection is kept alive.
"""

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import FrameType
from typing import Any

import runpod
import structlog
import torch
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules import rp_fitness
from runpod.serverless.modules.rp_http import send_result
from runpod.serverless.modules.worker_state import JobsProgress
from structlog.contextvars import bound_contextvars

from gpu_worker.bucket import Bucket, open_bucket
from gpu_worker.errors import Cancelled, HandedBack, InvalidParams, WorkerError
from gpu_worker.fitness import check_fitness
from gpu_worker.host.guard import Guard
from gpu_worker.host.process import prepare_process
from gpu_worker.host.workspace import sweep_workspaces
from gpu_worker.pipeline import Execution
from gpu_worker.settings import Settings
from gpu_worker.upscale.models import Models
from schemas.jobs import ErrorCode
from schemas.worker import Failure, Progress, WorkerInput

log = structlog.get_logger(__name__)

FENCE_SECONDS = 5.0
PROGRESS_SECONDS = 1.0
#: How long a cancelled job's thread may take to end; its ffmpegs are killed at once.
STOP_SECONDS = 10.0
#: How many findings the answer to a wrong input lists.
MOST_FINDINGS = 10
#: The exit code of a worker whose GPU has failed it.
DEVICE_LOST = 70

#: What Pydantic calls a field, a word of a closed list and a choice of literals that the model lacks.
NEWER_WORDS = {"extra_forbidden", "enum", "literal_error"}

Send = Callable[[Progress], Awaitable[None]]
Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


def make_handler(
    settings: Settings,
    bucket: Bucket,
    models: Models | None = None,
    cold_start_seconds: float = 0.0,
) -> Handler:
    """Returns the function that the SDK calls with each job; models stay loaded between jobs."""
    models = models or models_of(settings)
    starts = [cold_start_seconds]  # told once, with the first job

    async def handler(job: dict[str, Any]) -> dict[str, Any]:
        with contextlib.ExitStack() as about:
            about.enter_context(bound_contextvars(runpod_job_id=job["id"]))
            try:
                asked = _validated(job["input"])
                about.enter_context(bound_contextvars(**_named(asked)))
                guard, progress = Guard(settings.max_cpu_seconds), _Latest()
                start = starts.pop() if starts else 0.0
                execution = Execution(
                    asked, job["id"], bucket, settings, models, progress.put, guard, start
                )
                async with _sender(settings, job) as send:
                    return await _run(execution, guard, progress, send, settings.drain_seconds)
            except WorkerError as error:
                log.warning("job_failed", code=error.code, error=str(error), detail=error.detail)
                return _failure(error.code, str(error), error.detail)
            except torch.AcceleratorError as error:
                # Nothing runs on a device after that: the job is the platform's to hand out again, and not to us.
                log.critical("device_lost", error=str(error))
                os._exit(DEVICE_LOST)
            except Exception as error:
                log.exception("job_crashed")
                return _failure(
                    ErrorCode.INTERNAL, "Something went wrong in the worker.", repr(error)
                )

    return handler


async def _run(
    execution: Execution, guard: Guard, progress: "_Latest", send: Send, drain_seconds: float
) -> dict[str, Any]:
    work = asyncio.create_task(asyncio.to_thread(execution.run))
    drain = _Drain(guard, drain_seconds)
    teller = asyncio.create_task(_tell(progress, send))
    fence = asyncio.create_task(_watch_fence(execution, guard))
    log.info("job_started")
    try:
        result = await asyncio.shield(work)
    except asyncio.CancelledError:
        guard.stop(Cancelled("The job was cancelled."))
        with contextlib.suppress(WorkerError, TimeoutError):
            await asyncio.wait_for(work, STOP_SECONDS)
        log.info("job_stopped")
        raise
    finally:
        drain.close()
        fence.cancel()
        # Awaited to its end, and not cut off, so that no progress can overtake the result.
        progress.close()
        await teller
    log.info("job_done", output_key=result.output_key)
    return result.model_dump(mode="json")


class _Drain:
    """On SIGTERM, gives the job in hand a limit: what is not done by then is handed back for another worker.

    The SDK takes no more jobs then, but would wait for this one as long as it takes, until it is killed. Its own handler
    is still called.
    """

    def __init__(self, guard: Guard, seconds: float) -> None:
        self._guard = guard
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._before = signal.getsignal(signal.SIGTERM)
        self._timer: asyncio.TimerHandle | None = None
        self._installed = (
            threading.current_thread() is threading.main_thread()
        )  # Python's rule for signals
        if self._installed:
            signal.signal(signal.SIGTERM, self._told)

    def close(self) -> None:
        """Puts the SDK's handler back."""
        if self._installed:
            signal.signal(signal.SIGTERM, self._before)
        if self._timer is not None:
            self._timer.cancel()

    def _told(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._begin)
        if callable(self._before):
            self._before(number, frame)

    def _begin(self) -> None:
        log.info("draining", seconds=self._seconds)
        reason = HandedBack("The GPU worker was shut down.")
        self._timer = self._loop.call_later(self._seconds, self._guard.stop, reason)


class _Latest:
    """The newest progress, handed from the working thread to the event loop; older news is dropped."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._closed = asyncio.Event()
        self._newest: Progress | None = None

    def put(self, progress: Progress) -> None:
        """Called from the working thread, once a frame."""
        if progress != self._newest:
            self._newest = progress
            self._loop.call_soon_threadsafe(self._changed.set)

    def close(self) -> None:
        self._closed.set()
        self._changed.set()

    async def next(self) -> Progress | None:
        """Returns news when there is some, or None once closed."""
        await self._changed.wait()
        self._changed.clear()
        return None if self._closed.is_set() else self._newest

    async def pause(self, seconds: float) -> None:
        """Waits, but not longer than until closed."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), seconds)


async def _tell(progress: _Latest, send: Send) -> None:
    """Sends progress in order, one at a time, about once a second."""
    while (newest := await progress.next()) is not None:
        await send(newest)
        await progress.pause(PROGRESS_SECONDS)


@contextlib.asynccontextmanager
async def _sender(settings: Settings, job: dict[str, Any]) -> AsyncIterator[Send]:
    """Yields what sends progress to RunPod; off the platform there is nobody to send it to."""
    if settings.result_url is None:

        async def only_log(progress: Progress) -> None:
            log.info("progress", phase=progress.phase, progress=progress.progress)

        yield only_log
        return

    async with AsyncClientSession() as session:

        async def send(progress: Progress) -> None:
            # The SDK's progress_update starts a thread and a connection a call, which the final result overtakes.
            body = {"status": "IN_PROGRESS", "output": progress.model_dump(mode="json")}
            await send_result(session, body, job)

        yield send


async def _watch_fence(execution: Execution, guard: Guard) -> None:
    """Stops the execution once its attempt is fenced: the platform's own stop signal may never arrive."""
    while not guard.stopped:
        await asyncio.sleep(FENCE_SECONDS)
        with contextlib.suppress(WorkerError):  # a bucket that is away for a moment fences nobody
            if await asyncio.to_thread(execution.is_fenced):
                guard.stop(
                    Cancelled("The job was cancelled, or another attempt has taken its place.")
                )


def _validated(raw: Any) -> WorkerInput:
    try:
        return WorkerInput.model_validate(raw)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        told = "; ".join(_sentence(one) for one in found[:MOST_FINDINGS])
        if len(found) > MOST_FINDINGS:
            told += f"; and {len(found) - MOST_FINDINGS} more"
        if _is_newer(raw, {one["type"] for one in found}):
            raise HandedBack(f"The GPU worker is older than the broker: {told}.") from error
        raise InvalidParams(f"The job's input is wrong: {told}.") from error


def _sentence(finding: ErrorDetails) -> str:
    """Says what is wrong where; a name may be as long as the input."""
    where = ".".join(map(str, finding["loc"])) or "input"
    return f"{where[:200]}: {finding['msg'][:200]}"


def _is_newer(raw: Any, wrong: set[str]) -> bool:
    """True where an input is wrong only in words that a later release may have added.

    A broker validates what it sends, so its words are right and the worker's are old. A value out of its range is no such
    word: no other worker would take it either. A job from the console has no attempt token; nobody would try that one again.
    """
    return isinstance(raw, dict) and raw.get("attempt_token") is not None and wrong <= NEWER_WORDS


def _named(asked: WorkerInput) -> dict[str, str]:
    """Returns what every line about a job says: its id, and that of the trace that it is a part of."""
    trace = {} if asked.traceparent is None else {"trace_id": asked.traceparent.split("-")[1]}
    return {"job_id": asked.job_id, **trace}


def _failure(code: ErrorCode, sentence: str, detail: str) -> dict[str, Any]:
    """The SDK makes FAILED of a dict with `error`, and keeps the rest as `output`."""
    failure = Failure(error_code=code, retryable=code.retryable, detail=detail[-2000:])
    return {"error": sentence, **failure.model_dump(mode="json")}


def models_of(settings: Settings) -> Models:
    """Returns the process's models; none is loaded yet."""
    return Models(settings.models_dir, settings.torch_device, settings.quality_model)


def _one_at_a_time() -> Callable[[int], int]:
    """Returns what the SDK asks before each call for a job: how many to have at once.

    It also sees to signals: the SDK's handlers, set by then, first sit out that call, of up to 90 s, and a job that it brings. So
    Ctrl-C ends a worker at once, and SIGTERM one that has no job: what came in before the container is killed would be lost with it.
    """
    before: list[Any] = []

    def told_to_end(number: int, frame: FrameType | None) -> None:
        if JobsProgress().get_job_count():
            before[0](number, frame)  # takes no more; `_Drain` sees to the one in hand
        else:
            sys.exit(0)

    def one(_: int) -> int:
        if not before:
            before.append(signal.signal(signal.SIGTERM, told_to_end))
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return 1

    return one


def choose_checks(skipped: set[str]) -> None:
    """Registers the SDK's own checks of the machine as it does itself, and then takes out those that are skipped.

    The SDK can switch all of them off, and no single one.
    """
    rp_fitness._ensure_gpu_check_registered()
    rp_fitness._ensure_system_checks_registered()
    named = {
        check.__name__.strip("_").removesuffix("_check"): check
        for check in rp_fitness._fitness_checks
    }
    kept = [name for name in named if name not in skipped]
    rp_fitness.clear_fitness_checks()
    for name in kept:
        rp_fitness.register_fitness_check(named[name])
    log.info(
        "machine_checks",
        run=",".join(kept),
        skipped=",".join(name for name in named if name in skipped),
    )


def main() -> None:
    """Runs the SDK's worker loop, or one job where it is given one (`--test_input`, `test_input.json`)."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("action"),
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "action"], drop_missing=True
            ),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        settings = Settings()
    except ValidationError as error:
        sys.exit("; ".join(f"{found['loc'][0]}: {found['msg']}" for found in error.errors()))
    began = time.monotonic()
    prepare_process()
    models = models_of(settings)
    check_fitness(settings, models)
    if swept := sweep_workspaces(settings.work_dir):
        log.info("workspaces_swept", count=swept)
    cold_start_seconds = round(time.monotonic() - began, 3)
    handler = make_handler(settings, open_bucket(settings), models, cold_start_seconds)
    choose_checks(set(settings.skipped_checks.split(",")))
    with contextlib.suppress(KeyboardInterrupt):
        runpod.serverless.start({"handler": handler, "concurrency_modifier": _one_at_a_time()})


if __name__ == "__main__":
    main()
