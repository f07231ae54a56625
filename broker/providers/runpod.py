"""RunPod's public API on httpx: wire words to domain words and back, and nothing else.

With the embedded endpoint this is the only module that knows RunPod's words. It decides nothing: what an answer
means for a job is said in reconciler.py. Facts: RunPod documents no idempotency key for `/run`, keeps results for
30 minutes, answers 404 for expired and for unknown ids alike, and shows progress as `output` while a job runs.
`TIMED_OUT` means expired before pickup, failed to report back, or exceeded the limit (RunPod's guide, "Job states"). A
worker that counts as idle may be scaled down, and jobs stay in the queue beside it ("Troubleshooting").
"""

import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from broker.errors import (
    ProviderError,
    ProviderHeld,
    ProviderPaced,
    ProviderRefused,
    ProviderUncertain,
    ProviderUnreachable,
)
from broker.jobs.observation import Health, RemoteJob, RemoteState
from broker.jobs.policy import Deadlines
from broker.providers.base import ProviderJobId
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
T = TypeVar("T")
P = ParamSpec("P")
WEEK_SECONDS = 604_800
#: No key, no money, no right: the request was not looked at, and others fare no better.
_AWAY = {401, 402, 403}
TOO_MANY = 429
#: How often each verb is called, as a share of the pace in the settings. Of RunPod's base limits (run 100 a second,
#: status 200, cancel 10) the default pace of 50 then uses half, a quarter and nine tenths. All of them grow with an
#: endpoint's workers (RunPod's guide "Send API requests", rate limits).
_SHARES = {"run": 1.0, "status": 1.0, "cancel": 0.18, "health": 1.0}


class _Reply(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _RunReply(_Reply):
    id: ProviderJobId


class _StatusReply(_Reply):
    status: str
    output: Any = None
    error: Any = None
    executionTime: int | None = None  # noqa: N815  # RunPod's spelling, milliseconds


class _HealthReply(_Reply):
    jobs: dict[str, int] = {}
    workers: dict[str, int] = {}


def _told(
    call: Callable[Concatenate["RunPod", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["RunPod", P], Coroutine[Any, Any, T]]:
    """Calls `on_call` with each call of a method: its name, what came of it, and how long it took."""

    @wraps(call)
    async def made(self: "RunPod", /, *args: P.args, **kwargs: P.kwargs) -> T:
        began, outcome = time.monotonic(), "given_up"  # whoever asked did not wait
        try:
            answer = await call(self, *args, **kwargs)
            outcome = "ok"
            return answer
        except ProviderError as error:
            outcome = next(word for kind, word in _OUTCOMES.items() if isinstance(error, kind))
            raise
        finally:
            self._on_call(self.name, call.__name__, outcome, time.monotonic() - began)

    return made


#: What to call what came of a call, the narrower kinds first.
_OUTCOMES: dict[type[ProviderError], str] = {
    ProviderHeld: "held",
    ProviderPaced: "paced",
    ProviderUnreachable: "unreachable",
    ProviderUncertain: "uncertain",
    ProviderRefused: "refused",
}


class RunPod:
    """Talks to one account; each call says which endpoint, since a job is polled where it was sent.

    Raises:
        ProviderUnreachable, ProviderUncertain, ProviderRefused: see errors.py.
    """

    name: ClassVar = "runpod"
    keeps_results_seconds: ClassVar = 1800.0
    calls_back: ClassVar = True

    def __init__(
        self,
        http: httpx.AsyncClient,
        api_key: str,
        calls_per_second: float = 50.0,
        on_call: Callable[
            [str, str, str, float], None
        ] = lambda provider, action, outcome, seconds: None,
    ) -> None:
        self._on_call = on_call
        self._http = http
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._calls_per_second = calls_per_second
        self._breakers: dict[str, Breaker] = defaultdict(Breaker)
        self._paces: dict[tuple[str, str], Pace] = {}

    @property
    def breaker_open(self) -> bool:
        """Whether calls to any endpoint are held back."""
        return any(breaker.is_open for breaker in list(self._breakers.values()))

    @_told
    async def submit(
        self, target: str, job: WorkerInput, deadlines: Deadlines, hook_url: str | None = None
    ) -> str:
        """Queues a job and returns the provider's id for it.

        Both deadlines are sent: RunPod's own execution limit is 10 minutes, and its ttl counts from the submit.
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

    @_told
    async def status(self, target: str, provider_job_id: str) -> RemoteJob:
        """Returns what the provider says of a job now."""
        try:
            reply = await self._send("GET", target, f"/status/{provider_job_id}")
        except _NotFound:
            return RemoteJob(RemoteState.ABSENT)
        told = _parsed(_StatusReply, reply)
        state = _STATES.get(told.status)
        if state is None:
            raise ProviderUncertain(f"RunPod says {told.status!r}, a state that we do not know")
        seconds = told.executionTime / 1000 if told.executionTime is not None else None
        return RemoteJob(
            state, told.output, None if told.error is None else str(told.error), seconds
        )

    @_told
    async def cancel(self, target: str, provider_job_id: str) -> None:
        """Asks the provider to stop a job; one that it does not know is as good as stopped."""
        try:
            await self._send("POST", target, f"/cancel/{provider_job_id}")
        except _NotFound:
            return

    @_told
    async def health(self, target: str) -> Health:
        """Returns the endpoint's queue and workers."""
        told = _parsed(_HealthReply, await self._send("GET", target, "/health"))
        workers = told.workers
        return Health(
            jobs_queued=told.jobs.get("inQueue", 0),
            jobs_running=told.jobs.get("inProgress", 0),
            workers_idle=workers.get("idle", 0),
            workers_running=workers.get("running", 0),
            workers_ready=workers.get("ready", 0),
            workers_starting=workers.get("initializing", 0),
            workers_throttled=workers.get("throttled", 0),
            workers_unhealthy=workers.get("unhealthy", 0),
        )

    async def _send(self, method: str, target: str, path: str, json: Any = None) -> httpx.Response:
        breaker, pace = self._breakers[target], self._pace(target, path.split("/")[1])
        breaker.check()
        await pace.turn()
        try:
            reply = await self._http.request(
                method, target + path, json=json, headers=self._headers
            )
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            breaker.failed()
            raise ProviderUnreachable(f"RunPod cannot be reached: {_words(error)}") from error
        except httpx.HTTPError as error:
            breaker.failed()
            raise ProviderUncertain(f"RunPod did not answer: {_words(error)}") from error
        if reply.status_code in _AWAY or reply.status_code >= 500:
            breaker.failed()
        else:
            breaker.succeeded()
        if reply.status_code == TOO_MANY:
            pace.refused(_seconds(reply.headers.get("retry-after")))
        else:
            pace.accepted()
        return _checked(reply)

    def _pace(self, target: str, verb: str) -> Pace:
        known = self._paces.get((target, verb))
        if known is None:
            known = self._paces[target, verb] = Pace(self._calls_per_second * _SHARES[verb])
        return known


class _NotFound(ProviderUnreachable):
    """404: for a job an answer, for a submit a wrong endpoint id."""


def _checked(reply: httpx.Response) -> httpx.Response:
    told = f"RunPod answered {reply.status_code}: {reply.text[:200]}"
    match reply.status_code:
        case 200 | 201 | 202:
            return reply
        case 404:
            raise _NotFound(told)
        case code if code in _AWAY:
            raise ProviderUnreachable(told)
        case code if code == TOO_MANY:
            raise ProviderPaced(told)
        case code if 400 <= code < 500:
            raise ProviderRefused(told)
        case _:
            raise ProviderUncertain(told)


def _parsed(model: type[Model], reply: httpx.Response) -> Model:
    try:
        return model.model_validate_json(reply.content)
    except ValidationError as error:
        raise ProviderUncertain(f"RunPod's answer makes no sense: {reply.text[:200]}") from error


def _seconds(retry_after: str | None) -> float | None:
    """Reads a Retry-After in seconds; None where there is none, or a date."""
    digits = retry_after is not None and retry_after.isascii() and retry_after.isdecimal()
    return float(retry_after[:6]) if retry_after is not None and digits else None


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
