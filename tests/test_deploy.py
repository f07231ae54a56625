"""What goes to RunPod: the endpoint's deployment, and what its Hub reads."""

import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from gpu_worker.settings import Settings
from schemas.worker import WorkerInput

ROOT = Path(__file__).parents[1]
KEY, SECRET = "rpa_a-key-for-tests", "nobody-may-read-this"
BUCKET = {
    "R2_ENDPOINT": "https://account.r2.cloudflarestorage.com",
    "R2_ACCESS_KEY_ID": "an-access-key",
    "R2_SECRET_ACCESS_KEY": SECRET,
    "R2_BUCKET_NAME": "videos",
}
TEMPLATE = {"name", "imageName", "containerDiskInGb", "env", "containerRegistryAuthId"}
ENDPOINT = {
    "name", "templateId", "gpuTypeIds", "gpuCount", "allowedCudaVersions", "workersMin", "workersMax", "idleTimeout",
    "executionTimeoutMs", "flashboot", "scalerType", "scalerValue",
}  # fmt: skip
#: By kind: the fields that may be sent at any time, and those that only a new one takes.
FIELDS = {"templates": (TEMPLATE, {"category", "isServerless"}), "endpoints": (ENDPOINT, {"computeType"})}


class RunPod:
    """RunPod's REST API as far as it is needed here: it knows its fields, and refuses others."""

    def __init__(self):
        self.kept = {"templates": {}, "endpoints": {}}
        self.calls = []

    def answer(self, method, path, key, query, body):
        self.calls.append(f"{method} {path}")
        if key != f"Bearer {KEY}":
            return 401, {"error": "unauthorized"}
        kind, _, name = path.removeprefix("/v1/").partition("/")
        always, only_new = FIELDS[kind]
        if unknown := set(body) - always - (only_new if method == "POST" else set()):
            return 400, {"error": f"unknown: {unknown}"}
        return self._kept(method, kind, name, query, body)

    def _kept(self, method, kind, name, query, body):
        kept = self.kept[kind]
        if method == "GET":
            used = {one["templateId"] for one in self.kept["endpoints"].values()}
            hides = kind == "templates" and query.get("includeEndpointBoundTemplates") != ["true"]
            return 200, [one for one in kept.values() if not (hides and one["id"] in used)]
        if method == "POST":
            name = f"{kind[0]}{len(kept) + 1}"
            mark = " -fb" if body.get("flashboot") else ""
            kept[name] = body | {"id": name, "name": body["name"] + mark}
            return 201, kept[name]
        if name not in kept:
            return 404, {"error": "no such id"}
        kept[name] |= body
        return 200, kept[name]


@contextmanager
def served(runpod):
    class Handler(BaseHTTPRequestHandler):
        def handle_any(self):
            length = int(self.headers.get("content-length") or 0)
            url = urlsplit(self.path)
            body = json.loads(self.rfile.read(length)) if length else {}
            key = self.headers.get("authorization")
            status, told = runpod.answer(self.command, url.path, key, parse_qs(url.query), body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(told).encode())

        do_GET = do_POST = do_PATCH = handle_any  # noqa: N815  # the names that the server looks for

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@pytest.fixture
def runpod():
    """A RunPod account with nothing in it."""
    return RunPod()


def deploy(folder, *words, **environment):
    command = [sys.executable, ROOT / "scripts" / "deploy_endpoint.py", *words]
    environment = {"PATH": os.environ["PATH"]} | environment
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_second_deployment_changes_the_first_and_adds_nothing(runpod, tmp_path):
    """Template and endpoint are found again by name, also where RunPod has marked it, and what it cut is set right."""
    with served(runpod) as url:
        run = {"RUNPOD_API_KEY": KEY} | BUCKET
        first = deploy(tmp_path, "you/worker:1", "--api", url, "--max-workers", "5", **run)
        assert first.stdout == "RUNPOD_ENDPOINT_URL=https://api.runpod.ai/v2/e1\n", first.stderr
        runpod.kept["endpoints"]["e1"]["workersMax"] = 0  # as after seven idle days
        second = deploy(tmp_path, "you/worker:2", "--api", url, "--env", "REELBROKER_X264_CRF=20", **run)
    assert second.stdout == first.stdout, second.stderr
    assert "It had 0 workers at most" in second.stderr
    made = ["GET /v1/templates", "POST /v1/templates", "GET /v1/endpoints", "POST /v1/endpoints"]
    changed = ["GET /v1/templates", "PATCH /v1/templates/t1", "GET /v1/endpoints", "PATCH /v1/endpoints/e1"]
    assert runpod.calls == made + changed
    (template,), (endpoint,) = runpod.kept["templates"].values(), runpod.kept["endpoints"].values()
    assert template["imageName"] == "you/worker:2"
    assert template["env"] == BUCKET | {"REELBROKER_X264_CRF": "20"}
    assert (endpoint["templateId"], endpoint["workersMax"], endpoint["executionTimeoutMs"]) == (
        "t1",
        3,
        7_200_000,
    )


def test_without_a_key_the_calls_are_printed_and_no_secret(tmp_path):
    """A dry run needs no account; it says what a first deployment would ask."""
    run = deploy(tmp_path, "you/worker:1", **BUCKET)
    calls = [json.loads(line) for line in run.stdout.splitlines()]
    assert [call["method"] for call in calls] == ["GET", "POST", "GET", "POST"]
    for call in calls[1::2]:
        always, only_new = FIELDS[call["path"][1:]]
        assert set(call["body"]) <= always | only_new
    assert calls[1]["body"]["env"]["R2_BUCKET_NAME"] == "videos"
    assert SECRET not in run.stdout
    assert "an-access-key" not in run.stdout


def test_what_stands_in_the_way_is_said(runpod, tmp_path):
    """A missing setting before anything is asked; RunPod's own words for what it refuses."""
    with served(runpod) as url:
        missing = deploy(tmp_path, "you/worker:1", "--api", url, RUNPOD_API_KEY=KEY)
        refused = deploy(tmp_path, "you/worker:1", "--api", url, RUNPOD_API_KEY="wrong", **BUCKET)
    assert (missing.returncode, refused.returncode) == (2, 1)
    assert "R2_ENDPOINT, R2_ACCESS_KEY_ID" in missing.stderr
    assert "GET /templates: 401" in refused.stderr
    assert runpod.calls == ["GET /v1/templates"]


# ── the Hub ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def read(name):
    return json.loads((ROOT / ".runpod" / name).read_text())


def test_the_hub_finds_what_it_wants():
    """Handler, Dockerfile, and a card with every field that it knows and no other."""
    assert (ROOT / ".runpod" / "Dockerfile").read_bytes() == (ROOT / "Dockerfile.gpu").read_bytes()
    assert (ROOT / ".runpod" / "handler.py").exists()
    hub = read("hub.json")
    assert set(hub) == {"title", "description", "type", "category", "iconUrl", "config"}
    assert (hub["type"], hub["category"]) == ("serverless", "video")
    config = hub["config"]
    assert set(config) == {
        "runsOn", "containerDiskInGb", "gpuIds", "gpuCount", "allowedCudaVersions", "presets", "env",
    }  # fmt: skip
    assert config["runsOn"] == "GPU"
    assert re.fullmatch(r"[A-Z]+_\d+(_PRO)?(,[A-Z]+_\d+(_PRO)?)*", config["gpuIds"])


def test_the_hub_asks_for_settings_that_the_worker_has():
    """Each with a type, a name and a description; the defaults and presets are taken by the worker."""
    config = read("hub.json")["config"]
    known = {field.validation_alias for field in Settings.model_fields.values()}
    kinds = {}
    for one in config["env"]:
        asked = one["input"]
        assert one["key"] in known
        assert {"name", "type", "description"} <= set(asked)
        assert set(asked) <= {
            "name", "type", "description", "default", "required", "advanced", "options", "min", "max",
        }  # fmt: skip
        kinds[one["key"]] = asked["type"]
    assert set(BUCKET) <= set(kinds)
    assert set(kinds.values()) <= {"string", "number", "boolean"}
    assert len(kinds) == len(config["env"])
    defaults = {
        one["key"]: str(one["input"]["default"]) for one in config["env"] if "default" in one["input"]
    }
    for preset in [{"name": "none", "defaults": {}}, *config["presets"]]:
        assert set(preset) == {"name", "defaults"}
        assert set(preset["defaults"]) <= set(kinds)
        Settings(**(BUCKET | defaults | {name: str(value) for name, value in preset["defaults"].items()}))


def test_the_hubs_tests_are_jobs_that_the_worker_takes():
    """As from RunPod's console: without an attempt's token, and with where to write."""
    tests = read("tests.json")
    assert set(tests) == {"tests", "config"}
    for one in tests["tests"]:
        assert set(one) == {"name", "input", "timeout"}
        assert WorkerInput.model_validate(one["input"]).attempt_token is None
        assert one["timeout"] >= 60_000  # milliseconds, and a cold start is among them
    config = tests["config"]
    assert set(config) == {"gpuTypeId", "gpuCount", "env", "allowedCudaVersions"}
    assert config["allowedCudaVersions"] == read("hub.json")["config"]["allowedCudaVersions"]
    Settings(**{one["key"]: one["value"] for one in config["env"]})
