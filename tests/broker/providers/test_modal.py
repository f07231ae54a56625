"""What each answer and failure of Modal means: the unmodified client against the embedded server,
with faults planted between them.
"""

import asyncio
import pickle
import time

import cbor2
import pytest
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from broker.errors import (
    ProviderError,
    ProviderNotReady,
    ProviderPaced,
    ProviderRefused,
    ProviderUncertain,
    ProviderUnreachable,
)
from broker.jobs.observation import RemoteState
from broker.jobs.policy import Deadlines
from broker.providers.modal import Modal
from schemas.worker import WorkerInput
from tests.broker.modal_side import TARGET, TOKEN, modal_server

JOB = WorkerInput(
    job_id="j1", user_id="u1", type="framing", input_key="a.mp4", attempt_token="0" * 32
)
DEADLINES = Deadlines(60, 120)
RESULT = api_pb2.GenericResult


@pytest.fixture
async def served(tmp_path):
    """The server and a client with short deadlines."""
    async with modal_server(tmp_path, look_up_seconds=1.0, step_seconds=1.0) as served:
        yield served


def answering(rpc, error, after=False):
    """A fault: one rpc is answered with an error, before or after it was carried out."""

    async def fault(name, request, carry_out):
        if name != rpc:
            return await carry_out()
        if after:
            await carry_out()
        if isinstance(error, Status):
            raise GRPCError(error, "planted")
        return await error()

    return fault


async def silence():
    await asyncio.sleep(60)


async def submit(served):
    return await served.provider.submit(TARGET, JOB, DEADLINES)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (Status.UNAUTHENTICATED, ProviderNotReady),
        (Status.PERMISSION_DENIED, ProviderNotReady),
        (Status.NOT_FOUND, ProviderNotReady),
        (Status.FAILED_PRECONDITION, ProviderNotReady),
        (Status.INVALID_ARGUMENT, ProviderRefused),
        (Status.RESOURCE_EXHAUSTED, ProviderPaced),
        (Status.UNAVAILABLE, ProviderUncertain),
        (Status.INTERNAL, ProviderUncertain),
        (Status.UNKNOWN, ProviderUncertain),
        (Status.ABORTED, ProviderNotReady),
    ],
)
async def test_an_answer_to_a_spawn_says_whether_the_job_was_taken(served, status, expected):
    """Answered and not taken, refused for good, or unknown; the message names no secret."""
    served.server.fault = answering("FunctionMap", status)
    with pytest.raises(ProviderError) as caught:
        await submit(served)
    assert type(caught.value) is expected
    assert TOKEN[1] not in str(caught.value)
    served.server.fault = None
    if expected is not ProviderPaced and not served.provider.holds(TARGET):
        assert await submit(served)


async def test_a_spawn_that_was_carried_out_and_not_answered_is_uncertain(served):
    """Cut off after the request was read, or silent: the call may exist, so it is not repeated."""
    served.server.fault = answering("FunctionMap", silence, after=True)
    began = time.monotonic()
    with pytest.raises(ProviderUncertain, match="no answer within 1 s"):
        await submit(served)
    assert time.monotonic() - began < 6
    served.server.fault = None
    assert (await served.provider.health(TARGET)).jobs_queued == 1


async def test_a_line_that_is_cut_after_the_request_was_read_is_uncertain(served):
    """The client sends again by itself, on a new line; if that fails too, nobody knows."""

    async def cut(name, request, carry_out):
        if name != "FunctionMap":
            return await carry_out()
        await carry_out()
        served.server.cut()
        return await silence()

    served.server.fault = cut
    with pytest.raises(ProviderUncertain):
        await submit(served)
    served.server.fault = None
    assert (await served.provider.health(TARGET)).jobs_queued >= 1


@pytest.mark.parametrize("status", [Status.UNAVAILABLE, Status.INTERNAL])
async def test_a_failed_look_up_sent_nothing(served, status):
    """The job goes again."""
    served.server.fault = answering("FunctionGet", status)
    with pytest.raises(ProviderUnreachable):
        await submit(served)
    served.server.fault = None
    assert (await served.provider.status(TARGET, await submit(served))).state is RemoteState.OPEN


async def test_a_silent_look_up_ends_at_our_deadline(served):
    """The client has none of its own."""
    served.server.fault = answering("FunctionGet", silence)
    with pytest.raises(ProviderUnreachable, match="no answer within 1 s"):
        await submit(served)


async def test_a_server_that_is_away_is_unreachable_until_it_is_back(tmp_path, monkeypatch):
    """Nobody listens: our deadline ends it, and the breaker opens after five."""
    monkeypatch.setenv("MODAL_SERVER_URL", "http://127.0.0.1:9")
    provider = Modal(*TOKEN, look_up_seconds=0.3, step_seconds=0.3)
    for _ in range(5):
        with pytest.raises(ProviderUnreachable):
            await provider.submit(TARGET, JOB, DEADLINES)
    assert provider.holds(TARGET)
    assert not provider.holds("modal:main/other/export")
    await provider.close()


async def test_a_redeployed_function_is_looked_up_again(served):
    """Its id may be another one; the submit that met the old id took nothing."""
    await submit(served)
    served.server._deployed.app = "renamed"
    with pytest.raises(ProviderNotReady, match="has no function export of the app reelbroker"):
        await submit(served)
    served.server._deployed.app = "reelbroker"
    served.provider._breakers.clear()
    await submit(served)
    assert served.server.calls.count("FunctionGet") == 2


# ── what became of a call ───────────────────────────────────────────────────────────────────────


def outputs(**result):
    """A fault: FunctionGetOutputs answers with this result."""
    data_format = result.pop("data_format", api_pb2.DATA_FORMAT_CBOR)

    async def answer():
        reply = api_pb2.FunctionGetOutputsResponse(idxs=[0])
        reply.outputs.add(result=RESULT(**result), idx=0, data_format=data_format)
        return reply

    return answering("FunctionGetOutputs", answer)


async def expired():
    return api_pb2.FunctionGetOutputsResponse(num_unfinished_inputs=0)


SUCCESS = RESULT.GENERIC_STATUS_SUCCESS
FAILURE = RESULT.GENERIC_STATUS_FAILURE


@pytest.mark.parametrize(
    ("fault", "state"),
    [
        (outputs(status=SUCCESS, data=cbor2.dumps({"output_key": "x"})), RemoteState.FINISHED),
        (
            outputs(status=SUCCESS, data=cbor2.dumps({"error": "no", "error_code": "internal"})),
            RemoteState.FAILED,
        ),
        (outputs(status=RESULT.GENERIC_STATUS_TIMEOUT), RemoteState.TIMED_OUT),
        (outputs(status=RESULT.GENERIC_STATUS_INIT_FAILURE), RemoteState.FAILED),
        (outputs(status=RESULT.GENERIC_STATUS_INTERNAL_FAILURE), RemoteState.FAILED),
        (outputs(status=FAILURE, exception="KeyError('x')"), RemoteState.FAILED),
        (answering("FunctionGetOutputs", expired), RemoteState.ABSENT),
        (answering("FunctionGetOutputs", Status.NOT_FOUND), RemoteState.ABSENT),
    ],
    ids=["result", "failure", "timeout", "start", "internal", "exception", "expired", "unknown"],
)
async def test_what_became_of_a_call(served, fault, state):
    """Each word of Modal in ours; "expired" and "unknown" are both absent."""
    call_id = await submit(served)
    served.server.fault = fault
    remote = await served.provider.status(TARGET, call_id)
    assert remote.state is state
    if "error_code" in (remote.output or {}):
        assert (remote.error, remote.output) == ("no", {"error_code": "internal"})


async def test_a_call_that_was_cancelled_elsewhere_is_cancelled(served):
    """In Modal's console: the client's error is the same as for a failure, so the graph decides."""
    call_id = await submit(served)
    other = await submit(served)
    await served.provider.cancel(TARGET, call_id)
    assert (await served.provider.status(TARGET, call_id)).state is RemoteState.CANCELLED
    assert (await served.provider.status(TARGET, other)).state is RemoteState.OPEN


RAN: list[str] = []


class Hostile:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return (RAN.append, ("unpickled",))


@pytest.mark.parametrize(
    "sent", [SystemExit(3), TimeoutError("not pending"), Hostile()], ids=["exit", "timeout", "code"]
)
@pytest.mark.parametrize("status", [SUCCESS, FAILURE])
async def test_a_workers_pickle_is_never_loaded(served, sent, status):
    """With a pickle, a worker could raise its own exception in the broker, or run code there."""
    call_id = await submit(served)
    pickled = api_pb2.DATA_FORMAT_PICKLE
    served.server.fault = outputs(status=status, data=pickle.dumps(sent), data_format=pickled)
    remote = await served.provider.status(TARGET, call_id)
    assert (remote.state, RAN) == (RemoteState.FAILED, [])
    # Elsewhere in the process, pickles are as they were.
    assert pickle.loads(pickle.dumps(SystemExit(3))).code == 3


@pytest.mark.parametrize("rpc", ["FunctionGetOutputs", "FunctionCallCancel"])
async def test_a_question_without_an_answer_is_uncertain(served, rpc):
    """Silence and 5xx alike; the next one may succeed."""
    call_id = await submit(served)
    asked = served.provider.cancel if rpc == "FunctionCallCancel" else served.provider.status
    for error in (silence, Status.INTERNAL):
        served.server.fault = answering(rpc, error)
        with pytest.raises(ProviderUncertain):
            await asked(TARGET, call_id)
    served.server.fault = None
    await asked(TARGET, call_id)


async def test_what_the_broker_counts(served):
    """Each call once, with its outcome; and containers that start are not reported."""
    seen = []
    served.provider.on_call = lambda *call: seen.append(call[:3])
    await submit(served)
    health = await served.provider.health(TARGET)
    assert seen == [("modal", "submit", "ok"), ("modal", "health", "ok")]
    assert (health.jobs_queued, health.workers_up, health.workers_starting) == (1, 0, None)
