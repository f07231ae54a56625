"""The whole system on Modal's protocol: the unmodified client, deploy and container runtime, with
the real worker; its containers are killed, preempted and cancelled.
"""

import contextlib
import json
import os
import signal
import sqlite3
import time

import pytest

from broker.bucket import open_bucket
from broker.embedded import stack as stack_module
from gpu_worker.media.probe import output_facts
from schemas.keys import object_key
from schemas.worker import attempt_folder
from tests.broker.configured import configured
from tests.stack_thread import StackThread, processes_in

SMALL = {"output_width": 270, "output_height": 480}


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """One stack with Modal's server and one container."""
    folder = tmp_path_factory.mktemp("modal").resolve()
    with pytest.MonkeyPatch.context() as patch:
        # Dying is nothing unusual here.
        patch.setattr(stack_module, "BACKOFF_SECONDS", (0.2,) * 6)
        with StackThread(folder, providers=["modal"]) as stack:
            yield stack
    assert processes_in(folder) == []


@pytest.fixture(scope="module")
def source(stack, big_buck_bunny):
    """The sample clip, uploaded once."""
    return stack.upload(big_buck_bunny)


def calls(stack):
    """Returns the server's calls by their ids, as its file has them."""
    with sqlite3.connect(stack.stack.folder / "modal" / "modal.db") as database:
        rows = database.execute("SELECT id, job FROM queue").fetchall()
    return {call_id: json.loads(job) for call_id, job in rows}


def document(stack, job, name):
    """Returns a control document of a job's newest attempt."""
    with sqlite3.connect(stack.stack.folder / "reelbroker.db") as database:
        (token,) = database.execute(
            "SELECT token FROM job_attempts WHERE job_id = ? ORDER BY number DESC",
            (job["job_id"],),
        ).fetchone() or ("",)
    bucket = open_bucket(configured(stack.stack._store))
    key = object_key("local", f"{attempt_folder(job['job_id'], token)}/{name}")
    return json.loads(bucket.read(key) or b"null")


def editing(job):
    return job["phase"] == "processing" and job["progress"] > 10


def test_a_clip_is_exported_through_modal(stack, source, tmp_path):
    """Deployed, spawned, run and uploaded; with real progress, and seconds that the worker took."""
    seen = []

    def watch(job):
        seen.append((job["phase"], job["progress"]))
        return job["status"] in ("complete", "error")

    job = stack.until(stack.submit(source), watch)
    assert (job["status"], job["error"], job["attempt"]) == ("complete", None, 1)
    progress = [percent for _, percent in seen]
    assert progress == sorted(progress)
    assert any(10 < percent < 90 for percent in progress)
    facts = output_facts(stack.download(job, tmp_path / "out.mp4"))
    assert (facts.width, facts.height, facts.frames, facts.fps) == (1080, 1920, 132, 25)
    assert job["modal_call_id"] in calls(stack)
    assert (job["provider"], job["runpod_job_id"]) == ("modal", None)
    assert job["gpu_seconds"] > 0
    assert document(stack, job, "progress.json")["phase"] in ("processing", "uploading")


@pytest.mark.parametrize(
    ("number", "part"),
    [(signal.SIGKILL, "container-1"), (signal.SIGINT, "container-1"), (signal.SIGKILL, "modal")],
    ids=["killed", "preempted", "server-killed"],
)
def test_a_container_that_ends_in_mid_job_leaves_no_output(stack, source, tmp_path, number, part):
    """The platform runs the same call again, in another container; the job is no other attempt."""
    url = stack.submit(source)
    running = stack.until(url, editing)
    before = stack.stack.pid(part)
    os.kill(before, number)
    job = stack.finished(url, seconds=120)
    assert (job["status"], job["error"], job["attempt"]) == ("complete", None, 1)
    assert job["modal_call_id"] == running["modal_call_id"]
    assert output_facts(stack.download(job, tmp_path / "out.mp4")).frames == 132
    assert stack.stack.pid(part) != before
    call = calls(stack)[job["modal_call_id"]]
    again = int(part == "container-1")
    assert call["retries"] >= again
    assert document(stack, job, "started.json")["deliveries"] == 1 + call["retries"]


def test_a_cancel_stops_the_work_and_keeps_the_container(stack, source):
    """The call is terminated, ffmpeg ends, and the same container takes the next job."""
    container = stack.stack.pid("container-1")
    url = stack.submit(source)
    running = stack.until(url, editing)
    stack.client.post(f"{url}/cancel").raise_for_status()
    job = stack.finished(url, seconds=30)
    assert job["status"] == "cancelled"
    assert calls(stack)[running["modal_call_id"]]["state"] == "CANCELLED"
    deadline = time.monotonic() + 10
    while any("ffmpeg" in line for line in processes_in(stack.stack.folder)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    after = stack.finished(stack.submit(source, end_time=0.4, **SMALL), seconds=30)
    assert (after["status"], stack.stack.pid("container-1")) == ("complete", container)


def test_a_job_that_kills_its_containers_is_not_restarted_without_end(stack, source):
    """Modal would go on; the worker refuses the fourth delivery, and the broker counts a failed
    attempt.
    """
    url, killed = stack.submit(source), []

    def is_over(job):
        started = document(stack, job, "started.json")
        delivery = started and (started["runpod_job_id"], started["deliveries"])
        if started is not None and delivery not in killed:
            # Not while the supervisor starts the next one.
            with contextlib.suppress(ProcessLookupError):
                stack.kill("container-1")
                killed.append(delivery)
        return job["attempt"] > 1

    job = stack.until(url, is_over, seconds=120)
    assert job["status"] == "processing"
    calls_killed, deliveries = zip(*killed[:3], strict=True)
    assert (len(set(calls_killed)), deliveries) == (1, (1, 2, 3))
    stack.client.post(f"{url}/cancel").raise_for_status()
    stack.finished(url, seconds=30)


def test_a_job_that_is_sent_while_modal_is_down_goes_when_it_is_back(stack, source):
    """A submit is accepted whether or not the provider is there."""
    stack.kill("modal")
    url = stack.submit(source, end_time=0.4, **SMALL)
    assert stack.finished(url, seconds=60)["status"] == "complete"
