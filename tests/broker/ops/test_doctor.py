"""The doctor, on a real database and bucket, with an endpoint that is well, ill, or not there."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import structlog
from typer.testing import CliRunner

from broker.cli.main import cli
from broker.jobs.model import Attempt
from broker.ops import doctor
from broker.store.engine import open_engine
from broker.store.jobs import JobStore
from tests.broker.modal_side import TOKEN, modal_server


@pytest.fixture
def database_url(tmp_path):
    return f"sqlite:///{tmp_path}/broker.db"


@pytest.fixture
def endpoint():
    """RunPod's /health, with what the test says of its workers."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(self.health).encode()
            self.send_response(200 if self.path == "/v2/e/health" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    Answer.health = {"jobs": {"inQueue": 0}, "workers": {"idle": 1, "ready": 1}}
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        Answer.url = f"http://127.0.0.1:{server.server_port}/v2/e"
        yield Answer
        server.shutdown()
        thread.join()


@pytest.fixture
def asks(settings, endpoint, monkeypatch):
    """Runs the doctor; returns its findings by what they are about."""
    made = settings()
    fields = type(made).model_fields
    for name in (
        "runpod_api_key",
        "r2_endpoint",
        "r2_access_key_id",
        "r2_secret_access_key",
        "r2_bucket_name",
        "database_url",
    ):
        value = getattr(made, name)
        plain = value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
        monkeypatch.setenv(fields[name].validation_alias, plain)
    monkeypatch.setenv("RUNPOD_ENDPOINT_URL", endpoint.url)

    def ask(code=0):
        result = CliRunner().invoke(cli, ["doctor", "--json"])
        assert result.exit_code == code, result.output
        return {found["what"]: found for found in json.loads(result.stdout)}

    yield ask
    structlog.reset_defaults()


@pytest.fixture
def no_worker(monkeypatch):
    """As on a machine without torch: asking it takes seconds."""
    found = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name == "torch" else found(name)
    )


def test_all_is_well(asks):
    """Down to the worker of this machine, which is asked itself; the probe is gone afterwards."""
    found = asks()
    assert all(one["ok"] for one in found.values()), found
    assert list(found) == [
        "database",
        "bucket",
        "bucket is private",
        "presigned URL",
        "runpod",
        "webhook",
        "worker on this machine",
    ]
    assert "1 workers up" in found["runpod"]["report"]
    assert "ffmpeg" in found["worker on this machine"]["report"]


@pytest.mark.parametrize(
    ("name", "value", "what", "remedy"),
    [
        ("R2_SECRET_ACCESS_KEY", "wrong", "bucket", "R2_SECRET_ACCESS_KEY"),
        ("R2_BUCKET_NAME", "nothing", "bucket", "R2_BUCKET_NAME"),
        ("R2_ENDPOINT", "http://127.0.0.1:9", "bucket", "R2_ENDPOINT"),
        ("RUNPOD_ENDPOINT_URL", "http://127.0.0.1:9/v2/e", "runpod", "RUNPOD_ENDPOINT_URL"),
        (
            "REELBROKER_DATABASE_URL",
            "sqlite:////nowhere/x.db",
            "database",
            "REELBROKER_DATABASE_URL",
        ),
        (
            "REELBROKER_DATABASE_URL",
            "postgresql://127.0.0.1:9/x",
            "database",
            "REELBROKER_DATABASE_URL",
        ),
        ("REELBROKER_PUBLIC_URL", "http://127.0.0.1:9", "webhook", "REELBROKER_PUBLIC_URL"),
    ],
)
def test_what_is_wrong_is_said_with_how_to_mend_it(
    asks, no_worker, monkeypatch, name, value, what, remedy
):
    """One thing is wrong, and one is said to be."""
    monkeypatch.setenv(name, value)
    found = asks(code=1)
    assert [one["what"] for one in found.values() if not one["ok"]] == [what]
    assert remedy in found[what]["remedy"]


@pytest.mark.parametrize(
    ("health", "remedy"),
    [
        ({"jobs": {"inQueue": 3}, "workers": {}}, "max workers 0"),
        ({"jobs": {}, "workers": {"unhealthy": 2}}, "logs"),
    ],
)
def test_an_endpoint_without_workers_is_ill(asks, no_worker, endpoint, health, remedy):
    """Scaled to zero while jobs wait, or with workers that cannot start."""
    endpoint.health = health
    assert remedy in asks(code=1)["runpod"]["remedy"]


@pytest.fixture
async def modal(tmp_path, monkeypatch):
    """Modal's server, and settings that name it beside RunPod."""
    folder = tmp_path / "modal"
    folder.mkdir()
    async with modal_server(folder) as served:
        monkeypatch.setenv("REELBROKER_PROVIDERS", "runpod,modal")
        monkeypatch.setenv("MODAL_TOKEN_ID", TOKEN[0])
        monkeypatch.setenv("MODAL_TOKEN_SECRET", TOKEN[1])
        yield served.server


async def test_each_provider_has_a_line(asks, no_worker, modal):
    """In the order of the settings."""
    found = await asyncio.to_thread(asks)
    assert [what for what in found if what in ("runpod", "modal")] == ["runpod", "modal"]
    assert found["modal"]["report"] == "0 workers up, 0 jobs queued"


@pytest.mark.parametrize(
    ("name", "value", "report"),
    [
        ("MODAL_TOKEN_SECRET", "as-wrong", "Modal refuses the token"),
        ("MODAL_ENVIRONMENT", "dev", "Modal has no function export of the app reelbroker"),
        ("REELBROKER_MODAL_APP", "other", "Modal has no function export of the app other"),
        ("REELBROKER_MODAL_FUNCTION", "old", "Modal has no function old of the app reelbroker"),
    ],
)
async def test_what_is_wrong_at_modal_is_named(
    asks, no_worker, modal, monkeypatch, name, value, report
):
    """Wrong token, another environment, an app that is not deployed, a renamed function."""
    monkeypatch.setenv(name, value)
    found = (await asyncio.to_thread(asks, 1))["modal"]
    assert report in found["report"]
    assert "MODAL_TOKEN_ID" in found["remedy"]
    assert "scripts/deploy-modal" in found["remedy"]


@pytest.mark.parametrize(
    ("provider", "target", "ok", "report"),
    [
        ("runpod", "http://127.0.0.1:9/v2/old", False, "2 open attempts at http://127.0.0.1:9"),
        ("modal", "modal:main/reelbroker/export", False, "no key for the provider 'modal'"),
    ],
)
def test_a_former_provider_that_still_has_attempts_is_named(
    asks, no_worker, settings, make_job, provider, target, ok, report
):
    """Its keys are needed until they have ended."""
    engine = open_engine(settings().database_url)
    store = JobStore(engine)
    for number in (1, 2):
        job = store.add(make_job(status="processing"))
        store.note(
            Attempt(
                token=f"{number}" * 32,
                job_id=job.id,
                number=1,
                state="submitted",
                provider=provider,
                target=target,
                created_at=1,
            )
        )
    ended = store.add(make_job(status="cancelled"))
    store.note(
        Attempt(
            token="3" * 32,
            job_id=ended.id,
            number=1,
            state="ended",
            provider=provider,
            target=target,
            created_at=1,
        )
    )
    engine.dispose()
    found = asks(code=1)[f"former {provider}"]
    assert (found["ok"], report in found["report"]) == (ok, True), found


def test_the_worker_is_asked_with_the_settings_of_the_file(asks, monkeypatch, tmp_path):
    """As `.env.example` says to keep them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("R2_BUCKET_NAME")
    (tmp_path / ".env").write_text("R2_BUCKET_NAME=reelbroker\n")
    assert asks()["worker on this machine"]["ok"]


def test_a_database_that_cannot_be_reached_is_a_finding(asks, no_worker, monkeypatch):
    """Like any other."""
    monkeypatch.setenv("REELBROKER_DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    assert not asks(code=1)["database"]["ok"]


def test_a_person_reads_a_line_each(asks, no_worker, monkeypatch):
    """What it is, what was seen, and below it what to do."""
    monkeypatch.setenv("R2_BUCKET_NAME", "nothing")
    result = CliRunner().invoke(cli, ["doctor"])
    lines = result.output.splitlines()
    assert result.exit_code == 1
    assert lines[0].startswith("ok  database")
    assert lines[1].startswith("no  bucket")
    assert "check R2_ENDPOINT" in lines[2]
