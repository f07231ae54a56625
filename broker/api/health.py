"""Whether the broker lives, whether it is ready, and what it counts."""

from collections.abc import Callable

import anyio
import structlog
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from broker.api import requests
from broker.api.problems import problem
from broker.ops.metrics import CONTENT_TYPE, Metrics
from broker.ops.overview import Overview

log = structlog.get_logger(__name__)

#: Threads of their own: whoever asks for the readiness of a broker whose bucket hangs must not use up all others'.
_checks = anyio.CapacityLimiter(4)


class Health(BaseModel):
    status: str


class Readiness(Health):
    checks: dict[str, str]


async def metrics(request: Request) -> Response:
    """Read what is counted, in the text format of Prometheus. An admin's key opens it, or `REELBROKER_METRICS_KEY`, which opens nothing else."""
    looks: Overview = request.state.fleet
    counted: Metrics = request.state.metrics
    try:
        backlog = await run_in_threadpool(looks.backlog)
    except SQLAlchemyError as error:  # what this process knows by itself is worth the more now
        log.error("backlog_unknown", error=str(error))
        backlog = None
    provider, _ = await looks.provider()
    told = counted.exposition(requests.service(request).draining, backlog, provider)
    return Response(told, media_type=CONTENT_TYPE)


async def healthz(request: Request) -> Response:
    """The process runs and answers."""
    return requests.json(Health(status="ok"))


async def readyz(request: Request) -> Response:
    """A job sent now can be stored, and its files reached."""
    checks: dict[str, Callable[[], None]] = request.state.checks
    for name, check in checks.items():
        try:
            with anyio.fail_after(5):
                await anyio.to_thread.run_sync(check, abandon_on_cancel=True, limiter=_checks)
        except Exception as error:  # noqa: BLE001  # whatever it is, not ready is the answer
            return problem(request, 503, "not_ready", f"{name}: {error}", retryable=True)
    return requests.json(Readiness(status="ok", checks=dict.fromkeys(checks, "ok")))
