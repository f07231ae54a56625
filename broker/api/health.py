"""Liveness, readiness and metrics."""

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

#: Threads of their own: checks of a bucket that hangs must not use up those of other requests.
_checks = anyio.CapacityLimiter(4)


class Health(BaseModel):
    status: str


class Readiness(Health):
    checks: dict[str, str]


async def scrape(request: Request) -> Response:
    """Get the metrics in Prometheus' text format.

    Authenticate as an admin, or with `REELBROKER_METRICS_KEY`, which opens nothing else.
    """
    overview: Overview = request.state.overview
    metrics: Metrics = request.state.metrics
    try:
        backlog = await run_in_threadpool(overview.backlog)
    except SQLAlchemyError as error:
        # The metrics of this process do not need the database.
        log.error("backlog_unknown", error=str(error))
        backlog = None
    places = await overview.places()
    text = metrics.exposition(requests.service(request).draining, backlog, places)
    return Response(text, media_type=CONTENT_TYPE)


async def healthz(request: Request) -> Response:
    """Check that the process answers."""
    return requests.json(Health(status="ok"))


async def readyz(request: Request) -> Response:
    """Check that the broker can store a job and reach the bucket."""
    checks: dict[str, Callable[[], None]] = request.state.checks
    for name, check in checks.items():
        try:
            with anyio.fail_after(5):
                await anyio.to_thread.run_sync(check, abandon_on_cancel=True, limiter=_checks)
        except Exception as error:  # noqa: BLE001
            return problem(request, 503, "not_ready", f"{name}: {error}", retryable=True)
    return requests.json(Readiness(status="ok", checks=dict.fromkeys(checks, "ok")))
