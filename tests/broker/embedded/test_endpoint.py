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
import uvicorn

from broker.embedded.endpoint import EndpointConfig, create_endpoint, worker_environment
from broker.embedded.ports import free_ports
from broker.embedded.queue import LOST, Limits

KEY = "endpoint-key"
HANDLER = """
import asyncio, runpod
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules.rp_http import send_result

async def handler(job):
    given = job["input"]
    if "progress" in given:
        async with AsyncClientSession() as session:
            output = {"progress": given["progress"]}
            await send_result(session, {"status": "IN_PROGRESS", "output": output}, job)
    if "sleep" in given:
        try:
            await asyncio.sleep(given["sleep"])
        except asyncio.CancelledError:
            open(given["stopped"], "w").close()
            raise
    if "raise" in given:
        raise ValueError(given["raise"])
    return given["return"]

runpod.serverless.start({"handler": handler})
"""


class Host:
    """An endpoint process and worker processes, which a test may kill."""

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

    def await_port(self):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the endpoint did not come up")

    def start_endpoint(self):
        flags = [
            "--port",
            str(self.port),
            "--endpoint-id",
            "ep",
            "--database",
            str(self.folder / "q.db"),
        ]
        root = str(Path(__file__).parents[3])
        environment = {"RUNPOD_API_KEY": KEY, "PYTHONPATH": root}
        process = self.spawn(["-m", "broker.embedded.endpoint", *flags], environment, "endpoint")
        self.await_port()
        return process

    def start_worker(self, **environment):
        self.workers += 1
        # These workers are the SDK alone, and the machine need not be fit for anything.
        protocol = worker_environment(self.base, "ep", KEY, f"w{self.workers}")
        protocol |= {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_SKIP_GPU_CHECK": "true"}
        return self.spawn(["handler.py"], protocol | environment, f"worker-{self.workers}")

    def kill(self, process):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self):
        self.http.close()
        for process in self.processes:
            if process.poll() is None:
                self.kill(process)

    def await_workers(self, count):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.http.get("health").json()["workers"]["idle"] == count:
                return
            time.sleep(0.05)
        raise AssertionError("the workers did not come up")

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


class QuickHost(Host):
    """The same with shorter lifetimes: the endpoint in a thread."""

    def start_endpoint(self):
        config = EndpointConfig(
            "ep",
            KEY,
            self.folder / "q.db",
            Limits(lease=3.0),
            long_poll_seconds=1.0,
        )
        server = uvicorn.Server(
            uvicorn.Config(
                create_endpoint(config),
                port=self.port,
                log_level="critical",
                timeout_graceful_shutdown=1,
            )
        )
        self.thread = threading.Thread(target=server.run, daemon=True)
        self.thread.start()
        self.await_port()
        return server

    def start_worker(self, **environment):
        return super().start_worker(RUNPOD_PING_INTERVAL="1000", **environment)

    def close(self):
        super().close()
        self.endpoint.should_exit = True
        self.thread.join(10)

    def take(self, worker="hand"):
        """Takes a job as the SDK would."""
        return self.http.get(
            f"job-take/{worker}?gpu=CPU&job_in_progress=0", headers={"Authorization": KEY}
        )

    def done(self, job_id, body, worker="hand"):
        """Returns a result as the SDK does: JSON under a form's content type."""
        headers = {"Authorization": KEY, "Content-Type": "application/x-www-form-urlencoded"}
        return self.http.post(
            f"job-done/{worker}/{job_id}?gpu=CPU&isStream=false", content=body, headers=headers
        )


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


@pytest.fixture
def quick(tmp_path):
    """An endpoint whose leases and webhooks do not keep a test waiting."""
    host = QuickHost(tmp_path)
    yield host
    host.close()


def test_a_job_is_carried_out_by_the_sdks_loop(host):
    """Queued, taken, returned, with the fields that RunPod has."""
    job = host.until(host.run({"return": {"x": 1}}), "COMPLETED")
    assert (job["output"], job["workerId"]) == ({"x": 1}, "w1")
    assert job["executionTime"] >= 0


def test_an_error_dict_is_a_failure_that_keeps_the_rest(host):
    """What stands beside `error` is the output."""
    job = host.until(host.run({"return": {"error": "bad", "error_code": "c"}}), "FAILED")
    assert (job["error"], job["output"]) == ("bad", {"error_code": "c"})


def test_an_exception_is_a_failure_with_json_as_its_error(host):
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


def test_health_counts_jobs_and_workers(host):
    """With RunPod's field names."""
    health = host.http.get("health").json()
    assert set(health["jobs"]) == {"completed", "failed", "inProgress", "inQueue"}
    assert set(health["workers"]) == {"idle", "ready", "running", "unhealthy"}
    assert health["workers"]["idle"] + health["workers"]["running"] == 1


def test_an_idle_worker_does_not_spin(host):
    """Its calls wait. At instant answers, the SDK calls thousands of times a second."""
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
    """Unknown jobs, routes and endpoints."""
    assert host.http.get("status/nobody").status_code == 404
    assert host.http.post("runsync", json={"input": {"x": 1}}).status_code == 404
    assert (
        httpx.get(f"{host.base}/v2/other/health", headers={"Authorization": KEY}).status_code == 404
    )


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{", id="no-json"),
        pytest.param(b"[]", id="no-object"),
        pytest.param(b"{}", id="no-input"),
        pytest.param(b'{"input": {}}', id="empty-input"),
        pytest.param(b'{"input": [1]}', id="input-no-object"),
        pytest.param(
            b'{"input": {"x": 1}, "policy": {"executionTimeout": 10}}', id="policy-too-short"
        ),
        pytest.param(b'{"input": {"x": 1}, "webhook": 1}', id="webhook-no-text"),
        pytest.param(b'{"input": {"x": NaN}}', id="nan"),
        pytest.param(b'{"input": {"x": 1e999}}', id="infinite"),
        pytest.param(b'{"input": {"x": "\\ud800"}}', id="half-a-character"),
    ],
)
def test_a_wrong_body_is_400(host, body):
    """At once, where RunPod accepts an empty input and loses the job."""
    assert host.http.post("run", content=body).status_code == 400


def test_a_body_over_the_limit_is_413(host):
    """10 MB, counted as they arrive."""

    def body():
        yield b'{"input": {"x": "'
        for _ in range(11):
            yield b"x" * (1 << 20)

    assert host.http.post("run", content=body()).status_code == 413


def test_a_killed_worker_costs_one_retry(quick):
    """The job is requeued under its id and completes on the next worker."""
    first = quick.start_worker()
    job_id = quick.run({"sleep": 1, "stopped": "x", "return": {"ok": 1}})
    quick.until(job_id, "IN_PROGRESS")
    quick.kill(first)
    quick.until(job_id, "IN_QUEUE", seconds=10)
    quick.start_worker()
    job = quick.until(job_id, "COMPLETED")
    assert (job["retries"], job["workerId"]) == (1, "w2")


def test_a_job_that_loses_two_workers_has_failed(quick):
    """With RunPod's error text."""
    workers = {"w1": quick.start_worker(), "w2": quick.start_worker()}
    quick.await_workers(2)
    job_id = quick.run({"sleep": 60, "stopped": "x", "return": 1})
    first = quick.until(job_id, "IN_PROGRESS")["workerId"]
    quick.kill(workers.pop(first))
    (second,) = workers
    quick.until(job_id, "IN_PROGRESS", also=lambda job: job["workerId"] == second)
    quick.kill(workers[second])
    job = quick.until(job_id, "FAILED")
    assert (job["error"], job["retries"]) == (LOST, 1)


def test_a_worker_that_hangs_up_while_it_waits_gets_no_job(quick):
    """The next one gets it at once, as its first try."""
    call = f"GET /v2/ep/job-take/gone?gpu=CPU HTTP/1.1\r\nHost: x\r\nAuthorization: {KEY}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", quick.port)) as waiting:
        waiting.sendall(call.encode())
        quick.await_workers(1)
    job_id = quick.run({"x": 1})
    taken = quick.take()
    assert (taken.status_code, taken.json()) == (200, {"id": job_id, "input": {"x": 1}})
    assert "retries" not in quick.status(job_id)


def test_a_worker_gets_the_webhook_or_nothing(quick):
    """204 after the long poll; extra fields of a job reach the handler."""
    began = time.monotonic()
    assert quick.take().status_code == 204
    assert 0.9 < time.monotonic() - began < 3
    job_id = quick.run({"x": 1}, webhook="http://127.0.0.1:9/hook")
    assert quick.take().json() == {
        "id": job_id,
        "input": {"x": 1},
        "webhook": "http://127.0.0.1:9/hook",
    }


def test_a_result_that_no_client_could_read_is_refused(quick):
    """NaN is not JSON: kept, it would break every later status."""
    job_id = quick.run({"x": 1})
    quick.take()
    assert quick.done(job_id, b'{"output": {"psnr": NaN}}').status_code == 400
    assert quick.status(job_id)["status"] == "IN_PROGRESS"


def test_late_progress_does_not_reopen_a_job(quick):
    """The SDK sends it from another thread: it may come after the result."""
    job_id = quick.run({"x": 1})
    quick.take()
    assert quick.done(job_id, b'{"output": {"ok": 1}}').status_code == 200
    assert (
        quick.done(job_id, b'{"status": "IN_PROGRESS", "output": {"progress": 9}}').status_code
        == 200
    )
    assert (quick.status(job_id)["status"], quick.status(job_id)["output"]) == (
        "COMPLETED",
        {"ok": 1},
    )


def test_a_worker_that_reports_a_failed_check_is_unhealthy(quick):
    """Such a worker does not count as idle."""
    quick.http.get("ping/hand?status=unhealthy&check=gpu&reason=none")
    workers = quick.http.get("health").json()["workers"]
    assert (workers["unhealthy"], workers["idle"], workers["ready"]) == (1, 0, 0)


def test_a_killed_endpoint_loses_no_job(fresh):
    """What waited still waits; what ran is finished by the worker that ran it."""
    worker = fresh.start_worker()
    running = fresh.run({"sleep": 3, "stopped": "x", "return": {"ok": 1}})
    fresh.until(running, "IN_PROGRESS")
    waiting = fresh.run({"return": {"ok": 2}})
    fresh.kill(fresh.endpoint)
    fresh.endpoint = fresh.start_endpoint()
    assert fresh.status(waiting)["status"] == "IN_QUEUE"
    assert fresh.until(running, "COMPLETED")["output"] == {"ok": 1}
    assert fresh.until(waiting, "COMPLETED")["output"] == {"ok": 2}
    assert worker.poll() is None


def test_the_endpoint_ends_quickly_with_calls_held(fresh):
    """A waiting call of a worker does not keep the endpoint alive."""
    fresh.start_worker()
    fresh.await_workers(1)
    fresh.endpoint.terminate()
    began = time.monotonic()
    fresh.endpoint.wait(10)
    assert time.monotonic() - began < 2.5


class Receiver(BaseHTTPRequestHandler):
    """Keeps the bodies of webhooks."""

    def do_POST(self):
        size = int(self.headers["content-length"])
        self.server.seen.append(json.loads(self.rfile.read(size)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_the_end_of_a_job_sends_its_webhook(quick):
    """With the status, the input and the webhook's URL."""
    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        server.seen = []
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/hook"
        job_id = quick.run({"x": 1}, webhook=url)
        quick.take()
        quick.done(job_id, b'{"output": {"ok": 1}}')
        deadline = time.monotonic() + 10
        while not server.seen and time.monotonic() < deadline:
            time.sleep(0.05)
        server.shutdown()
        thread.join()
    (body,) = server.seen
    assert "executionTime" in body
    assert (body["id"], body["status"], body["input"]) == (job_id, "COMPLETED", {"x": 1})
    assert (body["output"], body["webhook"]) == ({"ok": 1}, url)
