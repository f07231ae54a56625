"""What goes to RunPod: the endpoint's deployment, and what its Hub reads."""

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpu_worker.settings import Settings
from schemas.worker import WorkerInput
from tests.http_server import Quiet, serving

ROOT = Path(__file__).parents[1]
KEY, SECRET = "rpa_a-key-for-tests", "nobody-may-read-this"
BUCKET = {
    "R2_ENDPOINT": "https://account.r2.cloudflarestorage.com",
    "R2_ACCESS_KEY_ID": "an-access-key",
    "R2_SECRET_ACCESS_KEY": SECRET,
    "R2_BUCKET_NAME": "videos",
}
#: The fields of RunPod's REST API v2, by what they are in (its openapi.json, November 2026); it
#: refuses others with 422.
FIELDS = {
    "": {
        "name",
        "type",
        "image",
        "disk",
        "env",
        "registry",
        "gpu",
        "workers",
        "scaling",
        "timeout",
        "flashboot",
    },
    "gpu": {"pools", "count", "minCudaVersion", "allowedCudaVersions"},
    "workers": {"min", "max", "idleTimeout"},
    "scaling": {"type", "queueDelay"},
}
NEEDED = {"name", "type", "image", "gpu", "scaling"}


def objections(body, method):
    """What RunPod has against a body: fields that it does not know or miss, and values beyond its
    sets.
    """
    known = FIELDS | ({"": FIELDS[""] - {"type"}} if method == "PATCH" else {})
    wrong = {
        f"{part} {name}"
        for part, names in known.items()
        for name in set(body.get(part, {}) if part else body) - names
    }
    if method == "POST":
        wrong |= NEEDED - set(body) | ({"type"} if body.get("type") != "QUEUE" else set())
    gpu = body.get("gpu", {})
    if gpu.get("minCudaVersion") and gpu.get("allowedCudaVersions"):
        wrong.add("gpu: a floor and a set")
    if body.get("flashboot") not in ("OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"):
        wrong.add("flashboot")
    return wrong


class RunPod:
    """RunPod's REST API v2 as far as it is needed here."""

    def __init__(self):
        self.kept = {}
        self.calls = []

    def answer(self, method, path, key, body):
        self.calls.append(f"{method} {path}")
        if key != f"Bearer {KEY}":
            return 401, {"title": "Unauthorized", "status": 401, "detail": "invalid bearer token"}
        assert path.startswith("/v2/serverless")
        if method == "GET":
            return 200, {"endpoints": list(self.kept.values())}
        if wrong := objections(body, method):
            return 422, {"title": "Unprocessable Entity", "status": 422, "errors": sorted(wrong)}
        name = path.removeprefix("/v2/serverless").strip("/")
        if method == "POST":
            name = f"e{len(self.kept) + 1}"
            self.kept[name] = {"id": name}
        self.kept[name] |= body
        return 201 if method == "POST" else 200, self.kept[name]


@contextmanager
def served(runpod):
    class Handler(Quiet):
        def handle_any(self):
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            key = self.headers.get("authorization")
            status, told = runpod.answer(self.command, self.path, key, body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(told).encode())

        # The names that the server looks for.
        do_GET = do_POST = do_PATCH = handle_any  # noqa: N815

    with serving(Handler) as port:
        yield f"http://127.0.0.1:{port}/v2"


@pytest.fixture
def runpod():
    """A RunPod account with nothing in it."""
    return RunPod()


def deploy(folder, *words, **environment):
    command = [sys.executable, ROOT / "scripts" / "deploy_endpoint.py", *words]
    environment = {"PATH": os.environ["PATH"]} | environment
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_a_second_deployment_changes_the_first_and_adds_nothing(runpod, tmp_path):
    """The endpoint is found again by its name, also where RunPod has marked it, and what RunPod cut
    is set right.
    """
    with served(runpod) as url:
        run = {"RUNPOD_API_KEY": KEY} | BUCKET
        first = deploy(tmp_path, "you/worker:1", "--api", url, "--max-workers", "5", **run)
        assert first.stdout == "RUNPOD_ENDPOINT_URL=https://api.runpod.ai/v2/e1\n", first.stderr
        made = runpod.kept["e1"].copy()
        runpod.kept["e1"] |= {
            "name": "reelbroker -fb",
            "workers": {"min": 0, "max": 0},
            # As after seven idle days.
        }
        second = deploy(
            tmp_path,
            "you/worker:2",
            "--api",
            url,
            "--env",
            "REELBROKER_X264_CRF=20",
            "--gpu",
            "ADA_24",
            **run,
        )
    assert second.stdout == first.stdout, second.stderr
    assert "It had 0 workers at most" in second.stderr
    assert runpod.calls == [
        "GET /v2/serverless",
        "POST /v2/serverless",
        "GET /v2/serverless",
        "PATCH /v2/serverless/e1",
    ]
    env = BUCKET | {"REELBROKER_DEVICE": "cuda"}
    assert (made["type"], made["image"], made["env"], made["workers"]["max"]) == (
        "QUEUE",
        "you/worker:1",
        env,
        5,
    )
    changed = runpod.kept["e1"]
    assert (changed["image"], changed["env"]) == (
        "you/worker:2",
        env | {"REELBROKER_X264_CRF": "20"},
    )
    assert changed["gpu"] == {
        "pools": ["ADA_24"],
        "count": 1,
        "minCudaVersion": "13.0",
        "allowedCudaVersions": [],
    }
    assert (changed["workers"]["max"], changed["timeout"], changed["flashboot"]) == (
        3,
        7_200_000,
        "FLASHBOOT",
    )


def test_without_a_key_the_calls_are_printed_and_no_secret(tmp_path):
    """A dry run needs no account; it says what would be asked, and RunPod would take it."""
    run = deploy(tmp_path, "you/worker:1", "--registry-auth", "r1", "--no-flashboot", **BUCKET)
    calls = [json.loads(line) for line in run.stdout.splitlines()]
    assert [call["method"] for call in calls] == ["GET", "POST", "PATCH"]
    assert [objections(call["body"], call["method"]) for call in calls[1:]] == [set(), set()]
    assert calls[1]["body"]["env"]["R2_BUCKET_NAME"] == "videos"
    assert SECRET not in run.stdout
    assert "an-access-key" not in run.stdout


def test_what_stands_in_the_way_is_said(runpod, tmp_path):
    """A missing setting before anything is asked; RunPod's own words for what it refuses; two of
    one name.
    """
    run = {"RUNPOD_API_KEY": KEY} | BUCKET
    with served(runpod) as url:
        missing = deploy(tmp_path, "you/worker:1", "--api", url, RUNPOD_API_KEY=KEY)
        refused = deploy(
            tmp_path, "you/worker:1", "--api", url, **(run | {"RUNPOD_API_KEY": "wrong"})
        )
        runpod.kept = {name: {"id": name, "name": "reelbroker"} for name in ("e1", "e2")}
        double = deploy(tmp_path, "you/worker:1", "--api", url, **run)
    assert (missing.returncode, refused.returncode, double.returncode) == (2, 1, 1)
    assert "R2_ENDPOINT, R2_ACCESS_KEY_ID" in missing.stderr
    assert "GET /serverless: 401" in refused.stderr
    assert "2 endpoints named reelbroker" in double.stderr
    assert runpod.calls == ["GET /v2/serverless", "GET /v2/serverless"]


# ── the Hub ───────────────────────────────────────────────────────────────────────────────────────


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
        "runsOn",
        "containerDiskInGb",
        "gpuIds",
        "gpuCount",
        "allowedCudaVersions",
        "presets",
        "env",
    }
    assert config["runsOn"] == "GPU"
    assert re.fullmatch(r"[A-Z]+_\d+(_PRO)?(,[A-Z]+_\d+(_PRO)?)*", config["gpuIds"])


def test_the_hub_asks_for_settings_that_the_worker_has():
    """Each with a type, a name and a description; the defaults and presets are taken by the
    worker.
    """
    config = read("hub.json")["config"]
    fields = Settings.model_fields.values()
    known = {alias for field in fields if isinstance(alias := field.validation_alias, str)}
    kinds = {}
    fixed = {one["key"]: one["value"] for one in config["env"] if "value" in one}
    assert set(fixed) <= known
    for one in config["env"]:
        if one["key"] in fixed:
            continue
        asked = one["input"]
        assert one["key"] in known
        assert {"name", "type", "description"} <= set(asked)
        assert set(asked) <= {
            "name",
            "type",
            "description",
            "default",
            "required",
            "advanced",
            "options",
            "min",
            "max",
        }
        kinds[one["key"]] = asked["type"]
    assert set(BUCKET) <= set(kinds)
    assert set(kinds.values()) <= {"string", "number", "boolean"}
    assert len(kinds) + len(fixed) == len(config["env"])
    defaults = {
        one["key"]: str(one["input"]["default"])
        for one in config["env"]
        if "default" in one.get("input", {})
    }
    for preset in [{"name": "none", "defaults": {}}, *config["presets"]]:
        assert set(preset) == {"name", "defaults"}
        assert set(preset["defaults"]) <= set(kinds)
        Settings(
            **(
                BUCKET
                | fixed
                | defaults
                | {name: str(value) for name, value in preset["defaults"].items()}
            )
        )


def test_the_hubs_tests_are_jobs_that_the_worker_takes():
    """As from RunPod's console: without an attempt's token, and with where to write."""
    tests = read("tests.json")
    assert set(tests) == {"tests", "config"}
    for one in tests["tests"]:
        assert set(one) == {"name", "input", "timeout"}
        assert WorkerInput.model_validate(one["input"]).attempt_token is None
        # Milliseconds, and a cold start is among them.
        assert one["timeout"] >= 60_000
    config = tests["config"]
    assert set(config) == {"gpuTypeId", "gpuCount", "env", "allowedCudaVersions"}
    assert config["allowedCudaVersions"] == read("hub.json")["config"]["allowedCudaVersions"]
    Settings(**{one["key"]: one["value"] for one in config["env"]})
