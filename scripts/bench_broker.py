"""The broker side by side with a plain one (bench_peer.py), in one run, on one machine.

It measures submits, polls, streams and calls to RunPod. All over real HTTP on loopback, each broker
a process of its own on SQLite; the provider, the object store and the load, which is this process,
share the machine with them. The last line is one JSON object.
"""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from broker.bucket import open_bucket
from broker.embedded.object_store import PORT_NAMES, ObjectStore
from broker.embedded.ports import free_ports
from broker.settings import Settings

KEY, USER, RUNPOD_KEY = "bench-key-0123456789", "bench", "runpod-key"
JOB = {"type": "framing", "project_id": 1, "input_key": "a.mp4", "params": {"end_time": 5.0}}
CONNECTIONS = 32
UVICORN = [sys.executable, "-m", "uvicorn", "--log-level", "warning", "--no-access-log", "--port"]
#: Where to submit and to poll, of ours and of the plain one.
PATHS = {
    False: ("/api/jobs", "/api/jobs/{}"),
    True: ("/api/export/framing/start", "/api/export/framing/status/{}"),
}


# ── the provider, a process of its own ──────────────────────────────────────────────────────────


def provider() -> Starlette:
    """RunPod's API: takes every job, has each always at work, and counts what it is asked."""
    calls: Counter[str] = Counter()
    #: Since when jobs move; 0: they stand still.
    moving = 0.0

    async def answer(request: Request) -> JSONResponse:
        action = request.path_params["action"].split("/")[0]
        calls[action] += 1
        if action == "run":
            return JSONResponse({"id": f"rp-{calls['run']}", "status": "IN_QUEUE"})
        if action == "health":
            return JSONResponse({"jobs": {}, "workers": {"running": 1}})
        progress = min(99, 50 + int(time.time() - moving)) if moving else 50
        output = {
            "phase": "processing",
            "progress": progress,
            "message": "at work",
        }
        job_id = request.path_params["action"].split("/")[-1]
        return JSONResponse({"id": job_id, "status": "IN_PROGRESS", "output": output})

    async def count(_: Request) -> JSONResponse:
        return JSONResponse(sum(calls.values()))

    async def move(request: Request) -> JSONResponse:
        nonlocal moving
        moving = time.time() if request.path_params["on"] == "1" else 0.0
        return JSONResponse(moving)

    return Starlette(
        routes=[
            Route("/healthz", count),
            Route("/moving/{on}", move, methods=["POST"]),
            Route("/v2/bench/{action:path}", answer, methods=["GET", "POST"]),
        ]
    )


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str], url: str, log: Path) -> Iterator[int]:
    """Runs a server until the end of the `with`; yields its process id."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/healthz").is_success:
                    break
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, f"{url} did not come up"
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# ── the load ────────────────────────────────────────────────────────────────────────────────────


class Connection:
    """One kept-alive HTTP/1.1 connection.

    The client costs little, so that the server is what is measured.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, url: str) -> "Connection":
        host, _, port = url.removeprefix("http://").partition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        """Returns status, head and body."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        body = await self._reader.readexactly(int(length)) if length else b""
        return int(head[9:12]), head, body

    async def lines(self, request: bytes) -> AsyncIterator[bytes]:
        """Yields the lines of an answer that does not end."""
        self._writer.write(request)
        while line := await self._reader.readline():
            yield line

    def close(self) -> None:
        self._writer.close()


def request(method: str, path: str, body: Any = None, **headers: str) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    fields = {
        "Host": "127.0.0.1",
        "Authorization": f"Bearer {KEY}",
        "Content-Length": str(len(content)),
        **headers,
    }
    if content:
        fields["Content-Type"] = "application/json"
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content


async def load(
    url: str, make: Callable[[int], bytes], seconds: float, expected: int
) -> tuple[float, float, float]:
    """Sends requests from all connections for so long; returns (a second, p50 ms, p99 ms)."""
    taken: list[float] = []
    ends = time.perf_counter() + seconds

    async def one(number: int) -> None:
        connection = await Connection.to(url)
        while (began := time.perf_counter()) < ends:
            status, head, body = await connection.ask(make(number))
            assert status == expected, (head, body)
            taken.append(time.perf_counter() - began)
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(CONNECTIONS)))
    rate = len(taken) / (time.perf_counter() - began)
    cuts = statistics.quantiles(taken, n=100)
    return rate, cuts[49] * 1000, cuts[98] * 1000


async def submitted(url: str, path: str, count: int) -> list[str]:
    """Submits so many jobs; returns their ids."""
    connection = await Connection.to(url)
    ids = []
    for _ in range(count):
        _, _, body = await connection.ask(request("POST", path, JOB))
        ids.append(json.loads(body)["job_id"])
    connection.close()
    return ids


async def streams(
    url: str, ids: list[str], count: int, seconds: float
) -> tuple[int, float, float, int]:
    """Holds event streams, half of them on one job and half on all.

    Returns (streams, p50 ms, p99 ms, events heard). A delay is the time from the commit of an event
    to its arrival here.
    """
    delays: list[float] = []
    held = 0

    async def watch(job_id: str) -> None:
        nonlocal held
        connection = await Connection.to(url)
        with contextlib.suppress(asyncio.CancelledError):
            async for line in connection.lines(request("GET", f"/api/jobs/{job_id}/events")):
                if line.startswith(b"event: snapshot"):
                    held += 1
                elif line.startswith(b'data: {"seq"') and b'"changes"' in line:
                    at = datetime.fromisoformat(json.loads(line[6:])["at"]).timestamp()
                    delays.append(time.time() - at)
        connection.close()

    watchers = [
        asyncio.create_task(watch(ids[0] if number % 2 else ids[number // 2 % len(ids)]))
        for number in range(count)
    ]
    deadline = time.monotonic() + 60
    while held < count:
        assert time.monotonic() < deadline, f"only {held} of {count} streams are open"
        await asyncio.sleep(0.1)
    delays.clear()
    await asyncio.sleep(seconds)
    heard = len(delays)
    still = sum(not watcher.done() for watcher in watchers)
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)
    cuts = statistics.quantiles(delays, n=100)
    return still, cuts[49] * 1000, cuts[98] * 1000, heard


# ── the run ─────────────────────────────────────────────────────────────────────────────────────


class Bench:
    """Object store and provider, and brokers on demand, each on a database of its own."""

    def __init__(self, folder: Path) -> None:
        ports = free_ports(len(PORT_NAMES) + 2)
        self._folder, self._brokers = folder, 0
        keys = secrets.token_hex(10), secrets.token_hex(20)
        self.store = ObjectStore(
            folder / "store", dict(zip(PORT_NAMES, ports, strict=False)), *keys, "bench"
        )
        self.provider, self.url = (f"http://127.0.0.1:{port}" for port in ports[-2:])
        self.environment = {
            "PYTHONPATH": str(Path(__file__).parent),
            "RUNPOD_API_KEY": RUNPOD_KEY,
            "RUNPOD_ENDPOINT_URL": f"{self.provider}/v2/bench",
            "R2_ENDPOINT": self.store.url,
            "R2_ACCESS_KEY_ID": self.store.access_key,
            "R2_SECRET_ACCESS_KEY": self.store.secret_key,
            "R2_BUCKET_NAME": "bench",
            "REELBROKER_API_KEY": KEY,
            "REELBROKER_USER_ID": USER,
            "REELBROKER_PORT": self.url[17:],
            "REELBROKER_REQUESTS_PER_MINUTE": "100000000",
            "REELBROKER_MAX_OPEN_JOBS": "10000000",
        }

    @contextlib.asynccontextmanager
    async def surroundings(self) -> AsyncIterator[None]:
        """Runs object store and provider."""
        weed = subprocess.Popen(
            self.store.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, umask=0o077
        )
        try:
            while not self.store.prepare():
                assert weed.poll() is None, "the object store ended"
                await asyncio.sleep(0.1)
            settings = Settings(_env_file=None, **self.environment)  # type: ignore[arg-type]
            bucket = open_bucket(settings)
            bucket.write(f"{USER}/a.mp4", b"a video")
            with running(
                [*UVICORN, self.provider[17:], "--factory", "bench_broker:provider"],
                self.environment,
                self.provider,
                self._folder / "provider.log",
            ):
                yield
        finally:
            weed.kill()
            weed.wait()

    @contextlib.contextmanager
    def broker(self, plain: bool) -> Iterator[int]:
        """Runs ours or the plain one; yields its process id."""
        self._brokers += 1
        file = self._folder / f"broker-{self._brokers}.db"
        databases = {"REELBROKER_DATABASE_URL": f"sqlite:///{file}", "PEER_DATABASE": str(file)}
        command = (
            [*UVICORN, self.url[17:], "bench_peer:app"]
            if plain
            else [sys.executable, "-m", "broker.cli.main", "serve"]
        )
        with running(
            command, self.environment | databases, self.url, file.with_suffix(".log")
        ) as pid:
            yield pid

    def calls(self) -> int:
        """Returns how often the provider was asked until now."""
        return int(httpx.get(f"{self.provider}/healthz").json())

    def moving(self, on: bool) -> None:
        """Sets whether the provider reports progress."""
        httpx.post(f"{self.provider}/moving/{int(on)}").raise_for_status()

    async def compare(self, plain: bool, seconds: float) -> dict[str, float]:
        """Measures polls and submits of one broker."""
        submit, status = PATHS[plain]
        figures: dict[str, float] = {}
        with self.broker(plain):
            ids = await submitted(self.url, submit, CONNECTIONS)
            # Until each is at the provider, and at work.
            await asyncio.sleep(4)
            if not plain:
                known = [await self._known(status.format(job_id)) for job_id in ids]
                figures |= named(
                    "polls", await load(self.url, lambda number: known[number], seconds, 304)
                )
            polls = [request("GET", status.format(job_id)) for job_id in ids]
            figures |= named(
                "full_polls", await load(self.url, lambda number: polls[number], seconds, 200)
            )
            body = request("POST", submit, JOB)
            figures |= named(
                "submits", await load(self.url, lambda _: body, seconds, 200 if plain else 202)
            )
        return {
            ("peer_" + name).replace("full_", "") if plain else name: value
            for name, value in figures.items()
        }

    async def _known(self, path: str) -> bytes:
        """Returns the poll of a client that has seen the job as it is."""
        connection = await Connection.to(self.url)
        _, head, _ = await connection.ask(request("GET", path))
        connection.close()
        etag = head.decode().lower().partition("etag: ")[2].partition("\r\n")[0].upper()
        return request("GET", path, If_None_Match=etag)

    async def hold(self, count: int, seconds: float) -> dict[str, float]:
        """Holds event streams on our broker while jobs move."""
        with self.broker(plain=False) as pid:
            ids = await submitted(self.url, PATHS[False][0], 100)
            await asyncio.sleep(4)
            before = resident_kib(pid)
            self.moving(True)
            still, middle, high, heard = await streams(self.url, ids, count, seconds)
            self.moving(False)
            figures = {
                "sse_streams": still,
                "sse_p50_ms": middle,
                "sse_p99_ms": high,
                "sse_events": heard,
            }
            return figures | {"sse_kib_each": (resident_kib(pid) - before) / count}

    async def calls_of_a_job(self, plain: bool, pollers: int, seconds: float) -> int:
        """Returns how often RunPod was asked in the first seconds of a job.

        So many clients poll it, each twice a second.
        """
        submit, status = PATHS[plain]
        with self.broker(plain):
            before, ends = self.calls(), time.monotonic() + seconds
            (job_id,) = await submitted(self.url, submit, 1)

            async def poll() -> None:
                connection = await Connection.to(self.url)
                while time.monotonic() < ends:
                    await connection.ask(request("GET", status.format(job_id)))
                    await asyncio.sleep(0.5)
                connection.close()

            await asyncio.gather(*(poll() for _ in range(pollers)))
            return self.calls() - before


def named(what: str, measured: tuple[float, float, float]) -> dict[str, float]:
    rate, middle, high = measured
    return {f"{what}_per_s": rate, f"{what}_p50_ms": middle, f"{what}_p99_ms": high}


def resident_kib(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


async def measure(seconds: float, count: int, folder: Path) -> dict[str, float]:
    bench = Bench(folder)
    async with bench.surroundings():
        figures = await bench.compare(plain=False, seconds=seconds)
        figures |= await bench.compare(plain=True, seconds=seconds)
        figures |= await bench.hold(count, 3 * seconds)
        figures["runpod_calls_by_one_poller"] = await bench.calls_of_a_job(False, 1, 2 * seconds)
        figures["runpod_calls_per_job"] = await bench.calls_of_a_job(False, 200, 2 * seconds)
        figures["peer_runpod_calls_per_job"] = await bench.calls_of_a_job(True, 200, 2 * seconds)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each load lasts")
    parser.add_argument("--streams", type=int, default=2000, help="how many event streams to hold")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = uvloop.run(measure(options.seconds, options.streams, Path(folder)))
    row = "{:34} {:>14} {:>14} {:>8}".format
    print(row(f"{os.cpu_count()} cores, {CONNECTIONS} connections", "ours", "plain", "ratio"))
    for name, ours, plain in (
        ("submits/s", "submits_per_s", "peer_submits_per_s"),
        ("polls/s (ours: 304)", "polls_per_s", "peer_polls_per_s"),
        ("polls/s (ours: the whole job)", "full_polls_per_s", "peer_polls_per_s"),
    ):
        print(
            row(
                name,
                *(f"{figures[one]:.0f}" for one in (ours, plain)),
                f"{figures[ours] / figures[plain]:.1f}x",
            )
        )
        for cut in ("p50_ms", "p99_ms"):
            names = ours.replace("per_s", cut), plain.replace("per_s", cut)
            print(row(f"  {cut}", *(f"{figures[name]:.1f}" for name in names), ""))
    lone, crowd, peer = (
        figures[name]
        for name in (
            "runpod_calls_by_one_poller",
            "runpod_calls_per_job",
            "peer_runpod_calls_per_job",
        )
    )
    print(
        row(
            f"RunPod calls in {2 * options.seconds:g} s, 200 pollers",
            f"{crowd:.0f}",
            f"{peer:.0f}",
            "",
        )
    )
    print(row("  by one poller", f"{lone:.0f}", "", ""))
    print(row("event streams held", f"{figures['sse_streams']:.0f}", "none", ""))
    print(
        f"  delay p50 {figures['sse_p50_ms']:.0f} ms, p99 {figures['sse_p99_ms']:.0f} ms, "
        f"{figures['sse_events']:.0f} events heard, {figures['sse_kib_each']:.0f} KiB each"
    )
    print(json.dumps({name: round(value, 1) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
