"""A whole embedded stack for synchronous tests: its event loop runs in a thread of its own."""

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import httpx

from broker.embedded.stack import Stack


class StackThread:
    """Enters a Stack in the background; exceptions from starting it are raised here."""

    def __init__(self, folder, workers=1, **options):
        self.stack = Stack(folder, workers, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        self._run(self.stack.__aenter__())
        self.client = httpx.Client(
            base_url=self.stack.broker_url,
            headers={"Authorization": f"Bearer {self.stack.api_key}"},
            timeout=30,
        )
        return self

    def __exit__(self, *_):
        self.client.close()
        self._run(self.stack.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def kill(self, part):
        """Kills a part as hard as it goes, and returns its process id."""
        pid = self.stack.pid(part)
        os.kill(pid, signal.SIGKILL)
        return pid

    def workers(self):
        """Returns how many workers the endpoint counts."""
        return self._run(self.stack._endpoint_workers())

    def upload(self, path, name="clip.mp4"):
        """Puts a file into the bucket as a frontend does, and returns its key."""
        ticket = (
            self.client.post("/api/videos/upload-url", json={"filename": name})
            .raise_for_status()
            .json()
        )
        httpx.put(
            ticket["upload_url"],
            content=Path(path).read_bytes(),
            headers=ticket["headers"],
            timeout=60,
        ).raise_for_status()
        return ticket["video_key"]

    def submit(self, key, **params):
        """Submits a framing job and returns its URL."""
        body = {"type": "framing", "input_key": key, "params": params}
        return self.client.post("/api/jobs", json=body).raise_for_status().headers["location"]

    def until(self, url, done, seconds=90):
        """Polls a job until `done(job)`, through restarts of the broker."""
        deadline = time.monotonic() + seconds
        job = None
        while time.monotonic() < deadline:
            try:
                job = self.client.get(url).json()
            except httpx.TransportError:
                time.sleep(0.2)
                continue
            if done(job):
                return job
            time.sleep(0.1)
        raise AssertionError(f"not reached after {seconds} s: {job}")

    def finished(self, url, seconds=90):
        """Waits for the job's end."""
        return self.until(
            url, lambda job: job["status"] in ("complete", "error", "cancelled"), seconds
        )

    def download(self, job, path):
        """Fetches the output by its redirect."""
        where = self.client.get(job["urls"]["output"]).headers["location"]
        path.write_bytes(httpx.get(where, timeout=60).raise_for_status().content)
        return path


def processes_in(folder):
    """Returns the command lines of all processes whose working folder lies in `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
        # It ended while we looked.
        except OSError:
            continue
    return found
