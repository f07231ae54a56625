"""The endpoint over real HTTP, with the unmodified SDK's worker loop on its other side."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from broker.embedded.endpoint import worker_environment
from broker.embedded.ports import free_ports

KEY = "endpoint-key"
HANDLER = """
import asyncio, runpod
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules.rp_http import send_result

async def handler(job):
    asked = job["input"]
    if "progress" in asked:
        async with AsyncClientSession() as session:
            await send_result(session, {"status": "IN_PROGRESS", "output": {"progress": asked["progress"]}}, job)
    if "sleep" in asked:
        try:
            await asyncio.sleep(asked["sleep"])
        except asyncio.CancelledError:
            open(asked["stopped"], "w").close()
            raise
    if "raise" in asked:
        raise ValueError(asked["raise"])
    return asked["return"]

async def streaming(job):
    for chunk in job["input"]["stream"]:
        yield chunk

import os
if os.environ.get("STREAMING"):
    runpod.serverless.start({"handler": streaming})
else:
    runpod.serverless.start({"handler": handler})
"""


class Host:
    """An endpoint process and worker processes, each killed as hard as a test likes."""

    def __init__(self, folder):
        self.folder = folder
        (self.port,) = free_ports(1)
        self.base = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(
            base_url=f"{self.base}/v2/ep", headers={"Authorization": f"Bearer {KEY}"}, timeout=30
        )
        (folder / "handler.py").write_text(HANDLER)
        self.processes = []
        self.workers = 0
        self.endpoint = self.start_endpoint()

    def spawn(self, command, environment, name):
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder)} | environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def start_endpoint(self):
        flags = ["--port", str(self.port), "--endpoint-id", "ep", "--database", str(self.folder / "q.db")]
        root = str(Path(__file__).parents[3])
        environment = {"RUNPOD_API_KEY": KEY, "PYTHONPATH": root}
        process = self.spawn(["-m", "broker.embedded.endpoint", *flags], environment, "endpoint")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return process
            time.sleep(0.05)
        raise AssertionError((self.folder / "endpoint.log").read_text())

    def start_worker(self, **environment):
        self.workers += 1
        protocol = worker_environment(self.base, "ep", KEY, f"w{self.workers}")
        return self.spawn(["handler.py"], protocol | environment, f"worker-{self.workers}")

    def kill(self, process):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self):
        self.http.close()
        for process in self.processes:
            if process.poll() is None:
                self.kill(process)

    def run(self, input_, **body):
        return self.http.post("run", json={"input": input_} | body).raise_for_status().json()["id"]

    def status(self, job_id):
        return self.http.get(f"status/{job_id}").raise_for_status().json()

    def until(self, job_id, *states, seconds=30, also=lambda job: True):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            job = self.status(job_id)
            if job["status"] in states and also(job):
                return job
            time.sleep(0.05)
        raise AssertionError(job)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """One endpoint with one worker for all tests that kill nothing."""
    host = Host(tmp_path_factory.mktemp("host"))
    host.start_worker()
    yield host
    host.close()


@pytest.fixture
def fresh(tmp_path):
    """An endpoint of its own, without a worker."""
    host = Host(tmp_path)
    yield host
    host.close()


def test_a_job_is_carried_out_by_the_sdks_loop(host):
    """Queued, taken, returned, with the fields that RunPod has."""
    job = host.until(host.run({"return": {"x": 1}}), "COMPLETED")
    assert (job["output"], job["workerId"]) == ({"x": 1}, "w1")
    assert job["delayTime"] >= 0
    assert job["executionTime"] >= 0


def test_an_error_dict_is_a_failure_that_keeps_the_rest(host):
    """What stands beside `error` is the output."""
    job = host.until(host.run({"return": {"error": "bad", "error_code": "c"}}), "FAILED")
    assert (job["error"], job["output"]) == ("bad", {"error_code": "c"})


def test_an_exception_is_a_failure_told_as_json(host):
    """As the SDK reports it."""
    job = host.until(host.run({"raise": "ouch"}), "FAILED")
    assert json.loads(job["error"])["error_message"] == "ouch"
    assert "output" not in job


def test_progress_is_the_output_while_it_runs(host):
    """Replaced by the result at the end."""
    job_id = host.run({"progress": 40, "sleep": 1.0, "stopped": "x", "return": {"done": True}})
    running = host.until(job_id, "IN_PROGRESS", also=lambda job: "output" in job)
    assert running["output"] == {"progress": 40}
    assert host.until(job_id, "COMPLETED")["output"] == {"done": True}


def test_a_cancel_stops_the_handler(host, tmp_path):
    """The task is cancelled within a moment, and the worker takes the next job."""
    flag = tmp_path / "stopped"
    job_id = host.run({"sleep": 60, "stopped": str(flag), "return": 1})
    host.until(job_id, "IN_PROGRESS")
    assert host.http.post(f"cancel/{job_id}").json() == {"id": job_id, "status": "CANCELLED"}
    host.until(host.run({"return": 1}), "COMPLETED", seconds=10)
    assert flag.exists()
    assert host.status(job_id)["status"] == "CANCELLED"


def test_a_job_over_its_time_is_timed_out_and_stopped(host, tmp_path):
    """executionTimeout in milliseconds, five seconds at least."""
    flag = tmp_path / "stopped"
    policy = {"executionTimeout": 5000, "ttl": 60_000}
    job_id = host.run({"sleep": 60, "stopped": str(flag), "return": 1}, policy=policy)
    host.until(job_id, "TIMED_OUT", seconds=15)
    host.until(host.run({"return": 1}), "COMPLETED", seconds=10)
    assert flag.exists()


def test_runsync_waits_for_the_result(host):
    """And answers with where it stands when that takes too long."""
    done = host.http.post("runsync", json={"input": {"return": {"x": 2}}}).json()
    assert (done["status"], done["output"]) == ("COMPLETED", {"x": 2})
    slow = host.http.post(
        "runsync?wait=1000", json={"input": {"sleep": 2, "stopped": "x", "return": 1}}
    ).json()
    assert slow["status"] in ("IN_QUEUE", "IN_PROGRESS")


def test_a_failed_job_can_be_retried_under_its_id(host):
    """A completed one cannot."""
    failed = host.run({"raise": "x"})
    host.until(failed, "FAILED")
    assert host.http.post(f"retry/{failed}").json() == {"id": failed, "status": "IN_QUEUE"}
    host.until(failed, "FAILED")
    done = host.run({"return": 1})
    host.until(done, "COMPLETED")
    assert host.http.post(f"retry/{done}").status_code == 400


def test_health_counts_jobs_and_workers(host):
    """In RunPod's words."""
    told = host.http.get("health").json()
    assert set(told["jobs"]) == {"completed", "failed", "inProgress", "inQueue", "retried"}
    assert set(told["workers"]) == {"idle", "initializing", "ready", "running", "throttled", "unhealthy"}
    assert told["workers"]["idle"] + told["workers"]["running"] == 1


def test_an_idle_worker_does_not_spin(host):
    """Its calls are held; instant answers would make it ask thousands of times a second."""
    log = host.folder / "worker-1.log"
    before = log.stat().st_size
    time.sleep(2)
    assert log.stat().st_size - before < 10_000


@pytest.mark.parametrize("key", ["", "wrong", "Bearer wrong"])
def test_a_wrong_key_is_401(host, key):
    """On the clients' side and on the workers'."""
    for path in ("health", "status/x", "job-take/w9?gpu=CPU"):
        assert host.http.get(path, headers={"Authorization": key}).status_code == 401


@pytest.mark.parametrize("key", [KEY, f"Bearer {KEY}"], ids=["raw", "bearer"])
def test_both_ways_to_send_the_key_are_taken(host, key):
    """RunPod's documentation shows both."""
    assert host.http.get("health", headers={"Authorization": key}).status_code == 200


def test_what_is_not_there_is_404(host):
    """Unknown jobs, and other endpoints."""
    assert host.http.get("status/nobody").status_code == 404
    assert host.http.post("status/nobody").status_code == 404
    assert httpx.get(f"{host.base}/v2/other/health", headers={"Authorization": KEY}).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{", id="no-json"),
        pytest.param(b"[]", id="no-object"),
        pytest.param(b"{}", id="no-input"),
        pytest.param(b'{"input": {}}', id="empty-input"),
        pytest.param(b'{"input": [1]}', id="input-no-object"),
        pytest.param(b'{"input": {"x": 1}, "policy": {"executionTimeout": 10}}', id="policy-too-short"),
        pytest.param(b'{"input": {"x": 1}, "webhook": "file:///etc/passwd"}', id="webhook-no-http"),
    ],
)
def test_a_wrong_body_is_400(host, body):
    """Said at once, where RunPod would take an empty input and lose the job."""
    assert host.http.post("run", content=body).status_code == 400


@pytest.mark.parametrize(("route", "limit"), [("run", 10), ("runsync", 20)])
def test_a_body_over_the_limit_is_413(host, route, limit):
    """10 MB, 20 for runsync, counted as they arrive."""

    def body():
        yield b'{"input": {"x": "'
        for _ in range(limit + 1):
            yield b"x" * (1 << 20)

    assert host.http.post(route, content=body()).status_code == 413


def test_a_killed_worker_costs_one_retry(fresh):
    """The job is requeued under its id and completes on the next worker."""
    first = fresh.start_worker()
    job_id = fresh.run({"sleep": 3, "stopped": "x", "return": {"ok": 1}})
    fresh.until(job_id, "IN_PROGRESS")
    fresh.kill(first)
    fresh.until(job_id, "IN_QUEUE", seconds=20)
    fresh.start_worker()
    job = fresh.until(job_id, "COMPLETED")
    assert (job["retries"], job["workerId"]) == (1, "w2")


def test_a_killed_endpoint_loses_no_job(fresh):
    """What waited still waits; what ran is finished by the worker that ran it."""
    worker = fresh.start_worker()
    running = fresh.run({"sleep": 4, "stopped": "x", "return": {"ok": 1}})
    fresh.until(running, "IN_PROGRESS")
    waiting = fresh.run({"return": {"ok": 2}})
    fresh.kill(fresh.endpoint)
    fresh.endpoint = fresh.start_endpoint()
    assert fresh.status(waiting)["status"] == "IN_QUEUE"
    assert fresh.until(running, "COMPLETED")["output"] == {"ok": 1}
    assert fresh.until(waiting, "COMPLETED")["output"] == {"ok": 2}
    assert worker.poll() is None


def test_a_job_without_a_worker_waits_and_can_be_purged(fresh):
    """Only what waits is removed."""
    job_id = fresh.run({"return": 1})
    assert fresh.status(job_id) == {"id": job_id, "status": "IN_QUEUE"}
    assert fresh.http.post("purge-queue").json() == {"removed": 1, "status": "completed"}
    assert fresh.http.get(f"status/{job_id}").status_code == 404


def test_a_generators_chunks_are_streamed(fresh):
    """Each chunk once."""
    fresh.start_worker(STREAMING="1")
    job_id = fresh.run({"stream": [{"n": 1}, {"n": 2}]})
    chunks = []
    deadline = time.monotonic() + 20
    while len(chunks) < 2 and time.monotonic() < deadline:
        chunks += fresh.http.get(f"stream/{job_id}").json()["stream"]
    assert chunks == [{"output": {"n": 1}}, {"output": {"n": 2}}]


def test_the_endpoint_ends_quickly_with_calls_held(fresh):
    """A worker's held call does not keep it alive."""
    fresh.start_worker()
    time.sleep(2)
    fresh.endpoint.terminate()
    began = time.monotonic()
    fresh.endpoint.wait(10)
    assert time.monotonic() - began < 3


def test_the_webhook_is_tried_three_times(fresh, tmp_path):
    """Here the second try is taken: the whole envelope, ten seconds later, and no third."""
    seen = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.append((time.monotonic(), body))
            self.send_response(500 if len(seen) == 1 else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/hook"
    fresh.start_worker()
    job_id = fresh.run({"return": {"x": 1}}, webhook=url)
    deadline = time.monotonic() + 30
    while len(seen) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    server.shutdown()
    server.server_close()
    (first, _), (second, body) = seen
    assert 9 < second - first < 13
    assert (body["id"], body["status"], body["output"], body["webhook"]) == (
        job_id,
        "COMPLETED",
        {"x": 1},
        url,
    )
    assert body["input"] == {"return": {"x": 1}}
