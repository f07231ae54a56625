"""Modal's public client: translates its answers and exceptions to domain words.

jobs/decide.py decides what an answer means for a job. Facts of Modal's documentation: `spawn` takes
no idempotency key; results are kept for 7 days after the end; a queued and a running call are one
state; every function restarts a call whose container died, without end. The exceptions of each step
were observed on client 1.6.4.

The client connects with the first call. It has a thread and an event loop of its own. Most of its
calls have no deadline, so each step has one here. The registry imports this module only where the
settings name Modal: the client costs a quarter of a second and 17 MB.
"""

import asyncio
import os
import sys
from collections import defaultdict
from collections.abc import Awaitable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, ClassVar, TypeVar

import modal
from modal import exception

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
from broker.providers.measured import OnCall, measured, unmeasured
from broker.providers.pacing import Breaker, Pace
from schemas.worker import WorkerInput

T = TypeVar("T")
Function = modal.Function[Any, Any, Any]
Call = modal.FunctionCall[Any]
WEEK_SECONDS = 604_800.0
#: The deadlines of a look-up, which may connect first, and of any other step.
LOOK_UP_SECONDS, STEP_SECONDS = 15.0, 20.0
#: The pace of each verb. Modal documents no rate for a call; 2,000 calls may wait for a container.
CALLS_PER_SECOND = 50.0
#: How Modal's ids of function calls begin; the client refuses others with an error of its own.
_CALL = "fc-"
#: The client reads these at each call. A worker's answer in CBOR cannot name code. Where Modal
#: names a delay, the client must not sleep in our place.
os.environ.update({"MODAL_PAYLOAD_FORMAT": "cbor", "MODAL_MAX_THROTTLE_WAIT": "0"})

#: Set in the client's coroutines, which run in a copy of their caller's context.
_in_client: ContextVar[bool] = ContextVar("in_client", default=False)


def _refuse_pickled_names(event: str, _: Any) -> None:
    """Refuses pickles that name a class or a function, inside the client's calls."""
    if event == "pickle.find_class" and _in_client.get():
        raise RuntimeError("an answer of Modal is a pickle that names code")


sys.addaudithook(_refuse_pickled_names)


class Modal:
    """Calls the deployed functions of one workspace; a target is `modal:ENVIRONMENT/APP/FUNCTION`.

    Args:
        on_call: called with the provider's name and each call's verb, outcome and seconds.
        step_seconds: the deadline of each step after the look-up.

    Raises:
        ProviderUnreachable, ProviderUncertain, ProviderRefused: see errors.py.
    """

    name: ClassVar = "modal"
    keeps_results_seconds: ClassVar = WEEK_SECONDS
    calls_back: ClassVar = False
    bills_seconds: ClassVar = False
    remedy: ClassVar = (
        "check MODAL_TOKEN_ID, MODAL_TOKEN_SECRET and MODAL_ENVIRONMENT; scripts/deploy-modal "
        "deploys the function of REELBROKER_MODAL_APP and REELBROKER_MODAL_FUNCTION"
    )

    def __init__(
        self,
        token_id: str,
        token_secret: str,
        on_call: OnCall = unmeasured,
        look_up_seconds: float = LOOK_UP_SECONDS,
        step_seconds: float = STEP_SECONDS,
    ) -> None:
        self.on_call = on_call
        self._credentials = (token_id, token_secret)
        self._look_up_seconds, self._step_seconds = look_up_seconds, step_seconds
        self._client: modal.Client | None = None
        self._connecting = asyncio.Lock()
        self._failed_connections = 0
        self._functions: dict[str, Function] = {}
        self._breakers: dict[str, Breaker] = defaultdict(Breaker)
        self._paces = {verb: Pace(CALLS_PER_SECOND) for verb in ("submit", "status", "cancel")}

    @property
    def breaker_open(self) -> bool:
        """Whether calls to any function are held back."""
        return any(breaker.is_open for breaker in list(self._breakers.values()))

    def holds(self, target: str) -> bool:
        """Whether a call to the function would be held back now."""
        return self._breakers[target].holds

    async def close(self) -> None:
        """Closes the connection, if there is one."""
        if self._client is not None:
            # The process or the test ends; an error here is no news.
            with suppress(Exception):
                await self._within(self._step_seconds, self._client.close.aio())
            self._client = None

    @measured
    async def submit(
        self, target: str, job: WorkerInput, deadlines: Deadlines, hook_url: str | None = None
    ) -> str:
        """Queues a job; returns the id of its function call.

        Modal takes no deadlines: the worker keeps the one in the input, and the broker's clock
        bounds the wait for a worker.
        """
        await self._turn(target, "submit")
        function = await self._function(target)
        call = function.spawn.aio(job.model_dump(mode="json", exclude_none=True))
        try:
            spawned = await self._within(self._step_seconds, call)
        except Exception as error:
            self._functions.pop(target, None)
            raise self._reported(target, _spawn_error(error, target), "submit") from error
        self._answered(target, "submit")
        return spawned.object_id

    @measured
    async def status(self, target: str, provider_job_id: str) -> RemoteJob:
        """Returns Modal's report about a function call."""
        if not provider_job_id.startswith(_CALL):
            return RemoteJob(RemoteState.ABSENT)
        await self._turn(target, "status")
        call = modal.FunctionCall.from_id(provider_job_id, client=await self._connected(target))
        try:
            remote = await self._got(call)
        except ProviderError as error:
            raise self._reported(target, error, "status") from error
        self._answered(target, "status")
        return remote

    async def _got(self, call: Call) -> RemoteJob:
        try:
            value = await self._within(self._step_seconds, call.get.aio(timeout=0))
        except Exception as error:
            remote = _outcome(error)
            if remote is None:
                raise _read_error(error) from error
            if remote.state is RemoteState.FAILED and await self._is_cancelled(call):
                return RemoteJob(RemoteState.CANCELLED)
            return remote
        if isinstance(value, dict) and "error" in value:
            output = {name: value[name] for name in value if name != "error"}
            return RemoteJob(RemoteState.FAILED, output, str(value["error"]))
        return RemoteJob(RemoteState.FINISHED, value)

    async def _is_cancelled(self, call: Call) -> bool:
        """Whether a call without an output was cancelled: one error means that and others."""
        try:
            inputs = await self._within(self._step_seconds, call.get_call_graph.aio())
        except Exception as error:
            raise _read_error(error) from error
        mine = [one.status.name for one in inputs if one.function_call_id == call.object_id]
        return mine == ["TERMINATED"]

    @measured
    async def cancel(self, target: str, provider_job_id: str) -> None:
        """Asks Modal to stop a function call; an unknown one counts as stopped."""
        if not provider_job_id.startswith(_CALL):
            return
        await self._turn(target, "cancel")
        call = modal.FunctionCall.from_id(provider_job_id, client=await self._connected(target))
        try:
            await self._within(self._step_seconds, call.cancel.aio())
        except exception.NotFoundError:
            pass
        except Exception as error:
            raise self._reported(target, _read_error(error), "cancel") from error
        self._answered(target, "cancel")

    @measured
    async def health(self, target: str) -> Health:
        """Returns the function's queue and containers; those that start are not counted."""
        self._breakers[target].check()
        function = await self._function(target)
        try:
            stats = await self._within(self._step_seconds, function.get_current_stats.aio())
        except Exception as error:
            self._functions.pop(target, None)
            raise self._reported(target, _read_error(error)) from error
        self._answered(target)
        running = min(stats.num_running_inputs, stats.num_total_runners)
        return Health(
            jobs_queued=stats.backlog,
            jobs_running=stats.num_running_inputs,
            workers_idle=stats.num_total_runners - running,
            workers_running=running,
        )

    # ── connection ──────────────────────────────────────────────────────────────────────────────

    async def _connected(self, target: str) -> modal.Client:
        tried = self._failed_connections
        async with self._connecting:
            if self._failed_connections > tried:
                # Those that waited for a failed attempt must not each repeat it.
                raise ProviderUnreachable("Modal cannot be reached: the connection failed")
            if self._client is None or self._client.is_closed():
                self._functions.clear()
                connecting = modal.Client.from_credentials.aio(*self._credentials)
                try:
                    self._client = await self._within(self._look_up_seconds, connecting)
                except Exception as error:
                    self._failed_connections += 1
                    raise self._reported(target, _look_up_error(error, "")) from error
            return self._client

    async def _function(self, target: str) -> Function:
        """Looks a deployed function up, once."""
        client, known = await self._connected(target), self._functions.get(target)
        if known is not None:
            return known
        environment, app, name = target.removeprefix("modal:").split("/")
        function = modal.Function.from_name(app, name, environment_name=environment, client=client)
        try:
            await self._within(self._look_up_seconds, function.hydrate.aio())
        except Exception as error:
            raise self._reported(target, _look_up_error(error, target)) from error
        self._functions[target] = function
        return function

    async def _within(self, seconds: float, call: Awaitable[T]) -> T:
        """Awaits a step of the client; raises _Silent after so many seconds.

        `asyncio.timeout` raises the builtin TimeoutError, with which `get` means "no output yet".
        """
        token = _in_client.set(True)
        try:
            task = asyncio.ensure_future(call)
        finally:
            _in_client.reset(token)
        try:
            done, _ = await asyncio.wait({task}, timeout=seconds)
            if not done:
                raise _Silent(f"no answer within {seconds:g} s")
            return task.result()
        finally:
            task.cancel()

    # ── bounds ──────────────────────────────────────────────────────────────────────────────────

    async def _turn(self, target: str, verb: str) -> None:
        self._breakers[target].check()
        await self._paces[verb].turn()

    def _answered(self, target: str, verb: str | None = None) -> None:
        self._breakers[target].succeeded()
        if verb is not None:
            self._paces[verb].accepted()

    def _reported(
        self, target: str, error: ProviderError, verb: str | None = None
    ) -> ProviderError:
        """Counts an error for the breaker and the pace; returns the error."""
        if isinstance(error, ProviderPaced | ProviderRefused):
            self._breakers[target].succeeded()
        else:
            self._breakers[target].failed(error)
        if isinstance(error, ProviderPaced) and verb is not None:
            self._paces[verb].refused()
        return error


class _Silent(Exception):
    """Modal did not answer within our deadline."""


# ── the client's exceptions ─────────────────────────────────────────────────────────────────────


def _look_up_error(error: Exception, target: str) -> ProviderUnreachable:
    """Returns what a failed connection or look-up means: nothing was sent."""
    known = _not_ready(error, target)
    return known or ProviderUnreachable(f"Modal cannot be reached: {_words(error)}")


def _spawn_error(error: Exception, target: str) -> ProviderError:
    """Returns what a failed spawn means: answered, refused for good, or unknown."""
    refused = (exception.RequestSizeError, exception.SerializationError, exception.InvalidError)
    if isinstance(error, exception.ConflictError):
        return ProviderNotReady(f"Modal runs no calls of {_place(target)} at the moment")
    if isinstance(error, refused):
        return ProviderRefused(f"Modal refused the call: {_words(error)}")
    return _not_ready(error, target) or _paced(error) or _uncertain(error)


def _read_error(error: Exception) -> ProviderError:
    """Returns what a failed question or cancel means."""
    return _not_ready(error, "") or _paced(error) or _uncertain(error)


def _outcome(error: Exception) -> RemoteJob | None:
    """Returns what an exception of `get` reports about the call; None: it failed to report."""
    # The client's own TimeoutError is another class, the base of the next ones.
    if isinstance(error, TimeoutError):
        return RemoteJob(RemoteState.OPEN)
    if isinstance(error, exception.FunctionTimeoutError):
        return RemoteJob(RemoteState.TIMED_OUT)
    if isinstance(error, exception.OutputExpiredError | exception.NotFoundError):
        return RemoteJob(RemoteState.ABSENT)
    failed = exception.RemoteError, exception.InternalFailure, exception.ExecutionError
    if isinstance(error, (*failed, exception.DeserializationError)):
        return RemoteJob(RemoteState.FAILED, error=_words(error))
    return None


def _not_ready(error: Exception, target: str) -> ProviderNotReady | None:
    if isinstance(error, exception.AuthError):
        return ProviderNotReady("Modal refuses the token")
    if isinstance(error, exception.PermissionDeniedError):
        return ProviderNotReady("the Modal token may not use the environment")
    if isinstance(error, exception.NotFoundError):
        return ProviderNotReady(f"Modal has no {_place(target)}")
    return None


def _paced(error: Exception) -> ProviderPaced | None:
    if isinstance(error, exception.ResourceExhaustedError):
        return ProviderPaced(f"Modal takes no more calls: {_words(error)}")
    return None


def _uncertain(error: Exception) -> ProviderUncertain:
    return ProviderUncertain(f"Modal did not answer: {_words(error)}")


def _place(target: str) -> str:
    environment, _, function = target.removeprefix("modal:").partition("/")
    app, _, name = function.partition("/")
    return f"function {name} of the app {app} in the environment {environment}"


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
