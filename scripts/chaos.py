"""Counts jobs that are lost, published twice or run for nothing while parts die by kill -9.

The jobs and the stack are real. First one job is watched, to learn every commit and call that
broker and worker make for it. Half of the kills then fall on these boundaries, one after the other,
the other half on all parts at random moments. A client that hears nothing sends its job again under
the id that it chose. The last line is one JSON object; the exit code is 1 unless all is well.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import structlog
from sample import sample_clip

from broker.embedded import stack as stack_module
from broker.embedded.stack import Part, Stack

WORKERS = 2
AT_ONCE = 4
PARAMS = {"output_width": 64, "output_height": 96, "end_time": 0.4}
JOB_SECONDS = 240.0
HERE = Path(__file__).parent
#: The part that is the provider, and how its workers are called.
SERVERS = {"runpod": "endpoint", "modal": "modal"}
_WORKERS = {"runpod": "worker", "modal": "container"}


def worker_names(providers: Sequence[str]) -> list[str]:
    """Returns the names of all workers of these providers."""
    return [f"{_WORKERS[name]}-{n}" for name in providers for n in range(1, WORKERS + 1)]


class ChaosStack(Stack):
    """The stack, with a broker and workers that die where a file names a boundary."""

    def armed(self, part: str) -> Path:
        """Returns the file that names the boundary at which a part dies."""
        return self.folder / f"chaos-{part}"

    def _broker_command(self) -> tuple[list[str], dict[str, str]]:
        _, environment = super()._broker_command()
        # A provider that is gone for good keeps its jobs until their limits are over.
        limits = {"REELBROKER_EXECUTION_TIMEOUT_SECONDS": "60"}
        return self._with_boundaries("broker", "broker", environment | limits)

    def _worker(self, name: str, is_ready: Callable[[], Awaitable[bool]]) -> Part:
        part = super()._worker(name, is_ready)
        return replace(
            part, command=lambda: self._with_boundaries(part.name, "worker", part.command()[1])
        )

    def _container(self, name: str) -> Part:
        part = super()._container(name)
        return replace(
            part, command=lambda: self._with_boundaries(part.name, "container", part.command()[1])
        )

    async def lose(self, provider: str) -> None:
        """Stops a provider and its workers for good."""
        gone = [SERVERS[provider], *worker_names([provider])]
        for running in [one for one in self._running if one.part.name in gone]:
            self._running.remove(running)
            await running.stop()

    def _with_boundaries(
        self, name: str, kind: str, environment: dict[str, str]
    ) -> tuple[list[str], dict[str, str]]:
        command = [sys.executable, str(HERE / "chaos_part.py"), kind]
        return command, environment | {
            "CHAOS_FILE": str(self.armed(name)),
            "PYTHONPATH": str(HERE.parent),
        }


@dataclass
class Tally:
    """What was counted."""

    kills: int = 0
    complete: int = 0
    failed: int = 0
    lost: int = 0
    published_twice: int = 0


class Client:
    """A client that never gives up."""

    def __init__(self, stack: Stack) -> None:
        headers = {"Authorization": f"Bearer {stack.api_key}"}
        self._http = httpx.AsyncClient(base_url=stack.broker_url, headers=headers, timeout=10)
        self.accepted: list[str] = []
        self._key = ""

    async def upload(self, clip: Path) -> None:
        ticket = (
            await self._http.post("/api/videos/upload-url", json={"filename": clip.name})
        ).json()
        async with httpx.AsyncClient(timeout=60) as bucket:
            put = await bucket.put(
                ticket["upload_url"], content=clip.read_bytes(), headers=ticket["headers"]
            )
            put.raise_for_status()
        self._key = ticket["video_key"]

    async def submit(self) -> str:
        """Sends a job until it is acknowledged."""
        job_id = str(uuid.uuid4())
        body = {"type": "framing", "input_key": self._key, "params": PARAMS}
        while (
            reply := await self._call("PUT", f"/api/jobs/{job_id}", body)
        ) is None or reply.is_server_error:
            await asyncio.sleep(0.2)
        reply.raise_for_status()
        self.accepted.append(job_id)
        return job_id

    async def job(self, job_id: str) -> dict[str, object] | None:
        """Returns a job; None where the broker does not answer, an empty one where it has none."""
        reply = await self._call("GET", f"/api/jobs/{job_id}")
        if reply is None or reply.is_server_error:
            return None
        return dict(reply.json()) if reply.status_code == 200 else {}

    async def is_over(self, job_id: str) -> bool:
        job = await self.job(job_id)
        return job is not None and job.get("status") in ("complete", "error", "cancelled")

    async def until_over(self, job_ids: list[str], seconds: float) -> list[str]:
        """Waits; returns those that are still open."""
        deadline, left = time.monotonic() + seconds, list(job_ids)
        while left and time.monotonic() < deadline:
            left = [job_id for job_id in left if not await self.is_over(job_id)]
            await asyncio.sleep(0.2)
        return left

    async def close(self) -> None:
        await self._http.aclose()

    async def _call(self, method: str, path: str, body: object = None) -> httpx.Response | None:
        try:
            return await self._http.request(method, path, json=body)
        except httpx.HTTPError:
            return None


async def chaos(
    folder: Path, kills: int, dice: random.Random, providers: list[str]
) -> dict[str, object]:
    """Runs it all; returns the figures."""
    tally = Tally()
    # Dying is nothing unusual here.
    stack_module.BACKOFF_SECONDS = (0.2,) * 6
    async with ChaosStack(folder, WORKERS, providers=providers) as stack:
        client = Client(stack)
        await client.upload(sample_clip())
        await client.until_over([await client.submit()], JOB_SECONDS)
        targets = [
            (part, number)
            for part in ("broker", "worker")
            for number in range(1, _boundaries(stack, part, providers) + 1)
        ]
        print(f"one job passes {len(targets)} boundaries in broker and worker", flush=True)
        chosen = targets if len(targets) <= kills // 2 else sorted(dice.sample(targets, kills // 2))
        for part, number in chosen:
            tally.kills += await _kill_at(stack, client, part, number, providers)
        print(f"{tally.kills} kills at boundaries", flush=True)
        left = max(0, kills - tally.kills)
        if len(providers) > 1:
            # The preferred one, so that most jobs are there.
            await _kill_at_random(stack, client, left // 2, dice, tally, providers)
            left -= left // 2
            await stack.lose(providers[0])
            print(f"{providers[0]} is gone for good, {tally.kills} kills so far", flush=True)
            providers = providers[1:]
        await _kill_at_random(stack, client, left, dice, tally, providers)
        print(f"{tally.kills} kills in all; waiting for what is open", flush=True)
        open_jobs = await client.until_over(client.accepted, JOB_SECONDS)
        await _count(client, open_jobs, tally)
        await client.close()
    integrity = _integrity(folder / "reelbroker.db")
    tally.published_twice = _published_twice(folder / "reelbroker.db")
    runs = sum(map(_gpu_runs, (folder / "endpoint.db", folder / "modal" / "modal.db")))
    return {
        "kills": tally.kills,
        "accepted": len(client.accepted),
        "complete": tally.complete,
        "error": tally.failed,
        "lost": tally.lost,
        "published_twice": tally.published_twice,
        "extra_gpu_runs": runs - len(client.accepted),
        "integrity": integrity,
    }


def _boundaries(stack: ChaosStack, part: str, providers: list[str]) -> int:
    names = [part] if part == "broker" else worker_names(providers)
    traces = [stack.armed(name).with_name(f"{stack.armed(name).name}.trace") for name in names]
    return sum(len(trace.read_text().splitlines()) for trace in traces if trace.exists())


async def _kill_at(
    stack: ChaosStack, client: Client, part: str, number: int, providers: list[str]
) -> int:
    """Has a part die at a boundary of the next job; returns whether it did."""
    names = [part] if part == "broker" else worker_names(providers)
    # Whichever worker takes it.
    for name in names:
        stack.armed(name).write_text(str(number))
    pids = {name: stack.pid(name) for name in names}
    job_id = await client.submit()
    deadline = time.monotonic() + 20
    while all(stack.pid(name) == pid for name, pid in pids.items()) and time.monotonic() < deadline:
        if await client.is_over(job_id) and all(stack.armed(name).read_text() for name in names):
            # It needed fewer this time.
            break
        await asyncio.sleep(0.1)
    for name in names:
        stack.armed(name).write_text("")
    return int(any(stack.pid(name) != pid for name, pid in pids.items()))


async def _kill_at_random(
    stack: ChaosStack,
    client: Client,
    kills: int,
    dice: random.Random,
    tally: Tally,
    providers: list[str],
) -> None:
    servers = [SERVERS[name] for name in providers]
    parts = ["broker", "store", *servers, *worker_names(providers)]
    open_jobs: list[str] = []
    wanted = tally.kills + kills
    while tally.kills < wanted:
        open_jobs = [job_id for job_id in open_jobs if not await client.is_over(job_id)]
        while len(open_jobs) < AT_ONCE:
            open_jobs.append(await client.submit())
        await asyncio.sleep(dice.uniform(0.1, 2.5))
        try:
            os.kill(stack.pid(dice.choice(parts)), signal.SIGKILL)
        except ProcessLookupError:
            # Down already.
            continue
        tally.kills += 1


async def _count(client: Client, left: list[str], tally: Tally) -> None:
    for job_id in client.accepted:
        job = await client.job(job_id)
        if job_id in left or not job:
            tally.lost += 1
            print(f"lost: {job_id} {job}", flush=True)
        elif job["status"] != "complete":
            tally.failed += 1
            print(f"{job['status']}: {job_id} {job['error_code']} {job['error']}", flush=True)
        else:
            reply = await client._call("GET", f"/api/jobs/{job_id}/output")
            assert reply is not None
            async with httpx.AsyncClient(timeout=60) as bucket:
                body = (await bucket.get(reply.headers["location"])).content
            result = job["result"]
            assert isinstance(result, dict)
            tally.complete += len(body) == result["bytes"]
            tally.lost += len(body) != result["bytes"]


def _integrity(database: Path) -> str:
    with sqlite3.connect(database) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


def _published_twice(database: Path) -> int:
    """Counts jobs with more than one event that names an output."""
    query = """SELECT count(*) FROM (SELECT job_id FROM job_events
               WHERE json_extract(data, '$.output_key') IS NOT NULL
               GROUP BY job_id HAVING count(*) > 1)"""
    with sqlite3.connect(database) as connection:
        return int(connection.execute(query).fetchone()[0])


def _gpu_runs(database: Path) -> int:
    """Counts what a provider was asked to run, and what it ran again by itself."""
    if not database.exists():
        return 0
    with sqlite3.connect(database) as connection:
        jobs = [json.loads(row[0]) for row in connection.execute("SELECT job FROM queue")]
    return len(jobs) + sum(int(job["retries"]) for job in jobs)


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument(
        "--seed", type=int, default=None, help="of the random kills; chosen and printed by default"
    )
    parser.add_argument(
        "--provider",
        default="runpod",
        help="runpod, modal, or both with a comma: then the first one is lost half way",
    )
    chosen = parser.parse_args()
    # What the supervisor reports about dead parts is no news here.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("CRITICAL"))
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(
        prefix="reelbroker-chaos-", ignore_cleanup_errors=True
    ) as folder:
        dice, providers = random.Random(seed), chosen.provider.split(",")  # noqa: S311
        counts = asyncio.run(chaos(Path(folder), chosen.kills, dice, providers))
    print(json.dumps(counts))
    enough = int(str(counts["complete"])) >= 0.8 * int(str(counts["accepted"]))
    well = (counts["lost"], counts["published_twice"], counts["integrity"]) == (0, 0, "ok")
    sys.exit(0 if well and enough else 1)


if __name__ == "__main__":
    main()
