"""A provider that tests steer: RunPod's public API in memory, with faults, and a worker's hand in
the bucket.

It obeys the contract that test_conformance.py checks on it and on the embedded servers alike. Each
host is a place of its own, so that one of these serves as several providers.
"""

import hashlib
import json
from dataclasses import replace

import httpx

from broker.jobs.observation import RemoteJob, RemoteState
from broker.providers.runpod import RunPod
from schemas.keys import object_key
from schemas.worker import attempt_folder


class Provider(httpx.MockTransport):
    """Use it as the transport of a broker. `fault` decides about the next calls; jobs are moved by
    the test.
    """

    def __init__(self):
        super().__init__(self._answer)
        self.jobs = {}
        self.every = {}  #: also those that were forgotten
        self.calls = []
        self.fault = None
        self.workers = {"idle": 1}
        self.away = set()  #: hosts where nobody listens

    @property
    def submits(self):
        return [path for path in self.calls if path.endswith("/run")]

    def only(self):
        """Returns the one job that was submitted."""
        (job,) = self.jobs.values()
        return job

    def _answer(self, request):
        self.calls.append(request.url.path)
        if request.url.host in self.away:
            refuse(request)
        if self.fault is not None and (reply := self.fault(request)) is not None:
            return reply
        if request.headers.get("authorization") != "Bearer runpod-key":
            return httpx.Response(401)
        return self.carry_out(request)

    def carry_out(self, request):
        """Does what RunPod would do without a fault."""
        host = request.url.host
        action, _, job_id = request.url.path.removeprefix("/v2/embedded/").partition("/")
        if action == "run":
            body = json.loads(request.content)
            job_id = f"rp-{len(self.every) + 1}"
            self.jobs[job_id] = self.every[job_id] = {
                "id": job_id,
                "status": "IN_QUEUE",
                "sent": body,
                "host": host,
            }
            return httpx.Response(200, json={"id": job_id, "status": "IN_QUEUE"})
        if action == "health":
            here = [job for job in self.jobs.values() if job["host"] == host]
            queued = sum(job["status"] == "IN_QUEUE" for job in here)
            running = sum(job["status"] == "IN_PROGRESS" for job in here)
            jobs = {"inQueue": queued, "inProgress": running}
            return httpx.Response(200, json={"jobs": jobs, "workers": self.workers})
        if job_id not in self.jobs or self.jobs[job_id]["host"] != host:
            return httpx.Response(404)
        if action == "cancel" and self.jobs[job_id]["status"] in ("IN_QUEUE", "IN_PROGRESS"):
            self.jobs[job_id]["status"] = "CANCELLED"
        shown = {k: v for k, v in self.jobs[job_id].items() if k not in ("sent", "host")}
        return httpx.Response(200, json=shown)


def refuse(request):
    """A fault: nobody listens."""
    raise httpx.ConnectError("connection refused", request=request)


class Vague(RunPod):
    """A provider that behaves at the seam as Modal does, over the same API in memory: it does not
    tell a queued job from a running one, calls nobody back and bills no seconds.
    """

    name = "modal"
    calls_back = False
    bills_seconds = False
    keeps_results_seconds = 604_800.0

    async def status(self, target, provider_job_id):
        remote = await super().status(target, provider_job_id)
        if remote.state.is_over:
            return replace(remote, execution_seconds=None)
        return RemoteJob(RemoteState.OPEN)


class Worker:
    """Writes into the bucket what a worker would, for the attempt that was submitted."""

    def __init__(self, bucket, sent):
        self._bucket = bucket
        self._input = sent["input"]

    def key(self, name):
        job = self._input
        return object_key(
            job["user_id"], f"{attempt_folder(job['job_id'], job['attempt_token'])}/{name}"
        )

    def start(self, runpod_job_id):
        """Writes started.json."""
        self._write("started.json", {"runpod_job_id": runpod_job_id, "worker_id": "w", "at_ms": 1})

    def report(self, **progress):
        """Writes progress.json."""
        self._write("progress.json", progress)

    def finish(self, body=b"a film", claimed_bytes=None, gpu=None):
        """Writes the output and result.json, and returns the output's key."""
        key, result = self._output(0, body, claimed_bytes)
        self._write("result.json", result | {"gpu": gpu})
        return key

    def commit(self, bucket, execution):
        """As `finish`, but only the first of several executions publishes; returns its output's
        key, or None.
        """
        key, result = self._output(execution, b"a film", None)
        if bucket.write_once(self.key("result.json"), json.dumps(result).encode()):
            return key
        bucket.delete(object_key(self._input["user_id"], key))
        return None

    def _output(self, execution, body, claimed_bytes):
        """Writes the output; returns its key and what result.json says of it."""
        key = f"final_videos/framing_{self._input['job_id']}_{execution:08x}.mp4"
        self._bucket.write(object_key(self._input["user_id"], key), body)
        facts = {
            "bytes": claimed_bytes or len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "width": 1080,
            "height": 1920,
            "fps": 25.0,
            "frames": 10,
            "duration_seconds": 0.4,
            "video_codec": "h264",
            "audio_codec": None,
        }
        timings = {"fetch_seconds": 1.0, "edit_seconds": 2.0, "upload_seconds": 0.5}
        return key, {"output_key": key, "runpod_job_id": "rp-9", "facts": facts, "timings": timings}

    def told_to_stop(self):
        """True when stop.json fences the attempt."""
        return self._bucket.size(self.key("stop.json")) is not None

    def _write(self, name, document):
        self._bucket.write(self.key(name), json.dumps(document).encode())
