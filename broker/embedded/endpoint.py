"""A RunPod-compatible endpoint for one machine. The unmodified `runpod` SDK works on it.

Clients call `/run`, `/status`, `/cancel` and `/health` under `/v2/{id}/`, and take a webhook when a
job ends. Workers call `job-take`, `job-stop`, `job-done` (progress and result) and `ping`: this is
all that the SDK's loop calls for one job at a time and a handler that is no generator. queue.py
holds the states and lifetimes. This module leaves out RunPod's other routes, rate limits (429),
scaling, `s3Config` and `stopPod`. RunPod does not document whether a cancel sends a webhook; this
endpoint sends one. The endpoint sends each webhook once: the broker polls too.
"""

import argparse
import asyncio
import contextlib
import hmac
import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import httpx
import uvicorn
from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from broker.connection import Connection
from broker.embedded.changes import Changes
from broker.embedded.queue import JobQueue, Limits, QueuedJob, State

RUN_LIMIT_BYTES, RESULT_LIMIT_BYTES = 10 << 20, 20 << 20
DAY, WEEK = 86_400_000, 604_800_000
EXPIRE_SECONDS = 0.25
PING_MILLISECONDS = 2000

View = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")


@dataclass(frozen=True)
class EndpointConfig:
    """The settings of an endpoint. Times are in seconds."""

    endpoint_id: str
    api_key: str
    database: Path
    limits: Limits = field(default_factory=Limits)
    #: How long a worker's call waits. At an instant "no job", the SDK calls 5,000 times a second.
    long_poll_seconds: float = 20.0


class Policy(BaseModel):
    """Deadlines in milliseconds, within RunPod's bounds and with RunPod's names."""

    executionTimeout: Annotated[int, Field(ge=5_000, le=WEEK)] = 600_000  # noqa: N815
    ttl: Annotated[int, Field(ge=10_000, le=WEEK)] = DAY


class RunBody(BaseModel):
    """The body of `/run`. RunPod drops a job with an empty input; this endpoint answers 400."""

    input: Annotated[dict[str, Any], Field(min_length=1)]
    webhook: str | None = None
    policy: Policy = Policy()


class Endpoint:
    """The routes of one endpoint over one queue."""

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._queue = JobQueue(config.database, config.limits, time.time())
        self._changes = Changes()
        self._http = httpx.AsyncClient(timeout=10)
        self._webhooks: set[asyncio.Task[None]] = set()

    def routes(self) -> Mount:
        """Returns the routes of clients and of workers."""
        views: list[tuple[str, str, View]] = [
            ("POST", "/run", self.run),
            ("GET", "/status/{job_id}", self.status),
            ("POST", "/cancel/{job_id}", self.cancel),
            ("GET", "/health", self.health),
            ("GET", "/job-take/{worker_id}", self.job_take),
            ("GET", "/job-stop/{worker_id}", self.job_stop),
            ("POST", "/job-done/{worker_id}/{job_id}", self.job_done),
            ("GET", "/ping/{worker_id}", self.ping),
        ]
        routes = [Route(path, self._guarded(view), methods=[verb]) for verb, path, view in views]
        return Mount(f"/v2/{self._config.endpoint_id}", routes=routes)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Applies the queue's lifetimes as long as the app runs."""
        expiry = asyncio.create_task(self._expire())
        try:
            yield
        finally:
            for task in (expiry, *self._webhooks):
                task.cancel()
            await asyncio.gather(expiry, *self._webhooks, return_exceptions=True)
            await self._http.aclose()
            self._queue.close()

    # ── clients ─────────────────────────────────────────────────────────────────────────────────

    async def run(self, request: Request) -> Response:
        """Queues a job and answers at once."""
        try:
            body = RunBody.model_validate(await _json_body(request, RUN_LIMIT_BYTES))
        except ValidationError as error:
            raise HTTPException(400, str(error)) from error
        job = QueuedJob(
            id=f"{uuid.uuid4()}-u1",
            input=body.input,
            execution_timeout=body.policy.executionTimeout / 1000,
            ttl=body.policy.ttl / 1000,
            created_at=time.time(),
            webhook=body.webhook,
        )
        self._queue.add(job)
        self._changes.notify()
        return JSONResponse({"id": job.id, "status": job.state})

    async def status(self, request: Request) -> Response:
        return JSONResponse(self._job(request).status())

    async def cancel(self, request: Request) -> Response:
        job = self._job(request)
        if self._queue.cancel(job, time.time()):
            self._announce(job)
        return JSONResponse({"id": job.id, "status": job.state})

    async def health(self, _: Request) -> Response:
        """Counts jobs and workers. A worker counts as long as the worker calls."""
        jobs, workers = self._queue.count_jobs(), self._queue.count_workers()
        job_counts = {
            "completed": jobs[State.COMPLETED],
            "failed": jobs[State.FAILED] + jobs[State.TIMED_OUT],
            "inProgress": jobs[State.IN_PROGRESS],
            "inQueue": jobs[State.IN_QUEUE],
        }
        worker_counts = {
            "idle": workers["idle"],
            "ready": workers["idle"],
            "running": workers["running"],
            "unhealthy": workers["unhealthy"],
        }
        return JSONResponse({"jobs": job_counts, "workers": worker_counts})

    # ── workers ─────────────────────────────────────────────────────────────────────────────────

    async def job_take(self, request: Request) -> Response:
        """Waits for a job and hands the job over. Answers 204 after a while without a job."""
        worker_id = request.path_params["worker_id"]
        job = await self._long_poll(lambda: self._queue.take(worker_id, time.time()), request)
        if job is None:
            return Response(status_code=204)
        if await request.is_disconnected():
            self._queue.give_back(job)
            self._changes.notify()
            return Response(status_code=204)
        webhook = {"webhook": job.webhook} if job.webhook else {}
        return JSONResponse({"id": job.id, "input": job.input} | webhook)

    async def job_stop(self, request: Request) -> Response:
        """Waits until the worker must stop jobs. Answers 204 after a while."""
        worker_id = request.path_params["worker_id"]
        self._queue.mark_seen(worker_id, time.time())
        stops = await self._long_poll(lambda: self._queue.pop_stops(worker_id), request)
        return JSONResponse({"jobsToStop": stops}) if stops else Response(status_code=204)

    async def job_done(self, request: Request) -> Response:
        """Takes progress (`status: IN_PROGRESS`) or the result.

        The SDK sends JSON under a form's content type.
        """
        body = await _json_body(request, RESULT_LIMIT_BYTES)
        job, worker_id = self._job(request), request.path_params["worker_id"]
        output, error, now = body.get("output"), body.get("error"), time.time()
        if body.get("status") == State.IN_PROGRESS:
            self._queue.progress(worker_id, job, output, now)
        elif self._queue.finish(worker_id, job, output, error, now):
            self._announce(job)
        return JSONResponse({})

    async def ping(self, request: Request) -> Response:
        jobs = [job_id for job_id in request.query_params.get("job_id", "").split(",") if job_id]
        is_healthy = request.query_params.get("status") != "unhealthy"
        worker_id = request.path_params["worker_id"]
        self._queue.ping(worker_id, jobs, time.time(), is_healthy=is_healthy)
        self._changes.notify()
        return JSONResponse({})

    # ── small steps ─────────────────────────────────────────────────────────────────────────────

    def _job(self, request: Request) -> QueuedJob:
        job = self._queue.get(request.path_params["job_id"])
        if job is None:
            raise HTTPException(404, "no such job")
        return job

    async def _long_poll(self, poll: Callable[[], T], request: Request) -> T | None:
        """Waits for the first result that is not empty, for a while, while the caller is there."""
        seconds = self._config.long_poll_seconds
        return await self._changes.first(poll, seconds, request.is_disconnected)

    async def _expire(self) -> None:
        while True:
            for job in self._queue.expire(time.time()):
                self._announce(job)
            self._changes.notify()
            await asyncio.sleep(EXPIRE_SECONDS)

    def _announce(self, job: QueuedJob) -> None:
        """Wakes waiting calls and sends the webhook of a job that has ended."""
        self._changes.notify()
        if job.webhook is not None:
            body = job.status() | {"input": job.input, "webhook": job.webhook}
            task = asyncio.create_task(self._call_webhook(job.webhook, body))
            self._webhooks.add(task)
            task.add_done_callback(self._webhooks.discard)

    async def _call_webhook(self, url: str, body: dict[str, Any]) -> None:
        with contextlib.suppress(httpx.HTTPError, httpx.InvalidURL):
            await self._http.post(url, json=body)

    def _guarded(self, view: View) -> View:
        """Wraps a view with the check of the key. Workers send the raw key, clients `Bearer`."""

        @wraps(view)
        async def guarded(request: Request) -> Response:
            key = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
            if not hmac.compare_digest(key.encode(), self._config.api_key.encode()):
                raise HTTPException(401, "unauthorized")
            return await view(request)

        return guarded


def create_endpoint(config: EndpointConfig) -> Starlette:
    """Builds the endpoint as an ASGI app."""
    endpoint = Endpoint(config)
    return Starlette(routes=[endpoint.routes()], lifespan=endpoint.lifespan)


#: A worker does not start without these. RunPod sets the last variable; without it, the SDK runs
#: `test_input.json` and ends.
WORKER_PACKAGES = ("gpu_worker", "runpod", "torch")
_R2_VARIABLES = ("R2_ENDPOINT", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY", "R2_BUCKET_NAME")
WORKER_VARIABLES = (*_R2_VARIABLES, "RUNPOD_WEBHOOK_GET_JOB")


def worker_environment(
    base_url: str, endpoint_id: str, api_key: str, worker_id: str
) -> dict[str, str]:
    """Returns what the SDK's worker loop reads. The SDK fills in `$ID` and `$RUNPOD_POD_ID`."""
    root = f"{base_url}/v2/{endpoint_id}"
    return {
        # The SDK appends `&name=value`, so the first two URLs must have a query.
        "RUNPOD_WEBHOOK_GET_JOB": f"{root}/job-take/$ID?gpu=CPU",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{root}/job-done/$RUNPOD_POD_ID/$ID?gpu=CPU",
        "RUNPOD_WEBHOOK_PING": f"{root}/ping/$RUNPOD_POD_ID",
        "RUNPOD_PING_INTERVAL": str(PING_MILLISECONDS),
        "RUNPOD_POD_ID": worker_id,
        "RUNPOD_AI_API_KEY": api_key,
        "RUNPOD_LOG_LEVEL": "INFO",
        # The SDK's other checks run as on RunPod. The worker calls nothing outside this machine.
        "REELBROKER_SKIPPED_CHECKS": "network",
    }


async def _json_body(request: Request, limit: int) -> dict[str, Any]:
    """Reads a JSON object of at most `limit` bytes.

    Python reads JSON that it cannot write: NaN, 1e999, half a surrogate pair. One of these in an
    input breaks every `job-take`, which the SDK repeats forever. One in an output breaks every
    `/status`.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise HTTPException(413, f"the body is over {limit} bytes")
    try:
        parsed = json.loads(body)
        json.dumps(parsed, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body is not JSON") from error
    if not isinstance(parsed, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return parsed


def main() -> None:
    """Runs the endpoint. RUNPOD_API_KEY holds the key, so that `ps` does not show it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--endpoint-id", required=True)
    parser.add_argument("--database", type=Path, required=True)
    options = parser.parse_args()
    key = os.environ.get("RUNPOD_API_KEY", "")
    if not key:
        parser.error("RUNPOD_API_KEY is not set")
    uvicorn.run(
        create_endpoint(EndpointConfig(options.endpoint_id, key, options.database)),
        host=options.host,
        port=options.port,
        http=Connection,
        access_log=False,
        log_level="warning",
        # A worker reuses its connection after a long silence. A close meanwhile loses a result.
        timeout_keep_alive=120,
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
