"""The whole system on one machine: HTTP, SQLite, the endpoint, the SDK's worker loop, SeaweedFS,
ffmpeg.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from gpu_worker.media.probe import output_facts
from tests.gpu_worker.footage import luma
from tests.stack_thread import StackThread, processes_in


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """One running stack for all tests here; afterwards no process of it is left."""
    folder = tmp_path_factory.mktemp("stack").resolve()
    with StackThread(folder) as stack:
        yield stack
    assert processes_in(folder) == []


@pytest.fixture(scope="module")
def source(stack, big_buck_bunny):
    """The sample clip, uploaded once."""
    return stack.upload(big_buck_bunny)


SMALL = {"output_width": 270, "output_height": 480}


def test_a_clip_is_exported_through_the_whole_system(stack, source, tmp_path):
    """The file is what was asked for, the job says what the file is, and the phases come in
    order.
    """
    url = stack.submit(source, end_time=2.0, **SMALL)
    seen = []

    def watch(job):
        seen.append((job["phase"], job["progress"]))
        return job["status"] in ("complete", "error")

    job = stack.until(url, watch)
    assert (job["status"], job["error"], job["attempt"]) == ("complete", None, 1)
    progress = [percent for _, percent in seen]
    assert progress == sorted(progress)
    facts = output_facts(stack.download(job, tmp_path / "out.mp4"))
    assert (facts.width, facts.height, facts.frames, facts.fps) == (270, 480, 50, 25)
    told = job["result"]
    assert (told["frames"], told["bytes"]) == (50, (tmp_path / "out.mp4").stat().st_size)
    assert job["output_key"].startswith(f"final_videos/framing_{job['job_id']}_")
    assert job["gpu_seconds"] > 0


@pytest.mark.parametrize(
    ("job_type", "params", "frames", "size"),
    [
        pytest.param(
            "overlay",
            {
                "effect_type": "dark_overlay",
                "highlight_regions": [
                    {
                        "start_frame": 0,
                        "end_frame": 9,
                        "x": 640,
                        "y": 360,
                        "radius_x": 90,
                        "radius_y": 120,
                    }
                ],
                "text_layers": [{"text": "Überholt!", "x": 40, "y": 40}],
                "end_time": 0.4,
            },
            10,
            (1280, 720),
            id="overlay",
        ),
        pytest.param(
            "annotate",
            {
                "clips": [
                    {
                        "start_time": 1.0,
                        "end_time": 1.4,
                        "name": "First",
                        "rating": 4,
                        "tags": ["rabbit"],
                    },
                    {"start_time": 3.02, "end_time": 3.42, "name": "Second"},
                ],
                "output_width": 320,
                "output_height": 180,
            },
            20,
            (320, 180),
            id="annotate",
        ),
        pytest.param(
            "multi_clip",
            {
                "clips": [
                    {"start_time": 0.0, "end_time": 0.8},
                    {"start_time": 2.0, "end_time": 2.8},
                ],
                "transition": {"type": "dissolve", "duration": 0.4},
                **SMALL,
            },
            30,
            (270, 480),
            id="multi-clip",
        ),
        pytest.param(
            "upscale",
            {"export_mode": "FAST", "end_time": 0.4, **SMALL},
            10,
            (270, 480),
            id="upscale",
        ),
    ],
)
def test_every_type_goes_the_same_way(stack, source, tmp_path, job_type, params, frames, size):
    """From HTTP to a file of exactly the frames asked for."""
    body = {"type": job_type, "input_key": source, "params": params}
    url = stack.client.post("/api/jobs", json=body).raise_for_status().headers["location"]
    job = stack.finished(url)
    assert (job["status"], job["error"], job["type"]) == ("complete", None, job_type)
    facts = output_facts(stack.download(job, tmp_path / "out.mp4"))
    assert (facts.frames, (facts.width, facts.height), facts.audio_codec) == (frames, size, "aac")
    assert job["output_key"].startswith(f"final_videos/{job_type}_")


def test_clips_of_several_files_need_no_input_of_the_job(stack, source, tmp_path):
    """Each clip brings its own; one that is missing is named."""
    clips = [{"input_key": source, "end_time": 0.4}, {"input_key": "uploads/nothing.mp4"}]
    body = {"type": "multi_clip", "params": {"clips": clips, **SMALL}}
    url = stack.client.post("/api/jobs", json=body).raise_for_status().headers["location"]
    job = stack.finished(url)
    assert (job["input_key"], job["error_code"]) == (None, "source_not_found")
    assert "uploads/nothing.mp4" in job["error"]


def test_real_progress_arrives_while_frames_are_being_made(stack, source):
    """The bar moves between its ends, from frames really done."""
    url = stack.submit(source)
    job = stack.until(url, lambda job: job["phase"] == "processing" and 5 < job["progress"] < 90)
    assert job["runpod_job_id"] is not None
    assert stack.finished(url)["status"] == "complete"


@pytest.mark.parametrize(
    ("name", "make", "code"),
    [
        pytest.param(
            "a.mp4", lambda clip: b"no video at all" * 100, "invalid_media", id="not-a-video"
        ),
        pytest.param("b.mp4", lambda clip: clip[: len(clip) // 2], "invalid_media", id="truncated"),
        pytest.param("c.mp4", lambda clip: b"", "invalid_media", id="zero-bytes"),
    ],
)
def test_a_bad_file_ends_in_a_clear_error_and_is_not_tried_again(
    stack, big_buck_bunny, tmp_path, name, make, code
):
    """One attempt, the right code, a sentence for the user, no traceback."""
    path = tmp_path / name
    path.write_bytes(make(big_buck_bunny.read_bytes()))
    job = stack.finished(stack.submit(stack.upload(path), **SMALL))
    assert (job["status"], job["error_code"], job["attempt"], job["retryable"]) == (
        "error",
        code,
        1,
        False,
    )
    assert job["error"].endswith(".")
    assert "Traceback" not in job["error"]


def test_a_missing_source_is_named(stack):
    """The job ends with source_not_found."""
    job = stack.finished(stack.submit("uploads/nothing.mp4"))
    assert (job["status"], job["error_code"]) == ("error", "source_not_found")


def test_a_keyframe_outside_the_picture_is_named(stack, source):
    """The worker, which knows the picture's size, says which keyframe."""
    box = {"time": 0, "x": 1200, "y": 0, "width": 405, "height": 720}
    job = stack.finished(stack.submit(source, crop_keyframes=[box]))
    assert (job["status"], job["error_code"]) == ("error", "invalid_params")
    assert "crop_keyframes[0]" in job["error"]
    assert "1280x720" in job["error"]


def test_quality_goes_through_a_real_network(stack, source, tmp_path):
    """Real weights, from HTTP to a file: sharper than the plain export of the same crop, and the
    same picture.
    """
    box = {"time": 0, "x": 600.5, "y": 300.25, "width": 66.0, "height": 118.0}
    asked = {"crop_keyframes": [box], "end_time": 0.2, **SMALL}
    pictures = {}
    for mode in ("FAST", "QUALITY"):
        job = stack.finished(stack.submit(source, export_mode=mode, **asked))
        assert (job["status"], job["error"]) == ("complete", None)
        pictures[mode] = luma(stack.download(job, tmp_path / f"{mode}.mp4"))[0][2].astype(float)
    edges = {mode: np.abs(np.diff(picture, axis=1)).mean() for mode, picture in pictures.items()}
    assert edges["QUALITY"] > 1.1 * edges["FAST"]
    assert np.corrcoef(pictures["FAST"].ravel(), pictures["QUALITY"].ravel())[0, 1] > 0.97


def test_a_model_that_is_missing_is_refused_rather_than_faked(stack, source):
    """There is no silent resize; the error says what to put where."""
    body = {"type": "upscale", "input_key": source, "params": {"model": "RealESRGAN_x2plus"}}
    url = stack.client.post("/api/jobs", json=body).raise_for_status().headers["location"]
    job = stack.finished(url)
    assert (job["status"], job["error_code"]) == ("error", "model_unavailable")
    assert "RealESRGAN_x2plus.pth" in job["error"]


def test_a_cancel_stops_the_worker_and_the_next_job_runs(stack, source):
    """The GPU is free again at once; the cancelled job has no output."""
    url = stack.submit(source, output_width=2160, output_height=3840)
    stack.until(url, lambda job: job["progress"] > 5)
    stack.client.post(f"{url}/cancel").raise_for_status()
    began = time.monotonic()
    job = stack.finished(url)
    assert (job["status"], job["output_key"]) == ("cancelled", None)
    assert stack.finished(stack.submit(source, end_time=0.4, **SMALL))["status"] == "complete"
    assert time.monotonic() - began < 30


def test_the_stack_s_worker_is_checked_as_on_runpod(stack):
    """The SDK's checks of memory and disk ran and passed; the one that needs the internet is left
    out, and the log says so.
    """
    told = (stack.stack.folder / "logs" / "worker-1.log").read_text()
    (chosen,) = [line for line in told.splitlines() if "action=machine_checks" in line][-1:]
    assert "run=memory,disk" in chosen
    assert "skipped=network" in chosen
    assert "Memory check passed" in told
    assert "Disk space check passed" in told


def test_no_secret_is_in_the_logs(stack, source):
    """Keys and signed URLs stay out of every part's log."""
    stack.finished(stack.submit(source, end_time=0.2, **SMALL))
    secrets = json.loads((stack.stack.folder / "stack.json").read_text())
    logs = {
        path.name: path.read_text(errors="replace")
        for path in (stack.stack.folder / "logs").iterdir()
    }
    assert set(logs) == {"store.log", "endpoint.log", "worker-1.log", "broker.log"}
    for name, text in logs.items():
        for secret in ("api_key", "runpod_api_key", "s3_secret_key"):
            assert secrets[secret] not in text, name
        assert "X-Amz-Signature" not in text, name


def test_workers_join_by_a_command_work_at_once_and_leave_at_ctrl_c(stack, source, tmp_path):
    """One of the stack's folder; one by RunPod's environment, as in a container. The endpoint
    counts both, and two jobs run side by side.
    """
    _, environment = stack.stack._worker("contained", lambda: True).command()
    folder = str(stack.stack.folder)
    before = stack.workers()
    with contextlib.ExitStack() as stopping:
        joined = [
            stopping.enter_context(typed(tmp_path, *words, **more))
            for words, more in (
                (("--folder", folder), {}),
                ((), {**environment, "REELBROKER_WORK_DIR": str(tmp_path)}),
            )
        ]
        deadline = time.monotonic() + 60
        while stack.workers() < before + 2:
            assert time.monotonic() < deadline
            assert [process.poll() for process in joined] == [None, None]
            time.sleep(0.1)
        # Large enough to be seen at work together on a fast machine.
        urls = [
            stack.submit(source, output_width=720, output_height=1280, end_time=2.0)
            for _ in range(2)
        ]
        stack.until(
            urls[0],
            lambda _: {stack.client.get(url).json()["phase"] for url in urls} == {"processing"},
        )
        assert [stack.finished(url)["status"] for url in urls] == ["complete", "complete"]
        began = time.monotonic()
        for process in joined:
            process.send_signal(signal.SIGINT)
        told = [process.communicate(timeout=15)[0] for process in joined]
    assert [process.returncode for process in joined] == [0, 0], told
    assert (
        time.monotonic() - began < 10
        # The call for a job, which the SDK would sit out, is held for 20.
    )
    assert "Traceback" not in "".join(told)
    assert not list((stack.stack.folder / "work").glob("guest-*"))
    assert processes_in(tmp_path) == []


@contextlib.contextmanager
def typed(folder, *words, **environment):
    """A `reelbroker worker` at a terminal of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "broker.cli.main", "worker", *words],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "COLUMNS": "200", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()


def test_the_smoke_script_finds_all_well(stack):
    """curl alone, from upload to download, against a running stack."""
    script = Path(__file__).parents[1] / "scripts" / "smoke"
    run = subprocess.run(
        [script, stack.stack.broker_url, stack.stack.api_key],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count(" ok") == 12
    wrong = subprocess.run(
        [script, stack.stack.broker_url, "wrong-key"], capture_output=True, timeout=60, check=False
    )
    assert wrong.returncode != 0


class FirstClient:
    """As document 001's client of the provider: a submit and a status, with its own connection
    each.
    """

    def __init__(self, stack):
        keys = json.loads((stack.stack.folder / "stack.json").read_text())
        self.endpoint_url = f"http://127.0.0.1:{keys['ports']['endpoint']}/v2/embedded"
        self.headers = {
            "Authorization": f"Bearer {keys['runpod_api_key']}",
            "Content-Type": "application/json",
        }

    def submit_job(self, **job):
        with httpx.Client() as client:
            reply = client.post(
                f"{self.endpoint_url}/run", headers=self.headers, json={"input": job}, timeout=30
            )
            return reply.raise_for_status().json()

    def get_job_status(self, runpod_job_id):
        with httpx.Client() as client:
            reply = client.get(
                f"{self.endpoint_url}/status/{runpod_job_id}", headers=self.headers, timeout=10
            )
            return reply.raise_for_status().json()


def test_the_first_client_speaks_to_the_endpoint_itself(stack, source):
    """Without a broker: the worker writes exactly the key that it was given."""
    client, user = FirstClient(stack), "local"
    told = client.submit_job(
        job_id="by-hand",
        user_id=user,
        type="framing",
        input_key=source,
        output_key="final_videos/by_hand.mp4",
        params={
            "crop_keyframes": [{"frame": 0, "x": 0, "y": 0, "width": 405, "height": 720}],
            "end_time": 0.4,
            **SMALL,
        },
    )
    assert set(told) == {"id", "status"}
    deadline = time.monotonic() + 60
    while (status := client.get_job_status(told["id"]))["status"] not in ("COMPLETED", "FAILED"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert (status["status"], status["output"]["output_key"]) == (
        "COMPLETED",
        "final_videos/by_hand.mp4",
    )
    link = stack.client.get(
        "/api/storage/presigned-url", params={"key": "final_videos/by_hand.mp4"}
    ).json()["url"]
    assert len(httpx.get(link).raise_for_status().content) == status["output"]["facts"]["bytes"]
