"""RunPod's wire words and ours, and answers gone wrong."""

import httpx
import pytest

from broker.errors import ProviderPaced, ProviderRefused, ProviderUncertain, ProviderUnreachable
from broker.jobs.observation import RemoteState
from broker.jobs.policy import Deadlines
from broker.providers.runpod import RunPod
from schemas.worker import WorkerInput
from tests.broker.provider import Provider

URL = "http://runpod/v2/embedded"
JOB = WorkerInput(
    job_id="j1", user_id="u1", type="framing", input_key="a.mp4", attempt_token="0" * 32
)


async def test_both_deadlines_are_sent_in_milliseconds():
    """RunPod counts ttl from the submit, so it covers queue and run."""
    provider = Provider()
    async with httpx.AsyncClient(transport=provider) as http:
        await RunPod(http, "runpod-key").submit(URL, JOB, Deadlines(60, 660))
    assert provider.only()["sent"]["policy"] == {"executionTimeout": 60_000, "ttl": 660_000}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param(httpx.ConnectError("refused"), ProviderUnreachable, id="connection-refused"),
        pytest.param(httpx.ConnectTimeout("slow"), ProviderUnreachable, id="connect-timeout"),
        pytest.param(httpx.Response(429), ProviderPaced, id="429"),
        pytest.param(httpx.Response(401), ProviderUnreachable, id="401"),
        pytest.param(httpx.ReadTimeout("slow"), ProviderUncertain, id="read-timeout"),
        pytest.param(httpx.RemoteProtocolError("cut"), ProviderUncertain, id="cut-off"),
        pytest.param(httpx.Response(500), ProviderUncertain, id="500"),
        pytest.param(httpx.Response(200, text="<html>"), ProviderUncertain, id="no-json"),
        pytest.param(
            httpx.Response(200, json={"status": "IN_QUEUE"}), ProviderUncertain, id="no-id"
        ),
        pytest.param(httpx.Response(200, json={"id": "../x"}), ProviderUncertain, id="hostile-id"),
        pytest.param(httpx.Response(400), ProviderRefused, id="400"),
    ],
)
async def test_a_submit_tells_not_sent_from_not_known(answer, error):
    """What may be repeated and what must not be is told apart."""

    def say(request):
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with httpx.AsyncClient(transport=httpx.MockTransport(say)) as http:
        with pytest.raises(error):
            await RunPod(http, "k").submit(URL, JOB, Deadlines(60, 120))


async def test_429_of_one_verb_leaves_the_others_alone():
    """However often cancels are refused: submits go, and no breaker opens. The next cancel waits
    for its turn.
    """

    def say(request):
        if "/cancel/" in request.url.path:
            return httpx.Response(429, headers={"Retry-After": "5"})
        return httpx.Response(200, json={"id": "a", "status": "IN_QUEUE"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(say)) as http:
        outcomes = []
        runpod = RunPod(
            http, "k", 50, lambda name, action, outcome, seconds: outcomes.append((action, outcome))
        )
        for _ in range(20):
            with pytest.raises(ProviderPaced):
                await runpod.cancel(URL, "a")
        assert not runpod.breaker_open
        assert await runpod.submit(URL, JOB, Deadlines(60, 120)) == "a"
    assert outcomes == [("cancel", "paced")] * 20 + [("submit", "ok")]


async def test_the_idle_are_counted_without_those_at_work():
    """`ready` counts both: what is up is the larger of the two sums."""
    workers = {"idle": 0, "ready": 3, "running": 3}
    transport = httpx.MockTransport(
        lambda _: httpx.Response(200, json={"jobs": {}, "workers": workers})
    )
    async with httpx.AsyncClient(transport=transport) as http:
        health = await RunPod(http, "k").health(URL)
    assert (health.workers_idle, health.workers_up) == (0, 3)


async def test_a_state_that_we_do_not_know_decides_nothing():
    """A new word of RunPod's is an uncertainty, not an end."""
    transport = httpx.MockTransport(
        lambda _: httpx.Response(200, json={"id": "a", "status": "HIBERNATING"})
    )
    async with httpx.AsyncClient(transport=transport) as http:
        with pytest.raises(ProviderUncertain, match="HIBERNATING"):
            await RunPod(http, "k").status(URL, "a")


async def test_what_a_failed_job_says_is_passed_on():
    """Error, output beside it, and the seconds that it cost."""
    body = {
        "id": "a",
        "status": "FAILED",
        "error": "x",
        "output": {"error_code": "internal"},
        "executionTime": 1500,
    }
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=body))
    async with httpx.AsyncClient(transport=transport) as http:
        job = await RunPod(http, "k").status(URL, "a")
    assert (job.state, job.error, job.output, job.execution_seconds) == (
        RemoteState.FAILED,
        "x",
        {"error_code": "internal"},
        1.5,
    )
