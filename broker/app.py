"""Wiring: creates every component once, and passes it on by constructor."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from broker.api.headers import RAW
from broker.api.prefix import UnderPrefix
from broker.api.problems import HANDLERS
from broker.api.routes import routes
from broker.bucket import open_bucket
from broker.clock import now_ms
from broker.engine.admission import DiskSpace
from broker.engine.core import make_core
from broker.engine.scheduler import Scheduler
from broker.engine.service import JobService
from broker.engine.watch import EventHub
from broker.errors import BrokerError
from broker.jobs.model import Event, Job
from broker.ops.metrics import Metrics
from broker.ops.overview import Overview
from broker.ops.retention import Retention
from broker.providers.registry import NAMES, open_providers
from broker.services.quotes import QuoteService
from broker.services.rate_limit import RequestLimit
from broker.services.uploads import UploadService
from broker.services.webhooks import WebhookService, open_caller
from broker.settings import Settings
from broker.store.engine import open_engine, sqlite_path
from broker.store.jobs import JobStore
from broker.store.keys import Credentials
from broker.store.reports import Reports
from broker.store.uploads import UploadStore
from broker.store.webhooks import Outbox
from broker.trace import received, trace_id

STOP_SECONDS = 10.0
#: The headers that a web page of another origin may send, and those that it may read.
_ALLOWED = ["Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID"]
_ALLOWED += ["Prefer", "traceparent"]
_EXPOSED = ["ETag", "Idempotent-Replayed", "Link", "Location", "RateLimit", "Retry-After"]
_EXPOSED += ["X-Request-ID"]


def create_app(
    settings: Settings, *, transport: httpx.AsyncBaseTransport | None = None
) -> Starlette:
    """Builds the broker.

    Args:
        transport: carries the calls to providers; tests pass an ASGI app or a failing network.
    """

    metrics = Metrics(NAMES)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        engine = await run_in_threadpool(open_engine, settings.database_url)
        hub = EventHub()
        store = JobStore(engine, partial(_announce, hub, metrics))
        uploads = UploadStore(engine)
        timeout = httpx.Timeout(30.0, connect=5.0)
        try:
            async with (
                httpx.AsyncClient(transport=transport, timeout=timeout) as http,
                open_caller() as outgoing,
                open_providers(settings, http, metrics.provider_called) as providers,
            ):
                bucket = await run_in_threadpool(open_bucket, settings, metrics.storage_failed)
                metrics.breaker_open.set_function(lambda: providers.breaker_open)
                core = make_core(
                    settings, store, uploads, bucket, providers, on_reconcile=metrics.reconciled
                )
                await core.drain.read()
                scheduler = Scheduler(store, core, now_ms, metrics.reconcile_failed)
                path = sqlite_path(settings.database_url)
                disk = DiskSpace(path.absolute().parent if path else None, settings.min_free_bytes)
                service = JobService(
                    settings, store, bucket, core.reconciler, core.drain, hub, disk, scheduler.wake
                )
                retention = Retention(settings, store, uploads, bucket)
                webhooks = WebhookService(
                    settings, Outbox(engine), outgoing, on_call=metrics.webhook_called
                )
                loop = asyncio.create_task(scheduler.run())
                others = [asyncio.create_task(part.run()) for part in (retention, webhooks)]
                # On SQLite, no other process changes jobs.
                if path is None:
                    others.append(asyncio.create_task(hub.poll(store)))
                yield {
                    "settings": settings,
                    "service": service,
                    "quotes": QuoteService(
                        store, bucket, settings.gpu_prices, settings.provider_entries[0].name
                    ),
                    "uploads": UploadService(settings, uploads, bucket),
                    "webhooks": webhooks,
                    "credentials": Credentials(engine),
                    "overview": Overview(settings, Reports(engine), store, providers),
                    "metrics": metrics,
                    "limit": RequestLimit(settings.requests_per_minute),
                    "checks": {
                        "database": store.check,
                        "bucket": bucket.check,
                        "reconciler": partial(_is_running, loop),
                    },
                }
                scheduler.close()
                retention.close()
                webhooks.close()
                hub.close()
                # A provider that does not answer must not delay the end for long.
                await asyncio.wait([loop, *others], timeout=STOP_SECONDS)
        finally:
            store.close()

    return Starlette(
        routes=routes(settings),
        middleware=[*_prefix(settings), Middleware(RequestId, metrics=metrics), *_cors(settings)],
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )


def _prefix(settings: Settings) -> list[Middleware]:
    """Serves the broker below the path of the settings."""
    if not settings.root_path:
        return []
    return [Middleware(UnderPrefix, root_path=settings.root_path)]


def _cors(settings: Settings) -> list[Middleware]:
    """Allows web pages of the settings' origins to call the broker."""
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=_ALLOWED,
            expose_headers=_EXPOSED,
            max_age=3600,
        )
    ]


def _announce(hub: EventHub, metrics: Metrics, event: Event, job: Job) -> None:
    """Passes a committed event to the job's watchers, and counts the job's end."""
    hub.publish(event)
    if job.status.is_terminal:
        metrics.job_ended(job)


def _is_running(loop: asyncio.Task[None]) -> None:
    if loop.done():
        raise BrokerError("the loop that moves jobs has ended")


class RequestId:
    """Adds an id to each request, its answer and its log lines; counts the answers."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        traceparent = received(Headers(scope=scope).getlist("traceparent"))
        scope.setdefault("state", {}).update(request_id=request_id, traceparent=traceparent)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answered(message["status"])
                given = list(message.get("headers", ()))
                own = {name for name, _ in given}
                given += [pair for pair in RAW if pair[0] not in own]
                message["headers"] = [*given, (b"x-request-id", request_id.encode())]
            await send(message)

        with bound_contextvars(request_id=request_id, trace_id=trace_id(traceparent)):
            await self._app(scope, receive, send_with_id)
