"""A RunPod-compatible serverless endpoint for one machine, which drives the unmodified SDK worker loop.

On one side RunPod's public routes under `/v2/{id}/`, on the other the protocol by which the SDK's workers take jobs and
return results. What a job's states and lifetimes are is said in queue.py; here is only HTTP. Not reproduced: rate
limits (429), scaling (the number of workers is what the supervisor runs, hence no `lowPriority`), `s3Config`, and the
replacing of a worker that sends `stopPod`. Unknown on the platform and chosen here: a webhook goes out at every end,
also after a cancel. Tries of a webhook that are still due are lost with the process.
"""

import argparse
import asyncio
import contextlib
import hmac
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import httpx
import uvicorn
from pydantic import AfterValidator, BaseModel, Field, HttpUrl, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from broker.connection import Connection
from broker.embedded.queue import ENDED, JobQueue, Limits, QueuedJob, State, new_id

RUN_LIMIT_BYTES = 10 << 20
RUNSYNC_LIMIT_BYTES = 20 << 20
DAY, WEEK = 86_400_000, 604_800_000
WEBHOOK_TRIES = 3
EXPIRE_SECONDS = 0.25
PING_MILLISECONDS = 2000

Clock = Callable[[], float]
View = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class EndpointConfig:
    """What an endpoint is set up with; times in seconds."""

    endpoint_id: str
    api_key: str
    database: Path
    limits: Limits = field(default_factory=Limits)
    #: A worker's call is held this long. An instant "no job" would make the SDK ask some 5,000 times a second.
    long_poll_seconds: float = 20.0
    webhook_retry_seconds: float = 10.0
    clock: Clock = field(default=time.time)


def _web_address(text: str) -> str:
    """Returns a usable address as it is written: it is echoed to whoever is called."""
    HttpUrl(text)
    return text


class Policy(BaseModel):
    """Deadlines in milliseconds, within RunPod's bounds."""

    executionTimeout: Annotated[int, Field(ge=5_000, le=WEEK)] = 600_000  # noqa: N815  # RunPod's spelling
    ttl: Annotated[int, Field(ge=10_000, le=WEEK)] = DAY
    lowPriority: bool = False  # noqa: N815


class RunBody(BaseModel):
    """The body of `/run` and `/runsync`. RunPod drops an empty input, and the job with it; we say so at once."""

    input: Annotated[dict[str, Any], Field(min_length=1)]
    webhook: Annotated[str, AfterValidator(_web_address)] | None = None
    policy: Policy = Policy()


class Endpoint:
    """The routes of one endpoint over one queue."""

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._queue = JobQueue(config.database, config.limits, config.clock())
        self._changed = asyncio.Event()
        self._http = httpx.AsyncClient(timeout=10)
        self._webhooks: set[asyncio.Task[None]] = set()

    def routes(self) -> list[Route]:
        """Returns the public routes and those of the workers."""
        public: list[tuple[str, View, list[str]]] = [
            ("run", self.run, ["POST"]),
            ("runsync", self.runsync, ["POST"]),
            ("status/{job_id}", self.status, ["GET", "POST"]),
            ("stream/{job_id}", self.stream, ["GET", "POST"]),
            ("cancel/{job_id}", self.cancel, ["POST"]),
            ("retry/{job_id}", self.retry, ["POST"]),
            ("purge-queue", self.purge_queue, ["POST"]),
            ("health", self.health, ["GET"]),
        ]
        workers: list[tuple[str, View, list[str]]] = [
            ("job-take/{worker_id}", self.job_take, ["GET"]),
            ("job-take-batch/{worker_id}", self.job_take_batch, ["GET"]),
            ("job-stop/{worker_id}", self.job_stop, ["GET"]),
            ("job-done/{worker_id}/{job_id}", self.job_done, ["POST"]),
            ("job-stream/{worker_id}/{job_id}", self.job_stream, ["POST"]),
            ("ping/{worker_id}", self.ping, ["GET"]),
        ]
        return [
            Route(f"/v2/{{endpoint_id}}/{path}", self._guarded(view), methods=methods)
            for path, view, methods in public + workers
        ]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Applies lifetimes while entered."""
        expiry = asyncio.create_task(self._expire())
        try:
            yield
        finally:
            for task in (expiry, *self._webhooks):
                task.cancel()
            await asyncio.gather(expiry, *self._webhooks, return_exceptions=True)
            await self._http.aclose()
            self._queue.close()

    # ── public ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, request: Request) -> Response:
        """Queues a job and answers at once."""
        job = await self._queued(request, RUN_LIMIT_BYTES, sync=False)
        return JSONResponse({"id": job.id, "status": job.state})

    async def runsync(self, request: Request) -> Response:
        """Queues a job and waits for its end, but not longer than `wait` milliseconds."""
        job = await self._queued(request, RUNSYNC_LIMIT_BYTES, sync=True)
        wait = _number(request, "wait", 90_000, 1_000, 300_000)
        await self._until(lambda: job.state in ENDED or self._is_gone(job), wait / 1000, request)
        if self._is_gone(job):
            raise _Refusal(404, "the job was deleted while it waited")
        return JSONResponse(job.status())

    async def status(self, request: Request) -> Response:
        job = self._job(request)
        if "ttl" in request.query_params:
            self._queue.set_ttl(job, _number(request, "ttl", DAY, 10_000, WEEK) / 1000)
        return JSONResponse(job.status())

    async def stream(self, request: Request) -> Response:
        """Returns the chunks since the last call; waits a little for the first."""
        job = self._job(request)
        await self._until(lambda: bool(job.stream) or job.state in ENDED, 1.0, request)
        chunks = [{"output": chunk} for chunk in self._queue.drain_stream(job)]
        return JSONResponse({"status": job.state, "stream": chunks})

    async def cancel(self, request: Request) -> Response:
        job = self._job(request)
        was_open = job.state not in ENDED
        self._queue.cancel(job, self._now())
        if was_open:
            self._announce(job)
        return JSONResponse({"id": job.id, "status": job.state})

    async def retry(self, request: Request) -> Response:
        job = self._job(request)
        if not self._queue.retry(job, self._now()):
            raise _Refusal(400, f"a job that is {job.state} cannot be retried")
        self._notify()
        return JSONResponse({"id": job.id, "status": job.state})

    async def purge_queue(self, _: Request) -> Response:
        return JSONResponse({"removed": self._queue.purge(), "status": "completed"})

    async def health(self, _: Request) -> Response:
        """Counts jobs and workers; a worker counts while it calls."""
        count = self._queue.counts()
        unhealthy = {name for name, worker in self._queue.workers.items() if not worker.is_healthy}
        busy = self._queue.busy_workers() & self._queue.workers.keys() - unhealthy
        idle = len(self._queue.workers) - len(busy) - len(unhealthy)
        jobs = {
            "completed": count[State.COMPLETED],
            "failed": count[State.FAILED] + count[State.TIMED_OUT],
            "inProgress": count[State.IN_PROGRESS],
            "inQueue": count[State.IN_QUEUE],
            "retried": self._queue.retried(),
        }
        workers = {
            "idle": idle,
            "initializing": 0,
            "ready": idle,
            "running": len(busy),
            "throttled": 0,
            "unhealthy": len(unhealthy),
        }
        return JSONResponse({"jobs": jobs, "workers": workers})

    # ── workers ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def job_take(self, request: Request) -> Response:
        """Holds the call until there is a job; 204 after a while without one."""
        jobs = await self._take(request, 1)
        return JSONResponse(_for_worker(jobs[0])) if jobs else Response(status_code=204)

    async def job_take_batch(self, request: Request) -> Response:
        jobs = await self._take(request, _number(request, "batch_size", 1, 1, 1000))
        return (
            JSONResponse([_for_worker(job) for job in jobs]) if jobs else Response(status_code=204)
        )

    async def job_stop(self, request: Request) -> Response:
        """Holds the call until the worker is to stop jobs."""
        worker_id = request.path_params["worker_id"]
        self._queue.see(worker_id, self._now())
        stops: list[str] = []

        def has_stops() -> bool:
            stops.extend(self._queue.stops_for(worker_id))
            return bool(stops)

        await self._until(has_stops, self._config.long_poll_seconds, request)
        return JSONResponse({"jobsToStop": stops}) if stops else Response(status_code=204)

    async def job_done(self, request: Request) -> Response:
        """Takes progress (`status: IN_PROGRESS`) or the final result; the SDK sends JSON under a form's content type."""
        body = await _json_body(request, RUNSYNC_LIMIT_BYTES)
        job, worker_id = self._job(request), request.path_params["worker_id"]
        if body.get("status") == State.IN_PROGRESS:
            self._queue.progress(worker_id, job, body.get("output"), self._now())
        elif self._queue.done(worker_id, job, body.get("output"), body.get("error"), self._now()):
            self._announce(job)
        self._notify()
        return JSONResponse({})

    async def job_stream(self, request: Request) -> Response:
        body = await _json_body(request, RUNSYNC_LIMIT_BYTES)
        job, worker_id = self._job(request), request.path_params["worker_id"]
        self._queue.append_stream(worker_id, job, body.get("output"), self._now())
        self._notify()
        return JSONResponse({})

    async def ping(self, request: Request) -> Response:
        jobs = [job_id for job_id in request.query_params.get("job_id", "").split(",") if job_id]
        worker_id = request.path_params["worker_id"]
        self._queue.ping(worker_id, jobs, self._now())
        if request.query_params.get("status") == "unhealthy":
            self._queue.see_unhealthy(worker_id, self._now())
        self._notify()
        return JSONResponse({})

    # ── small steps ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _queued(self, request: Request, limit: int, *, sync: bool) -> QueuedJob:
        try:
            body = RunBody.model_validate(await _json_body(request, limit))
        except ValidationError as error:
            raise _Refusal(400, str(error)) from error
        job = QueuedJob(
            id=new_id(),
            input=body.input,
            execution_timeout=body.policy.executionTimeout / 1000,
            ttl=body.policy.ttl / 1000,
            created_at=self._now(),
            webhook=body.webhook,
            sync=sync,
        )
        self._queue.add(job)
        self._notify()
        return job

    async def _take(self, request: Request, limit: int) -> list[QueuedJob]:
        taken: list[QueuedJob] = []
        worker_id = request.path_params["worker_id"]

        def has_jobs() -> bool:
            taken.extend(self._queue.take(worker_id, limit, self._now()))
            return bool(taken)

        await self._until(has_jobs, self._config.long_poll_seconds, request)
        if taken and await request.is_disconnected():
            for job in taken:
                self._queue.give_back(job)
            self._notify()
            return []
        return taken

    def _job(self, request: Request) -> QueuedJob:
        job = self._queue.get(request.path_params["job_id"])
        if job is None:
            raise _Refusal(404, "no such job")
        return job

    def _is_gone(self, job: QueuedJob) -> bool:
        return self._queue.get(job.id) is None

    async def _until(self, done: Callable[[], bool], seconds: float, request: Request) -> None:
        """Waits for `done()`, which is asked after every change; gives up after a while, or when the caller is gone."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not await request.is_disconnected():
                    changed = self._changed
                    if done():
                        return
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), 1.0)

    def _notify(self) -> None:
        """Wakes all who wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _expire(self) -> None:
        while True:
            for job in self._queue.expire(self._now()):
                self._announce(job)
            self._notify()
            await asyncio.sleep(EXPIRE_SECONDS)

    def _announce(self, job: QueuedJob) -> None:
        """Tells those who wait here, and the webhook, that a job has ended."""
        self._notify()
        if job.webhook is not None:
            task = asyncio.create_task(self._call_webhook(job.webhook, self._envelope(job)))
            self._webhooks.add(task)
            task.add_done_callback(self._webhooks.discard)

    def _envelope(self, job: QueuedJob) -> dict[str, Any]:
        return job.status() | {"input": job.input, "webhook": job.webhook}

    async def _call_webhook(self, url: str, body: dict[str, Any]) -> None:
        for tries in range(WEBHOOK_TRIES):
            if tries:
                await asyncio.sleep(self._config.webhook_retry_seconds)
            with contextlib.suppress(httpx.HTTPError, httpx.InvalidURL):
                if (await self._http.post(url, json=body)).status_code == 200:
                    return

    def _now(self) -> float:
        return self._config.clock()

    def _guarded(self, view: View) -> View:
        """Asks for the key (raw from workers, `Bearer` from clients; RunPod takes both) and for the right endpoint."""

        @wraps(view)
        async def guarded(request: Request) -> Response:
            key = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
            if not hmac.compare_digest(key.encode(), self._config.api_key.encode()):
                return JSONResponse({"error": "unauthorized"}, 401)
            if request.path_params["endpoint_id"] != self._config.endpoint_id:
                return JSONResponse({"error": "no such endpoint"}, 404)
            try:
                return await view(request)
            except _Refusal as refusal:
                return JSONResponse({"error": str(refusal)}, refusal.status)

        return guarded


class _Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def create_endpoint(config: EndpointConfig) -> Starlette:
    """Builds the endpoint as an ASGI app; entering its lifespan starts the clock."""
    endpoint = Endpoint(config)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with endpoint.running():
            yield

    return Starlette(routes=endpoint.routes(), lifespan=lifespan)


def worker_environment(
    base_url: str, endpoint_id: str, api_key: str, worker_id: str
) -> dict[str, str]:
    """Returns what the SDK's worker loop reads to find its queue; `$ID` and `$RUNPOD_POD_ID` it fills in itself."""
    at = f"{base_url}/v2/{endpoint_id}"
    return {
        # The SDK appends `&name=value`, so each of the first three must have a query already.
        "RUNPOD_WEBHOOK_GET_JOB": f"{at}/job-take/$ID?gpu=CPU",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{at}/job-done/$RUNPOD_POD_ID/$ID?gpu=CPU",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{at}/job-stream/$RUNPOD_POD_ID/$ID?gpu=CPU",
        "RUNPOD_WEBHOOK_PING": f"{at}/ping/$RUNPOD_POD_ID",
        "RUNPOD_PING_INTERVAL": str(PING_MILLISECONDS),
        "RUNPOD_POD_ID": worker_id,
        "RUNPOD_AI_API_KEY": api_key,
        "RUNPOD_LOG_LEVEL": "INFO",
        # All other checks of the SDK run here as on RunPod; everything that the worker calls is on this machine.
        "REELBROKER_SKIPPED_CHECKS": "network",
    }


def _for_worker(job: QueuedJob) -> dict[str, Any]:
    handed: dict[str, Any] = {"id": job.id, "input": job.input}
    return handed | ({"webhook": job.webhook} if job.webhook else {})


async def _json_body(request: Request, limit: int) -> dict[str, Any]:
    """Reads a JSON object, no further than the limit.

    Python reads what it cannot send on: NaN, 1e999, half a surrogate pair. One of those in an input would break every
    `job-take`, which the SDK repeats at once and for ever; in an output, every `/status`.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _Refusal(413, f"the body is over {limit} bytes")
    try:
        parsed = json.loads(body)
        json.dumps(parsed, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise _Refusal(400, "the body is not JSON") from error
    if not isinstance(parsed, dict):
        raise _Refusal(400, "the body is not a JSON object")
    return parsed


def _number(request: Request, name: str, default: int, low: int, high: int) -> int:
    try:
        return min(max(int(request.query_params.get(name, default)), low), high)
    except ValueError as error:
        raise _Refusal(400, f"{name} is not a number") from error


def main() -> None:
    """Runs the endpoint on loopback; its key comes from RUNPOD_API_KEY, so that `ps` does not show it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--endpoint-id", required=True)
    parser.add_argument("--database", type=Path, required=True)
    chosen = parser.parse_args()
    key = os.environ.get("RUNPOD_API_KEY", "")
    if not key:
        parser.error("RUNPOD_API_KEY is not set")
    config = EndpointConfig(chosen.endpoint_id, key, chosen.database)
    uvicorn.run(
        create_endpoint(config),
        host=chosen.host,
        port=chosen.port,
        http=Connection,
        access_log=False,
        log_level="warning",
        # A worker reuses its connection after a long silence; closed meanwhile, its result would be lost.
        timeout_keep_alive=120,
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
