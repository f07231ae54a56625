"""Wiring: every collaborator is made here, once, and handed on by constructor."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.api.problems import HANDLERS
from broker.api.routes import routes
from broker.database import open_engine
from broker.errors import BrokerError
from broker.loop import ReconcileLoop
from broker.reconciler import Reconciler
from broker.retention import Retention
from broker.runpod import RunPodClient
from broker.service import DRAINING, JobService
from broker.settings import Settings
from broker.storage import open_bucket
from broker.store import JobStore, now_ms

STOP_SECONDS = 10.0


def create_app(settings: Settings, *, transport: httpx.AsyncBaseTransport | None = None) -> Starlette:
    """Builds the broker.

    Args:
        transport: what carries the calls to RunPod; tests put an ASGI app or a failing network here.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        engine = await run_in_threadpool(open_engine, settings.database_url)
        store = JobStore(engine)
        timeout = httpx.Timeout(30.0, connect=5.0)
        try:
            async with httpx.AsyncClient(transport=transport, timeout=timeout) as http:
                runpod = RunPodClient(
                    http, settings.runpod_api_key.get_secret_value(), settings.calls_per_second
                )
                bucket = await run_in_threadpool(open_bucket, settings)
                reconciler = Reconciler(settings, store, bucket, runpod)
                reconciler.dispatch.draining = await run_in_threadpool(store.flag, DRAINING)
                looks = ReconcileLoop(store, reconciler, now_ms)
                service = JobService(settings, store, bucket, reconciler, looks.wake)
                loop = asyncio.create_task(looks.run())
                retention = Retention(settings, store, bucket)
                sweeps = asyncio.create_task(retention.run())
                yield {
                    "settings": settings,
                    "service": service,
                    "checks": {
                        "database": store.check,
                        "bucket": bucket.check,
                        "reconciler": partial(_is_running, loop),
                    },
                }
                looks.close()
                retention.close()
                # A provider that does not answer must not hold us up for long.
                await asyncio.wait([loop, sweeps], timeout=STOP_SECONDS)
        finally:
            store.close()

    return Starlette(
        routes=routes(settings),
        middleware=[Middleware(RequestId)],
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )


def _is_running(loop: asyncio.Task[None]) -> None:
    if loop.done():
        raise BrokerError("the loop that moves jobs has ended")


class RequestId:
    """Gives each request an id and says it in the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)
