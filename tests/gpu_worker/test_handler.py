"""The function that the SDK calls: results, failures, cancels, and never a progress after the
result.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from broker.embedded.endpoint import worker_environment
from broker.embedded.ports import free_ports
from gpu_worker import runner
from gpu_worker.bucket import open_bucket
from gpu_worker.handler import make_handler
from gpu_worker.runner import Runner, parse_input
from tests.gpu_worker.footage import make
from tests.http_server import Quiet, serving

TOKEN = "0" * 32
SMALL = {"output_width": 64, "output_height": 96}
#: As somebody pastes it: it names its output, and no broker stands behind it.
CONSOLE = {"attempt_token": None, "output_key": "out.mp4"}


@pytest.fixture
def job_input(objects, user_id, tmp_path):
    """Puts a source and builds a job's input; overrides by name."""

    def build(source=None, **overrides):
        source = source or make(
            tmp_path / "a.mp4", "-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=0.4"
        )
        objects.put(f"{user_id}/in.mp4", source.read_bytes())
        fields = {"job_id": "j1", "user_id": user_id, "type": "framing", "input_key": "in.mp4"}
        return fields | {"attempt_token": TOKEN, "params": SMALL} | overrides

    return build


async def test_a_job_returns_its_result(settings, bucket, job_input):
    """As JSON can carry it."""
    output = await make_handler(Runner(settings(), bucket))({"id": "rp-1", "input": job_input()})
    assert json.loads(json.dumps(output)) == output
    assert (output["runpod_job_id"], output["facts"]["frames"]) == ("rp-1", 10)
    assert "error" not in output


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        pytest.param(CONSOLE | {"type": "sharpen"}, "type", id="unknown-type"),
        pytest.param(CONSOLE | {"params": {"ouput_width": 64}}, "params.ouput_width", id="typo"),
        pytest.param({"params": {"output_width": 3}}, "params.output_width", id="bad-param"),
        pytest.param(
            {"params": {"output_width": 3, "new": 1}}, "params.output_width", id="bad-and-newer"
        ),
        pytest.param({"attempt_token": None}, "attempt_token or output_key", id="nowhere-to-write"),
        pytest.param({"user_id": "../x"}, "user_id", id="another-folder"),
        pytest.param({"traceparent": "x"}, "traceparent", id="no-trace"),
    ],
)
async def test_a_wrong_input_is_named_and_not_retryable(settings, bucket, job_input, wrong, words):
    """The console user reads which field."""
    output = await make_handler(Runner(settings(), bucket))(
        {"id": "rp-1", "input": job_input() | wrong}
    )
    assert words in output["error"]
    assert (output["error_code"], output["retryable"]) == ("invalid_params", False)


@pytest.mark.parametrize(
    ("newer", "words"),
    [
        pytest.param({"new_field": 1}, "new_field", id="field"),
        pytest.param({"params": SMALL | {"sparkle": 1}}, "params.sparkle", id="field-of-the-edit"),
        pytest.param({"type": "sharpen"}, "type", id="type"),
        pytest.param({"params": SMALL | {"export_mode": "BEST"}}, "params.export_mode", id="word"),
        pytest.param(
            {"type": "upscale", "params": SMALL | {"scale": 3}}, "params.scale", id="choice"
        ),
    ],
)
async def test_a_worker_that_is_older_than_the_broker_hands_the_job_back(
    settings, bucket, job_input, newer, words
):
    """A newer worker may do it; if none does, the last error names what was not understood."""
    output = await make_handler(Runner(settings(), bucket))(
        {"id": "rp-1", "input": job_input() | newer}
    )
    assert (output["error_code"], output["retryable"]) == ("worker_lost", True)
    assert words in output["error"]


@pytest.mark.abuse
async def test_the_answer_to_a_wrong_input_is_short(settings, bucket, job_input):
    """However much is wrong with it, and however long its names are."""
    wrong = job_input() | {f"{number}{'a' * 1000}": 1 for number in range(5000)}
    output = await make_handler(Runner(settings(), bucket))(
        {"id": "rp-1", "input": wrong | {"attempt_token": None}}
    )
    assert " more" in output["error"]
    assert len(output["error"]) < 5000


@pytest.fixture
def logged():
    """What is logged, as the worker's log has it."""
    captured = structlog.testing.LogCapture()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, captured])
    yield captured.entries
    structlog.reset_defaults()


async def test_each_line_says_which_job_and_whose_trace(settings, bucket, job_input, logged):
    """Of a job that goes well, and then of one that fails; one without a trace has none of the one
    before.
    """
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    handler = make_handler(Runner(settings(), bucket))
    await handler({"id": "rp-1", "input": job_input(traceparent=f"00-{trace}-00f067aa0ba902b7-01")})
    assert {"job_started", "job_done"} <= {line["event"] for line in logged}
    ids = {(line["runpod_job_id"], line["job_id"], line["trace_id"]) for line in logged}
    assert ids == {("rp-1", "j1", trace)}
    logged.clear()
    await handler({"id": "rp-2", "input": job_input(job_id="j2", input_key="none.mp4")})
    (failed,) = [line for line in logged if line["event"] == "job_failed"]
    assert (failed["runpod_job_id"], failed["job_id"], failed["code"]) == (
        "rp-2",
        "j2",
        "source_not_found",
    )
    assert not any("trace_id" in line for line in logged)
    logged.clear()
    await handler({"id": "rp-3", "input": {}})
    assert [("job_id" in line, line["runpod_job_id"]) for line in logged] == [(False, "rp-3")]


async def test_no_secret_is_logged_or_told(settings, bucket, job_input, logged):
    """Also where the bucket refuses us, and where it cannot be reached."""
    secret = "secret-that-nobody-may-see"
    for wrong in (
        {"R2_SECRET_ACCESS_KEY": secret},
        {"R2_SECRET_ACCESS_KEY": secret, "R2_ENDPOINT": "http://127.0.0.1:9"},
    ):
        made = settings(**wrong)
        output = await make_handler(Runner(made, open_bucket(made)))(
            {"id": "rp-1", "input": job_input()}
        )
        assert output["error_code"] == "storage_unavailable"
        told = f"{output} {logged}"
        assert "job_failed" in told
        assert [word for word in (secret, "X-Amz-Signature", "Signature=") if word in told] == []


async def test_a_failure_has_a_code_and_a_sentence(settings, bucket, job_input, tmp_path):
    """And what the tools said, apart from it."""
    (tmp_path / "x.mp4").write_bytes(b"\x00no video" * 100)
    output = await make_handler(Runner(settings(), bucket))(
        {"id": "rp-1", "input": job_input(tmp_path / "x.mp4")}
    )
    assert (output["error_code"], output["retryable"]) == ("invalid_media", False)
    assert output["error"] == "The file is not a video that can be read, or it is damaged."
    assert "Invalid data" in output["detail"]


async def test_the_result_says_where_the_time_went(settings, bucket, job_input, big_buck_bunny):
    """Of the first job also what the worker's start took; parts are not more than the whole."""
    handler = make_handler(Runner(settings(), bucket, cold_start_seconds=1.5))
    size = {"output_width": 64, "output_height": 96, "end_time": 0.4}
    told = []
    for name in ("one", "two"):
        asked = job_input(big_buck_bunny, params=size, attempt_token=None, output_key=f"{name}.mp4")
        told.append((await handler({"id": "rp-1", "input": asked}))["timings"])
    assert [one["cold_start_seconds"] for one in told] == [1.5, 0.0]
    for one in told:
        parts = [one[f"{part}_seconds"] for part in ("decode", "infer", "encode")]
        assert min(parts) >= 0
        assert 0 < sum(parts) <= one["edit_seconds"] + 0.01


async def test_a_crash_is_retryable_and_tells_no_insides(settings, bucket, job_input, monkeypatch):
    """The sentence is ours; the exception is in the detail for the log."""

    def crash(self):
        raise ZeroDivisionError("at /secret/path")

    monkeypatch.setattr(runner.Execution, "run", crash)
    output = await make_handler(Runner(settings(), bucket))({"id": "rp-1", "input": job_input()})
    assert (output["error_code"], output["retryable"]) == ("internal", True)
    assert "secret" not in output["error"]


async def test_a_cancel_stops_the_thread_before_it_returns(
    settings, bucket, objects, job_input, big_buck_bunny
):
    """No thread works on behind our back, nothing is published, no file is left."""
    chosen = settings()
    work = asyncio.create_task(
        make_handler(Runner(chosen, bucket))(
            {"id": "rp-1", "input": job_input(big_buck_bunny, params={})}
        )
    )
    async with asyncio.timeout(20):
        while not any(chosen.work_dir.glob("export-*/output.mp4")):
            await asyncio.sleep(0.05)
    work.cancel()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert time.monotonic() - began < 3
    assert list(chosen.work_dir.iterdir()) == []
    user = job_input()["user_id"]
    assert objects.keys(f"{user}/final_videos/") == []


async def test_a_fence_stops_a_running_job(
    settings, bucket, objects, job_input, big_buck_bunny, monkeypatch
):
    """Also where the platform's stop signal never arrives."""
    monkeypatch.setattr(runner, "FENCE_SECONDS", 0.2)
    chosen = settings()
    asked = job_input(big_buck_bunny, params={})
    work = asyncio.create_task(make_handler(Runner(chosen, bucket))({"id": "rp-1", "input": asked}))
    async with asyncio.timeout(20):
        while not any(chosen.work_dir.glob("export-*/output.mp4")):
            await asyncio.sleep(0.05)
    objects.put(f"{asked['user_id']}/jobs/j1/{TOKEN}/stop.json", b"{}")
    output = await asyncio.wait_for(work, 5)
    assert (output["error_code"], output["retryable"]) == ("cancelled", False)


async def test_a_worker_that_is_told_to_end_hands_back_what_it_cannot_finish(
    settings, bucket, objects, job_input, big_buck_bunny
):
    """After its limit: a retryable failure, nothing published, no file left; and the SDK's own
    handler was called.
    """
    told = []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append("sdk"))
    try:
        made = settings(REELBROKER_DRAIN_SECONDS="0.5")
        large = {"output_width": 2160, "output_height": 3840}
        running = asyncio.create_task(
            make_handler(Runner(made, bucket))(
                {"id": "rp-1", "input": job_input(big_buck_bunny, params=large)}
            )
        )
        await asyncio.sleep(1.5)
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        output = await running
        assert time.monotonic() - began < 5
        assert signal.getsignal(signal.SIGTERM)(0, None) is None
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (output["error_code"], output["retryable"], output["error"]) == (
        "worker_lost",
        True,
        "The GPU worker was shut down.",
    )
    assert told == ["sdk", "sdk"]
    assert list(made.work_dir.glob("export-*")) == []
    assert objects.keys(f"{job_input()['user_id']}/final_videos/") == []


async def test_a_job_that_is_done_in_time_is_not_handed_back(settings, bucket, job_input):
    """The limit is a limit, and not an end."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        made = settings(REELBROKER_DRAIN_SECONDS="60")
        running = asyncio.create_task(
            make_handler(Runner(made, bucket))({"id": "rp-1", "input": job_input()})
        )
        await asyncio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert "error" not in await running
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_no_progress_arrives_after_the_handler_returned(
    settings, bucket, job_input, monkeypatch
):
    """Progress is sent one at a time, in order, and none is under way at the end, however slow the
    receiver is.
    """
    monkeypatch.setattr(runner, "PROGRESS_SECONDS", 0.0)
    seen = []

    async def receive(request):
        body = json.loads(await request.body())
        await asyncio.sleep(0.1)
        seen.append(body)
        return JSONResponse({})

    (port,) = free_ports(1)
    app = Starlette(routes=[Route("/done", receive, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
    url = f"http://127.0.0.1:{port}/done?gpu=CPU"
    monkeypatch.setattr("runpod.serverless.modules.rp_http.JOB_DONE_URL", url)
    await make_handler(Runner(settings(RUNPOD_WEBHOOK_POST_OUTPUT=url), bucket))(
        {"id": "rp-1", "input": job_input()}
    )
    count = len(seen)
    await asyncio.sleep(0.5)
    server.should_exit = True
    await serving
    assert len(seen) == count > 0
    assert {body["status"] for body in seen} == {"IN_PROGRESS"}
    percent = [body["output"]["progress"] for body in seen]
    assert percent == sorted(percent)


def environment(settings, tmp_path):
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "R2_ENDPOINT": settings.r2_endpoint,
        "R2_ACCESS_KEY_ID": settings.r2_access_key_id,
        "R2_SECRET_ACCESS_KEY": settings.r2_secret_access_key.get_secret_value(),
        "R2_BUCKET_NAME": settings.r2_bucket_name,
        "REELBROKER_WORK_DIR": str(tmp_path / "work"),
    }


def test_a_worker_without_a_job_ends_at_once(settings, tmp_path):
    """Its call for a job hangs, as it does where there is none: it does not wait for one that would
    die with it.
    """
    asked, never = threading.Event(), threading.Event()

    class NoJobs(Quiet):
        # The name that the server looks for.
        def do_GET(self):  # noqa: N802
            if "job-take" in self.path:
                asked.set()
            never.wait(60)

    with serving(NoJobs) as port:
        platform = worker_environment(f"http://127.0.0.1:{port}", "none", "key", "worker")
        worker = subprocess.Popen(
            [sys.executable, "-m", "gpu_worker.handler"],
            env=environment(settings(), tmp_path) | platform,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            assert asked.wait(60)
            worker.terminate()
            assert worker.wait(5) == 0
        finally:
            worker.kill()
            worker.wait()
            never.set()


def test_a_worker_on_an_unfit_machine_ends_before_it_asks_for_a_job(settings, tmp_path):
    """The SDK's own checks run in it as they do on RunPod: with less memory than is wanted, it
    exits and says so.
    """
    (tmp_path / "work").mkdir(exist_ok=True)
    platform = worker_environment("http://127.0.0.1:9", "none", "key", "worker")
    ended = subprocess.run(
        [sys.executable, "-m", "gpu_worker.handler"],
        env=environment(settings(), tmp_path) | platform | {"RUNPOD_MIN_MEMORY_GB": "100000"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = ended.stdout + ended.stderr
    assert ended.returncode == 1
    assert "Fitness check failed: _memory_check" in told
    assert "action=machine_checks" in told


def test_one_job_runs_from_the_command_line(settings, objects, job_input, tmp_path):
    """`--test_input` does what the RunPod console does: exit 0, and the file where it was asked
    for.
    """
    chosen = settings()
    asked = job_input(attempt_token=None, output_key="out/console.mp4")
    command = [
        sys.executable,
        "-m",
        "gpu_worker.handler",
        "--test_input",
        json.dumps({"input": asked}),
    ]
    done = subprocess.run(
        command, env=environment(chosen, tmp_path), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert objects.keys(f"{asked['user_id']}/out/") == [f"{asked['user_id']}/out/console.mp4"]


def test_a_failed_job_from_the_command_line_exits_1(settings, tmp_path, job_input):
    """With the sentence on the screen."""
    asked = job_input(attempt_token=None, output_key="o.mp4", input_key="none.mp4")
    command = [
        sys.executable,
        "-m",
        "gpu_worker.handler",
        "--test_input",
        json.dumps({"input": asked}),
    ]
    done = subprocess.run(
        command, env=environment(settings(), tmp_path), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "The video to export is not in the bucket." in done.stdout + done.stderr


def test_the_example_input_is_one_that_the_worker_takes():
    """What the README says to paste into the console."""
    example = json.loads((Path(__file__).parents[2] / "test_input.json").read_text())
    assert parse_input(example["input"]).output_key == "final_videos/console-test.mp4"
