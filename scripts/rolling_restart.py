"""Restarts a broker under load again and again, and counts failed requests and lost events.

The listening socket is held here and handed to each broker in turn, as systemd does it: between the
end of one and the start of the next, connections wait in the socket. Clients submit and poll
without trying anything again, each request on a connection of its own, as a proxy without
keep-alive sends them; watchers come back where they were cut off, as an EventSource does.
"""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from bench_broker import JOB, KEY, Bench

WATCHERS, SUBMITTERS, POLLERS = 20, 4, 8
BETWEEN_SECONDS = 2.0


class Broker:
    """A broker on a socket that outlives it."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._environment, self._log = os.environ | environment, log

    async def start(self) -> None:
        # The socket must be descriptor 3, and the process find its own id in the environment.
        handed = self._listening.fileno()
        serve = f'"{sys.executable}" -m broker.cli.main serve'
        command = f"exec 3<&{handed} && LISTEN_FDS=1 LISTEN_PID=$$ exec {serve}"
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                "bash",
                "-c",
                command,
                env=self._environment,
                pass_fds=[handed],
                stdout=log,
                stderr=log,
            )
        # It waits in the socket, too.
        async with httpx.AsyncClient(timeout=60) as http:
            (await http.get(f"{self.url}/readyz")).raise_for_status()

    async def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        await self._process.wait()


class Load:
    """What clients do, and what came of it."""

    def __init__(self, url: str) -> None:
        self._url, self._over = url, False
        self._headers = {"Authorization": f"Bearer {KEY}", "Connection": "close"}
        self.requests, self.failed, self.longest, self.cut = 0, list[str](), 0.0, 0
        self.jobs: list[str] = []
        #: By each watcher, the numbers of a job's events.
        self.heard: dict[str, list[int]] = {}

    async def run(self, http: httpx.AsyncClient, meanwhile: Any) -> None:
        """Submits, polls and watches until `meanwhile` is done."""
        works = [self._submit] * SUBMITTERS + [self._poll] * POLLERS
        tasks = [asyncio.create_task(work(http)) for work in works]
        while len(self.jobs) < WATCHERS:
            await asyncio.sleep(0.1)
        watches = [
            asyncio.create_task(self._watch(http, job_id)) for job_id in self.jobs[:WATCHERS]
        ]
        await meanwhile
        self._over = True
        await asyncio.gather(*tasks)
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)

    async def ask(
        self, http: httpx.AsyncClient, method: str, path: str, body: Any = None
    ) -> httpx.Response | None:
        """Sends one request, once."""
        began = time.monotonic()
        self.requests += 1
        try:
            reply = await http.request(method, self._url + path, headers=self._headers, json=body)
            reply.raise_for_status()
        except httpx.HTTPError as error:
            self.failed.append(f"{method} {path}: {error!r}")
            return None
        finally:
            self.longest = max(self.longest, time.monotonic() - began)
        return reply

    async def _submit(self, http: httpx.AsyncClient) -> None:
        while not self._over:
            if (reply := await self.ask(http, "POST", "/api/jobs", JOB)) is not None:
                self.jobs.append(reply.json()["job_id"])
            await asyncio.sleep(0.2)

    async def _poll(self, http: httpx.AsyncClient) -> None:
        while not self._over:
            if self.jobs:
                await self.ask(http, "GET", f"/api/jobs/{secrets.choice(self.jobs)}")
            await asyncio.sleep(0.05)

    async def _watch(self, http: httpx.AsyncClient, job_id: str) -> None:
        numbers = self.heard.setdefault(job_id, [])
        url = f"{self._url}/api/jobs/{job_id}/events"
        while True:
            with contextlib.suppress(httpx.HTTPError):
                after = {"after": str(numbers[-1] if numbers else 0)}
                async with http.stream("GET", url, params=after, headers=self._headers) as reply:
                    async for line in reply.aiter_lines():
                        if line.startswith("id:"):
                            numbers.append(int(line[3:]))
            self.cut += 1

    async def amiss(self, http: httpx.AsyncClient) -> int:
        """Returns how many events any watcher missed, heard twice or heard out of order."""
        count = 0
        for job_id, numbers in self.heard.items():
            reply = await http.get(f"{self._url}/api/jobs/{job_id}", headers=self._headers)
            every = range(1, int(reply.headers["etag"].strip('W/"')) + 1)
            count += 0 if numbers == [*every] else len(set(every) - set(numbers)) or 1
        return count


async def measure(folder: Path, restarts: int) -> dict[str, float]:
    bench = Bench(folder)
    async with (
        bench.surroundings(),
        httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as http,
    ):
        database = {"REELBROKER_DATABASE_URL": f"sqlite:///{folder}/broker.db"}
        broker = Broker(bench.environment | database, folder / "broker.log")
        await broker.start()
        bench.moving(True)
        load, took = Load(broker.url), list[float]()

        async def restarting() -> None:
            for _ in range(restarts):
                await asyncio.sleep(BETWEEN_SECONDS)
                began = time.monotonic()
                await broker.stop()
                await broker.start()
                took.append(time.monotonic() - began)
            bench.moving(False)
            # Until every event has arrived.
            await asyncio.sleep(2 * BETWEEN_SECONDS)

        await load.run(http, restarting())
        amiss = await load.amiss(http)
        await broker.stop()
    for line in load.failed[:10]:
        print(line)
    return {
        "restarts": restarts,
        "restart_seconds": round(sum(took) / len(took), 2),
        "requests": load.requests,
        "failed": len(load.failed),
        "longest_request_seconds": round(load.longest, 2),
        "jobs": len(load.jobs),
        "streams_cut": load.cut,
        "events": sum(len(numbers) for numbers in load.heard.values()),
        "events_amiss": amiss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--restarts", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = asyncio.run(measure(Path(folder), options.restarts))
    print(json.dumps(counts))
    sys.exit(bool(counts["failed"] or counts["events_amiss"]))


if __name__ == "__main__":
    main()
