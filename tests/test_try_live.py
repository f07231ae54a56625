"""scripts/try-live on the embedded stack: every fact is as assumed, each deviation is found."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from broker.bucket import open_bucket
from broker.jobs.observation import Health, RemoteJob, RemoteState
from broker.providers.modal import Modal
from broker.providers.runpod import RunPod
from broker.settings import Settings
from schemas.worker import Fallback
from tests.stack_thread import StackThread

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from live_facts import Lab, clean, facts, found, prepare

FACTS = {fact.name: fact for fact in facts(("runpod", "modal"))}


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """One stack with both providers."""
    folder = tmp_path_factory.mktemp("live").resolve()
    with StackThread(folder, providers=["runpod", "modal"]) as stack:
        yield stack


class Planted(httpx.AsyncHTTPTransport):
    """Carries requests, and changes the answers."""

    def __init__(self, change):
        super().__init__()
        self._change = change

    async def handle_async_request(self, request):
        reply = await super().handle_async_request(request)
        await reply.aread()
        return self._change(request, reply) or reply


@pytest.fixture
async def lab(stack, clip, monkeypatch):
    """Makes labs; `change` plants a deviation into the answers of R2 and RunPod."""
    environment = stack.stack._broker_command()[1]
    monkeypatch.setenv("MODAL_SERVER_URL", environment["MODAL_SERVER_URL"])
    settings = Settings.model_validate(environment)
    made = []

    def make(change=lambda request, reply: None):
        http = httpx.AsyncClient(transport=Planted(change), timeout=30)
        modal = Modal(settings.modal_token_id, settings.modal_token_secret.get_secret_value())
        key = settings.runpod_api_key.get_secret_value()
        providers = {
            "runpod": (RunPod(http, key), settings.runpod_endpoint_url),
            "modal": (modal, "modal:main/reelbroker/export"),
        }
        lab = Lab(http, open_bucket(settings), providers, key, clip)
        made.append(lab)
        return lab

    yield make
    for lab in made:
        await clean(lab)
        await lab.providers["modal"][0].close()
        await lab.http.aclose()


async def test_every_fact_is_as_assumed_on_the_embedded_stack(lab, measured):
    """And nothing stays in the bucket."""
    made = lab()
    await prepare(made)
    results = {name: await found(made, fact) for name, fact in FACTS.items()}
    assert [name for name in FACTS if not FACTS[name].is_as_assumed(results[name])] == []
    assert await clean(made) > 0
    assert list(made.bucket.listed(f"{made.user}/")) == []
    measured(f"try-live: {len(results)} of {len(FACTS)} facts as assumed on the embedded stack")


def status(number, **headers):
    """Answers each request to R2 or RunPod with a status of its own."""
    return lambda request, reply: httpx.Response(number, headers=headers, request=request)


def instead(path, **fields):
    """Changes fields of a JSON answer; None removes one."""

    def change(request, reply):
        if path not in request.url.path:
            return None
        body = json.loads(reply.content) | fields
        kept = {name: value for name, value in body.items() if value is not None}
        return httpx.Response(200, json=kept, request=request)

    return change


def running_without_progress(request, reply):
    is_running = b"IN_PROGRESS" in reply.content and "/status/" in request.url.path
    return instead("/status/", output=None)(request, reply) if is_running else None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("r2-once", status(200)),
        ("r2-length", status(200)),
        ("r2-type", status(200)),
        ("r2-missing", status(403)),
        ("r2-unsigned", status(200)),
        ("r2-range", status(200)),
        ("r2-week", status(400)),
        ("runpod-key", status(403)),
        ("runpod-endpoint", status(401)),
        ("runpod-status", status(400)),
        ("runpod-unknown-cancel", status(200)),
        ("runpod-policy", status(400)),
        ("runpod-counted", instead("/health", jobs={"inQueue": 0, "inProgress": 0})),
        ("runpod-cancel", instead("/status/", status="COMPLETED")),
        ("runpod-429", status(429, **{"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"})),
        ("runpod-run", instead("/status/", executionTime=None)),
        ("runpod-progress", running_without_progress),
    ],
)
async def test_a_deviation_over_http_is_found(lab, name, change):
    """The store or RunPod answers otherwise than assumed."""
    made = lab(change)
    await prepare(made)
    assert not FACTS[name].is_as_assumed(await found(made, FACTS[name]))


class Deviating:
    """A provider that answers otherwise in one method."""

    def __init__(self, inner, **methods):
        self._inner, self._methods = inner, methods

    def __getattr__(self, name):
        if name not in self._methods:
            return getattr(self._inner, name)

        async def answer(*_, **__):
            planted = self._methods[name]
            if isinstance(planted, Exception):
                raise planted
            return planted

        return answer


IDLE = Health(0, 0, 1, 0)


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("modal-function", {"health": IDLE}),
        ("modal-unknown", {"status": RemoteJob(RemoteState.FAILED)}),
        ("modal-unknown-cancel", {"cancel": httpx.ReadTimeout("silent")}),
        ("modal-large", {"submit": httpx.ReadTimeout("silent")}),
        ("modal-counted", {"health": IDLE}),
        ("modal-cancel", {"status": RemoteJob(RemoteState.FAILED, error="RemoteError")}),
        ("modal-run", {"status": RemoteJob(RemoteState.FAILED, error="RemoteError")}),
    ],
)
async def test_a_deviation_of_modal_is_found(lab, name, methods):
    """Modal answers otherwise than assumed."""
    made = lab()
    await prepare(made)
    provider, target = made.providers["modal"]
    made.providers["modal"] = (Deviating(provider, **methods), target)
    assert not FACTS[name].is_as_assumed(await found(made, FACTS[name]))


async def test_a_deviation_of_a_run_is_found(lab):
    """The worker wrote another id, or could not use the card's encoder; Modal forgot the result."""
    made = lab()
    await prepare(made)
    for provider in ("runpod", "modal"):
        await found(made, FACTS[f"{provider}-run"])
        ran = made.runs[provider]
        other = ran.started.model_copy(update={"runpod_job_id": "another"})
        slow = ran.result.model_copy(update={"fallbacks": (Fallback(codec="encoder"),)})
        for planted, names in (
            (replace(ran, started=other), ["adopt"]),
            (replace(ran, result=slow), ["card"]),
            (replace(ran, remote=RemoteJob(RemoteState.FINISHED, {"other": 1})), ["again"]),
        ):
            made.runs[provider] = planted
            for name in names:
                fact = FACTS.get(f"{provider}-{name}")
                assert fact is None or not fact.is_as_assumed(await found(made, fact)), fact.name


def test_each_fact_has_a_planted_deviation():
    """No row is assumed without a test of its probe."""
    marks = [
        *test_a_deviation_over_http_is_found.pytestmark,
        *test_a_deviation_of_modal_is_found.pytestmark,
    ]
    planted = {row[0] for mark in marks if mark.name == "parametrize" for row in mark.args[1]}
    planted |= {
        f"{provider}-{name}" for provider in ("runpod", "modal") for name in ("adopt", "card")
    }
    assert planted | {"modal-again"} == set(FACTS)
