"""RunPod's public API on httpx: translates wire words to domain words and back.

jobs/decide.py decides what an answer means for a job. Facts of RunPod's documentation: `/run` has
no idempotency key; results are kept for 30 minutes; 404 answers expired and unknown ids alike;
`output` holds the progress while a job runs. `TIMED_OUT` means expired before pickup, failed to
report back, or exceeded the limit (guide "Job states"). A worker that counts as idle may be scaled
down, with jobs in the queue beside it ("Troubleshooting").
"""

from collections import defaultdict
from typing import Any, ClassVar, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from broker.errors import (
    ProviderError,
    ProviderNotReady,
    ProviderPaced,
    ProviderRefused,
    ProviderUncertain,
    ProviderUnreachable,
)
from broker.jobs.observation import Health, RemoteJob, RemoteState
from broker.jobs.policy import Deadlines
from broker.providers.base import ProviderJobId
from broker.providers.measured import OnCall, measured, unmeasured
from broker.providers.pacing import Breaker, Pace
from schemas.worker import WorkerInput

_STATES = {
    "IN_QUEUE": RemoteState.QUEUED,
    "IN_PROGRESS": RemoteState.RUNNING,
    "RUNNING": RemoteState.RUNNING,
    "COMPLETED": RemoteState.FINISHED,
    "FAILED": RemoteState.FAILED,
    "CANCELLED": RemoteState.CANCELLED,
    "TIMED_OUT": RemoteState.TIMED_OUT,
}


Model = TypeVar("Model", bound=BaseModel)
WEEK_SECONDS = 604_800
#: No key, no funds, no permission: RunPod processed nothing, and other requests fail alike.
_NOT_READY = {
    401: "RunPod refuses the API key (401)",
    402: "the RunPod account has no funds (402)",
    403: "the RunPod API key may not use the endpoint (403)",
}
TOO_MANY = 429
#: The pace of each verb, as a share of the pace in the settings. Of RunPod's base limits (run 100 a
#: second, status 200, cancel 10), the default pace of 50 uses half, a quarter and nine tenths. The
#: limits grow with an endpoint's workers (guide "Send API requests", rate limits).
_SHARES = {"run": 1.0, "status": 1.0, "cancel": 0.18, "health": 1.0}


class _Reply(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _RunReply(_Reply):
    id: ProviderJobId


class _StatusReply(_Reply):
    status: str
    output: Any = None
    error: Any = None
    #: Milliseconds.
    executionTime: int | None = None  # noqa: N815


class _HealthReply(_Reply):
    jobs: dict[str, int] = {}
    workers: dict[str, int] = {}


class RunPod:
    """Calls the endpoints of one account.

    Args:
        calls_per_second: the pace of `/run`; _SHARES has the other verbs'.
        on_call: called with the provider's name and each call's verb, outcome and seconds.

    Raises:
        ProviderUnreachable, ProviderUncertain, ProviderRefused: see errors.py.
    """

    name: ClassVar = "runpod"
    keeps_results_seconds: ClassVar = 1800.0
    calls_back: ClassVar = True
    bills_seconds: ClassVar = True
    remedy: ClassVar = "check RUNPOD_API_KEY, and RUNPOD_ENDPOINT_URL (without /run)"

    def __init__(
        self,
        http: httpx.AsyncClient,
        api_key: str,
        calls_per_second: float = 50.0,
        on_call: OnCall = unmeasured,
    ) -> None:
        self.on_call = on_call
        self._http = http
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._calls_per_second = calls_per_second
        self._breakers: dict[str, Breaker] = defaultdict(Breaker)
        self._paces: dict[tuple[str, str], Pace] = {}

    @property
    def breaker_open(self) -> bool:
        """Whether calls to any endpoint are held back."""
        return any(breaker.is_open for breaker in list(self._breakers.values()))

    def holds(self, target: str) -> bool:
        """Whether a call to the endpoint would be held back now."""
        return self._breakers[target].holds

    @measured
    async def submit(
        self, target: str, job: WorkerInput, deadlines: Deadlines, hook_url: str | None = None
    ) -> str:
        """Queues a job; returns RunPod's id for it.

        RunPod's default execution limit is 10 minutes, and its ttl counts from the submit.
        """
        policy = {
            "executionTimeout": deadlines.execution * 1000,
            "ttl": min(deadlines.ttl, WEEK_SECONDS) * 1000,
        }
        body: dict[str, Any] = {
            "input": job.model_dump(mode="json", exclude_none=True),
            "policy": policy,
        }
        if hook_url is not None:
            body["webhook"] = hook_url
        return _parsed(_RunReply, await self._send("POST", target, "/run", json=body)).id

    @measured
    async def status(self, target: str, provider_job_id: str) -> RemoteJob:
        """Returns RunPod's report about a job."""
        try:
            reply = await self._send("GET", target, f"/status/{provider_job_id}")
        except _NotFound:
            return RemoteJob(RemoteState.ABSENT)
        job = _parsed(_StatusReply, reply)
        state = _STATES.get(job.status)
        if state is None:
            raise ProviderUncertain(f"RunPod reports {job.status!r}, an unknown state")
        seconds = job.executionTime / 1000 if job.executionTime is not None else None
        error = None if job.error is None else str(job.error)
        return RemoteJob(state, job.output, error, seconds)

    @measured
    async def cancel(self, target: str, provider_job_id: str) -> None:
        """Asks RunPod to stop a job; an unknown job counts as stopped."""
        try:
            await self._send("POST", target, f"/cancel/{provider_job_id}")
        except _NotFound:
            return

    @measured
    async def health(self, target: str) -> Health:
        """Returns the endpoint's queue and workers."""
        reply = _parsed(_HealthReply, await self._send("GET", target, "/health"))
        workers = reply.workers
        return Health(
            jobs_queued=reply.jobs.get("inQueue", 0),
            jobs_running=reply.jobs.get("inProgress", 0),
            workers_idle=workers.get("idle", 0),
            workers_running=workers.get("running", 0),
            workers_ready=workers.get("ready", 0),
            workers_starting=workers.get("initializing", 0),
            workers_throttled=workers.get("throttled", 0),
            workers_unhealthy=workers.get("unhealthy", 0),
        )

    async def close(self) -> None:
        """Does nothing: the HTTP client belongs to the caller."""

    async def _send(self, method: str, target: str, path: str, json: Any = None) -> httpx.Response:
        breaker, pace = self._breakers[target], self._pace(target, path.split("/")[1])
        breaker.check()
        await pace.turn()
        try:
            reply = await self._http.request(
                method, target + path, json=json, headers=self._headers
            )
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            away = ProviderUnreachable(f"RunPod cannot be reached: {_words(error)}")
            breaker.failed(away)
            raise away from error
        except httpx.HTTPError as error:
            silent = ProviderUncertain(f"RunPod did not answer: {_words(error)}")
            breaker.failed(silent)
            raise silent from error
        if reply.status_code == TOO_MANY:
            pace.refused(_seconds(reply.headers.get("retry-after")))
        else:
            pace.accepted()
        try:
            checked = _checked(reply)
        except ProviderUncertain as error:
            breaker.failed(error)
            raise
        except ProviderNotReady as error:
            # For a submit, 404 means the endpoint; otherwise the job.
            if isinstance(error, _NotFound) and path != "/run":
                breaker.succeeded()
            else:
                breaker.failed(error)
            raise
        except ProviderError:
            breaker.succeeded()
            raise
        breaker.succeeded()
        return checked

    def _pace(self, target: str, verb: str) -> Pace:
        known = self._paces.get((target, verb))
        if known is None:
            known = self._paces[target, verb] = Pace(self._calls_per_second * _SHARES[verb])
        return known


class _NotFound(ProviderNotReady):
    """404: no such job, or, for a submit, no such endpoint."""


def _checked(reply: httpx.Response) -> httpx.Response:
    message = f"RunPod answered {reply.status_code}: {reply.text[:200]}"
    match reply.status_code:
        case 200 | 201 | 202:
            return reply
        case 404:
            raise _NotFound("RunPod has no such endpoint (404)")
        case code if code in _NOT_READY:
            raise ProviderNotReady(_NOT_READY[code])
        case code if code == TOO_MANY:
            raise ProviderPaced(message)
        case code if 400 <= code < 500:
            raise ProviderRefused(message)
        case _:
            raise ProviderUncertain(message)


def _parsed(model: type[Model], reply: httpx.Response) -> Model:
    try:
        return model.model_validate_json(reply.content)
    except ValidationError as error:
        raise ProviderUncertain(f"RunPod's answer is malformed: {reply.text[:200]}") from error


def _seconds(retry_after: str | None) -> float | None:
    """Reads a Retry-After in seconds; None where there is none, or a date."""
    digits = retry_after is not None and retry_after.isascii() and retry_after.isdecimal()
    return float(retry_after[:6]) if retry_after is not None and digits else None


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
