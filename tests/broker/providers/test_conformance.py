"""What every provider owes the engine: one suite for each provider, on a fake and on the real thing
where there is one.
"""

import contextlib
from dataclasses import dataclass

import httpx
import pytest

from broker.embedded.endpoint import EndpointConfig, create_endpoint
from broker.errors import ProviderHeld, ProviderNotReady
from broker.jobs.observation import RemoteState
from broker.jobs.policy import Deadlines
from broker.providers.base import Provider
from broker.providers.runpod import RunPod
from schemas.worker import WorkerInput
from tests.broker.modal_side import TARGET, modal_server
from tests.broker.provider import Provider as SteerableRunPod, Vague

JOB = WorkerInput(
    job_id="j1", user_id="u1", type="framing", input_key="a.mp4", attempt_token="0" * 32
)
DEADLINES = Deadlines(60, 120)


@dataclass
class Side:
    """A provider, and a place on it; `elsewhere` is a place that it does not have."""

    provider: Provider
    target: str
    elsewhere: str
    wrong_credentials: tuple[object, ...] = ("ak-wrong", "as-wrong")


@contextlib.asynccontextmanager
async def runpod_embedded(tmp_path):
    """RunPod's client against the embedded endpoint."""
    config = EndpointConfig(
        endpoint_id="embedded", api_key="runpod-key", database=tmp_path / "endpoint.db"
    )
    app = create_endpoint(config)
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope, receive, send):
            scope["state"] = dict(state or {})
            await app(scope, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(with_state)) as http:
            yield _runpod(http)


@contextlib.asynccontextmanager
async def runpod_fake(_):
    """RunPod's client against the fake that the engine's tests steer."""
    async with httpx.AsyncClient(transport=SteerableRunPod()) as http:
        yield _runpod(http)


@contextlib.asynccontextmanager
async def modal_fake(_):
    """The fake that stands for Modal in the engine's tests."""
    async with httpx.AsyncClient(transport=SteerableRunPod()) as http:
        yield _runpod(http, Vague)


def _runpod(http, kind=RunPod):
    urls = "http://runpod/v2/embedded", "http://runpod/v2/other"
    return Side(kind(http, "runpod-key"), *urls, wrong_credentials=(http, "wrong"))


@contextlib.asynccontextmanager
async def modal_embedded(tmp_path):
    """Modal's unmodified client against the embedded server."""
    async with modal_server(tmp_path) as served:
        yield Side(served.provider, TARGET, TARGET.replace("export", "other"))


@pytest.fixture(
    params=[runpod_fake, runpod_embedded, modal_fake, modal_embedded],
    ids=lambda side: side.__name__,
)
async def side(request, tmp_path):
    """Each provider in turn."""
    async with request.param(tmp_path) as side:
        yield side


async def test_a_submitted_job_waits_in_the_queue(side):
    """Submit gives an id that status knows, and health counts it."""
    job_id = await side.provider.submit(side.target, JOB, DEADLINES)
    waiting = (RemoteState.QUEUED, RemoteState.OPEN)
    assert (await side.provider.status(side.target, job_id)).state in waiting
    assert (await side.provider.health(side.target)).jobs_queued == 1


async def test_each_submit_is_a_job_of_its_own(side):
    """A provider draws the ids; the engine sees to it that nothing is sent twice."""
    ids = {await side.provider.submit(side.target, JOB, DEADLINES) for _ in range(3)}
    assert len(ids) == 3


async def test_a_cancelled_job_says_so(side):
    """Cancel can be asked for twice."""
    job_id = await side.provider.submit(side.target, JOB, DEADLINES)
    await side.provider.cancel(side.target, job_id)
    await side.provider.cancel(side.target, job_id)
    remote = await side.provider.status(side.target, job_id)
    assert (remote.state, remote.state.is_over) == (RemoteState.CANCELLED, True)


async def test_an_unknown_job_is_absent_not_failed(side):
    """The provider does not know it (any more): an answer, and no error; a cancel of it is carried
    out.
    """
    assert (await side.provider.status(side.target, "nobody")).state is RemoteState.ABSENT
    await side.provider.cancel(side.target, "nobody")


async def test_a_wrong_place_accepts_nothing(side):
    """The job may be sent again once the operator has set it right; calls are held until then."""
    assert not side.provider.holds(side.elsewhere)
    with pytest.raises(ProviderNotReady, match=r"has no (such endpoint|function other)"):
        await side.provider.submit(side.elsewhere, JOB, DEADLINES)
    assert side.provider.holds(side.elsewhere)


async def test_a_wrong_key_accepts_nothing(side):
    """The sentence names the key, and no word of the provider's own answer."""
    stranger = type(side.provider)(*side.wrong_credentials)
    with pytest.raises(ProviderNotReady, match=r"refuses the (API key|token)"):
        await stranger.submit(side.target, JOB, DEADLINES)
    with pytest.raises(ProviderHeld) as held:
        await stranger.submit(side.target, JOB, DEADLINES)
    assert isinstance(held.value.cause, ProviderNotReady)
    await stranger.close()


async def test_the_facts_of_a_provider_are_stated(side):
    """The engine asks a provider for these instead of its name."""
    assert side.provider.name.isidentifier()
    assert side.provider.keeps_results_seconds > 0
    assert isinstance(side.provider.calls_back, bool)
    assert isinstance(side.provider.bills_seconds, bool)
    assert side.provider.remedy
    assert side.provider.breaker_open is False
