"""The entry for RunPod: the SDK's job, progress, reply, signals and machine checks.

No other module of the worker imports the SDK; `runner.py` does the job. The handler is async and
the work is in a thread, for two measured reasons: the SDK cannot cancel a synchronous handler, and
it loses the result of one that blocks its loop for longer than a connection is kept alive.
"""

import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from types import FrameType
from typing import Any

import runpod
import structlog
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules import rp_fitness
from runpod.serverless.modules.rp_http import send_result
from runpod.serverless.modules.worker_state import JobsProgress
from structlog.contextvars import bound_contextvars

from gpu_worker.host.logs import log_lines
from gpu_worker.runner import Runner, Send, output_of, start_runner
from gpu_worker.settings import Settings, load_settings
from schemas.worker import Progress

log = structlog.get_logger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


def make_handler(runner: Runner) -> Handler:
    """Returns the function that the SDK calls with each job."""

    async def handler(job: dict[str, Any]) -> dict[str, Any]:
        with bound_contextvars(runpod_job_id=job["id"]):
            async with _sender(runner.settings, job) as send:
                return output_of(await runner.run(job["input"], job["id"], send))

    return handler


@contextlib.asynccontextmanager
async def _sender(settings: Settings, job: dict[str, Any]) -> AsyncIterator[Send]:
    """Yields a function that sends progress to RunPod; off the platform it only logs."""
    if settings.result_url is None:

        async def only_log(progress: Progress) -> None:
            log.info("progress", phase=progress.phase, progress=progress.progress)

        yield only_log
        return

    async with AsyncClientSession() as session:

        async def send(progress: Progress) -> None:
            # The SDK's progress_update opens a thread and a connection a call; the result may
            # overtake it.
            body = {"status": "IN_PROGRESS", "output": progress.model_dump(mode="json")}
            await send_result(session, body, job)

        yield send


def _one_at_a_time() -> Callable[[int], int]:
    """Returns the SDK's concurrency modifier, which the SDK calls before each request for a job.

    Its first call also replaces the SDK's signal handlers, which the SDK has set by then. They wait
    for that request, up to 90 s, and for a job that it brings. Here, Ctrl-C ends a worker at once,
    and SIGTERM ends one that has no job: a job that came in before the platform kills the container
    would be lost with it.
    """
    sdk_handler: list[Any] = []

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        if JobsProgress().get_job_count():
            # The SDK takes no more jobs; the runner hands back the running one.
            sdk_handler[0](number, frame)
        else:
            sys.exit(0)

    def one(_: int) -> int:
        if not sdk_handler:
            sdk_handler.append(signal.signal(signal.SIGTERM, on_sigterm))
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return 1

    return one


def choose_checks(skipped: set[str]) -> None:
    """Registers the SDK's own checks of the machine as it does itself, without the skipped ones.

    The SDK can switch off all of them, but no single one.
    """
    rp_fitness._ensure_gpu_check_registered()
    rp_fitness._ensure_system_checks_registered()
    checks = {
        check.__name__.strip("_").removesuffix("_check"): check
        for check in rp_fitness._fitness_checks
    }
    kept = [name for name in checks if name not in skipped]
    rp_fitness.clear_fitness_checks()
    for name in kept:
        rp_fitness.register_fitness_check(checks[name])
    log.info(
        "machine_checks",
        run=",".join(kept),
        skipped=",".join(name for name in checks if name in skipped),
    )


def main() -> None:
    """Runs the SDK's worker loop, or the one job of `--test_input` or `test_input.json`."""
    log_lines()
    settings = load_settings()
    handler = make_handler(start_runner(settings))
    choose_checks(set(settings.skipped_checks.split(",")))
    with contextlib.suppress(KeyboardInterrupt):
        runpod.serverless.start({"handler": handler, "concurrency_modifier": _one_at_a_time()})


if __name__ == "__main__":
    main()
