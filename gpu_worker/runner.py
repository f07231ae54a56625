"""One execution under a fence, for any provider: validate, run in a thread, report, stop, fail.

A provider's entry gives the runner what the provider delivered: the job's input, the provider's id
of the job, and a function that sends progress. The runner returns a `Result` or a `Failed`. While
the work runs in a thread, the runner reads `stop.json` every few seconds, sends the newest progress
and writes it to `progress.json`, and, after a SIGTERM, hands the job back when the drain time is
over. A cancelled task stops the work before it ends.
"""

import asyncio
import contextlib
import contextvars
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, TypeVar

import structlog
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from structlog.contextvars import bound_contextvars

from gpu_worker.bucket import Bucket, open_bucket
from gpu_worker.control import ControlDocuments
from gpu_worker.errors import Cancelled, HandedBack, InvalidParams, WorkerError
from gpu_worker.fitness import check_fitness
from gpu_worker.host.accelerator import accelerator
from gpu_worker.host.guard import Guard
from gpu_worker.host.process import prepare_process
from gpu_worker.host.workspace import sweep_workspaces
from gpu_worker.pipeline import Execution, models_of
from gpu_worker.settings import Settings
from gpu_worker.upscale.models import Models
from schemas.jobs import ErrorCode
from schemas.worker import Failure, Progress, Result, WorkerInput

log = structlog.get_logger(__name__)

FENCE_SECONDS = 5.0
PROGRESS_SECONDS = 1.0
#: The least time between two writes of `progress.json`: each one is paid for.
DOCUMENT_SECONDS = 2.0
#: How long a cancelled job's thread may take to end; the guard kills its child processes at once.
STOP_SECONDS = 10.0
#: How many findings the answer to a wrong input lists.
MOST_FINDINGS = 10
#: The exit code of a worker whose GPU has failed it.
DEVICE_LOST = 70

#: Pydantic's types of error for a field, an enum member and a literal that the model lacks.
NEWER_ERROR_TYPES = {"extra_forbidden", "enum", "literal_error"}

T = TypeVar("T")
Send = Callable[[Progress], Awaitable[None]]


@dataclass(frozen=True)
class Failed:
    """An execution that published nothing.

    Attributes:
        sentence: the error as a user reads it.
        failure: its code and details, as the broker reads them.
    """

    sentence: str
    failure: Failure


class Runner:
    """Runs executions on models that stay loaded between jobs.

    Args:
        thread: of all jobs, one after the other; the models were warmed in it.
        cold_start_seconds: what the worker's start took; the first job's timings include it.
    """

    def __init__(
        self,
        settings: Settings,
        bucket: Bucket,
        models: Models | None = None,
        thread: ThreadPoolExecutor | None = None,
        cold_start_seconds: float = 0.0,
    ) -> None:
        self.settings = settings
        self._bucket = bucket
        self._models = models or models_of(settings)
        self._thread = thread or one_thread()
        self._cold_start_seconds = cold_start_seconds

    async def run(self, raw_input: Any, provider_job_id: str, send: Send) -> Result | Failed:
        """Validates the input of a job and does the job.

        Args:
            raw_input: the job's input as the provider delivered it, not yet validated.
            provider_job_id: the provider's id of the job.
            send: sends progress to the provider; the runner awaits one call at a time, and the
                last one before it returns.
        """
        with contextlib.ExitStack() as context:
            try:
                job = parse_input(raw_input)
                context.enter_context(bound_contextvars(**_log_fields(job)))
                return await self._run(job, provider_job_id, send)
            except WorkerError as error:
                log.warning("job_failed", code=error.code, error=str(error), detail=error.detail)
                failed = _failed(error.code, str(error), error.detail)
            except Exception as error:
                log.exception("job_crashed")
                failed = _failed(
                    ErrorCode.INTERNAL, "Something went wrong in the worker.", repr(error)
                )
            await self._end_if_device_is_lost()
            return failed

    async def _run(self, job: WorkerInput, provider_job_id: str, send: Send) -> Result:
        guard = Guard(self.settings.max_cpu_seconds)
        control = ControlDocuments(self._bucket, job)
        reporters = (
            _Reporter(send, PROGRESS_SECONDS),
            _Reporter(partial(_write_progress, control), DOCUMENT_SECONDS),
        )

        def report(progress: Progress) -> None:
            for reporter in reporters:
                reporter.put(progress)

        cold_start_seconds, self._cold_start_seconds = self._cold_start_seconds, 0.0
        execution = Execution(
            job,
            provider_job_id,
            self._bucket,
            control,
            self.settings,
            self._models,
            report,
            guard,
            cold_start_seconds,
        )
        work = self._in_thread(execution.run)
        drain = _Drain(guard, self.settings.drain_seconds)
        fence = asyncio.create_task(_watch_fence(control, guard))
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
            # Awaited to its end, so that no progress can overtake the result.
            for reporter in reporters:
                await reporter.close()
        log.info("job_done", output_key=result.output_key)
        return result

    def _in_thread(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        """Runs work in the thread of the jobs, with the log's fields."""
        context = contextvars.copy_context()
        return asyncio.get_running_loop().run_in_executor(self._thread, context.run, work)

    async def _end_if_device_is_lost(self) -> None:
        """Ends the process where nothing runs on the device any more: the platform must start
        another worker.
        """
        device = self.settings.torch_device
        if device.type != "cpu" and not await self._in_thread(accelerator(device).is_alive):
            log.critical("device_lost")
            os._exit(DEVICE_LOST)


def output_of(outcome: Result | Failed) -> dict[str, Any]:
    """Returns the output of a provider's job; a failed one has `error`, which RunPod reads too."""
    if isinstance(outcome, Failed):
        return {"error": outcome.sentence, **outcome.failure.model_dump(mode="json")}
    return outcome.model_dump(mode="json")


def one_thread() -> ThreadPoolExecutor:
    """Returns what runs all work on the device in one thread: its libraries keep handles and
    workspaces for each thread that uses them.
    """
    return ThreadPoolExecutor(1, "job")


def start_runner(settings: Settings) -> Runner:
    """Prepares this process, checks the machine and warms the models; exits where one fails."""
    began = time.monotonic()
    prepare_process()
    models, thread = models_of(settings), one_thread()
    thread.submit(check_fitness, settings, models).result()
    if swept := sweep_workspaces(settings.work_dir):
        log.info("workspaces_swept", count=swept)
    cold_start_seconds = round(time.monotonic() - began, 3)
    return Runner(settings, open_bucket(settings), models, thread, cold_start_seconds)


def parse_input(raw_input: Any) -> WorkerInput:
    """Validates a job's input.

    Raises:
        HandedBack: the input has words that only a newer worker can have.
        InvalidParams: the input is wrong; the sentence lists where.
    """
    try:
        return WorkerInput.model_validate(raw_input)
    except ValidationError as error:
        findings = error.errors(include_url=False, include_input=False)
        listed = "; ".join(_sentence(finding) for finding in findings[:MOST_FINDINGS])
        if len(findings) > MOST_FINDINGS:
            listed += f"; and {len(findings) - MOST_FINDINGS} more"
        if _is_newer(raw_input, {finding["type"] for finding in findings}):
            raise HandedBack(f"The GPU worker is older than the broker: {listed}.") from error
        raise InvalidParams(f"The job's input is wrong: {listed}.") from error


def _sentence(finding: ErrorDetails) -> str:
    """Returns what is wrong and where; cuts names, which may be as long as the input."""
    where = ".".join(map(str, finding["loc"])) or "input"
    return f"{where[:200]}: {finding['msg'][:200]}"


def _is_newer(raw_input: Any, error_types: set[str]) -> bool:
    """True where the input is wrong only in words that a later release may have added.

    A broker validates what it sends, so its words are right and the worker is old. A value out of
    its range is no such word: every worker would refuse it. A job from a console has no attempt
    token: nobody would send that job to another worker.
    """
    return (
        isinstance(raw_input, dict)
        and raw_input.get("attempt_token") is not None
        and error_types <= NEWER_ERROR_TYPES
    )


def _log_fields(job: WorkerInput) -> dict[str, str]:
    """Returns the job's id and the id of its trace, which every log line of the job carries."""
    trace = {} if job.traceparent is None else {"trace_id": job.traceparent.split("-")[1]}
    return {"job_id": job.job_id, **trace}


def _failed(code: ErrorCode, sentence: str, detail: str) -> Failed:
    return Failed(
        sentence, Failure(error_code=code, retryable=code.retryable, detail=detail[-2000:])
    )


class _Drain:
    """On SIGTERM, gives the running job a time limit, and then hands it back for another worker.

    A platform kills the worker some seconds after the SIGTERM, however far the job is. The signal's
    earlier handler, which an SDK may have set, is still called.
    """

    def __init__(self, guard: Guard, seconds: float) -> None:
        self._guard = guard
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._earlier_handler = signal.getsignal(signal.SIGTERM)
        self._timer: asyncio.TimerHandle | None = None
        # Python lets only the main thread set a signal handler.
        self._installed = threading.current_thread() is threading.main_thread()
        if self._installed:
            signal.signal(signal.SIGTERM, self._on_signal)

    def close(self) -> None:
        """Restores the earlier handler."""
        if self._installed:
            signal.signal(signal.SIGTERM, self._earlier_handler)
        if self._timer is not None:
            self._timer.cancel()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._begin)
        if callable(self._earlier_handler):
            self._earlier_handler(number, frame)

    def _begin(self) -> None:
        log.info("draining", seconds=self._seconds)
        reason = HandedBack("The GPU worker was shut down.")
        self._timer = self._loop.call_later(self._seconds, self._guard.stop, reason)


class _Reporter:
    """Carries progress from the working thread to one receiver: in order, one at a time, the newest
    alone.

    Args:
        seconds: the least time between two reports.
    """

    def __init__(self, send: Send, seconds: float) -> None:
        self._send = send
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._closed = asyncio.Event()
        self._newest: Progress | None = None
        self._task = asyncio.create_task(self._run())

    def put(self, progress: Progress) -> None:
        """Takes progress; the working thread calls it once a frame."""
        if progress != self._newest:
            self._newest = progress
            self._loop.call_soon_threadsafe(self._changed.set)

    async def close(self) -> None:
        """Drops what has not been sent; returns once nothing is being sent any more."""
        self._closed.set()
        self._changed.set()
        await self._task

    async def _run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._closed.is_set() or self._newest is None:
                return
            await self._send(self._newest)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), self._seconds)


async def _write_progress(control: ControlDocuments, progress: Progress) -> None:
    """Writes progress.json. A bucket that is away for a moment fails no job."""
    with contextlib.suppress(WorkerError):
        await asyncio.to_thread(control.report, progress)


async def _watch_fence(control: ControlDocuments, guard: Guard) -> None:
    """Stops the execution once its attempt is fenced: the platform's stop signal may be lost."""
    while not guard.stopped:
        await asyncio.sleep(FENCE_SECONDS)
        # A bucket that is away for a moment fences nobody.
        with contextlib.suppress(WorkerError):
            if await asyncio.to_thread(control.is_fenced):
                guard.stop(
                    Cancelled("The job was cancelled, or another attempt has taken its place.")
                )
