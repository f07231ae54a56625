"""The doctor, on a real database and bucket, with an endpoint that is well, ill, or not there."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import structlog
from typer.testing import CliRunner

from broker.cli.main import cli
from broker.ops import doctor


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
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)


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
