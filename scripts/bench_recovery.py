"""How long a broker that was down for a day takes to settle thousands of open jobs.

Seven in ten were finished meanwhile and forgotten by the provider (their results are in the
bucket), one in ten is still running, one in ten was lost, and one in ten was never sent. SQLite on
disk, the real object store, and a provider in this process that counts its calls; the broker's
clock runs three times as fast as ours. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import secrets
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import structlog
from own_store import running_store
from sqlalchemy import Engine

from broker.bucket import Bucket, open_bucket
from broker.clock import now_ms
from broker.embedded.object_store import ObjectStore
from broker.engine.core import make_core
from broker.engine.observe import document_key
from broker.engine.scheduler import Scheduler
from broker.jobs.model import Attempt, AttemptState, EventKind, Job, JobChange
from broker.providers.registry import make_providers
from broker.settings import Settings
from broker.store.engine import open_engine, reading
from broker.store.jobs import JobStore
from broker.store.uploads import UploadStore
from schemas.jobs import JobStatus, JobType, OutputFacts
from schemas.keys import object_key
from schemas.worker import Result, Timings

USER, ENDPOINT, DAY_MS, FASTER = "bench", "http://provider/v2/bench", 86_400_000, 3
FATES = ("finished",) * 7 + ("running", "lost", "new")
FILM = b"a film"


class Provider(httpx.MockTransport):
    """RunPod's API in memory."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.running: set[str] = set()
        self.calls: Counter[str] = Counter()

    def _answer(self, request: httpx.Request) -> httpx.Response:
        action, _, job_id = request.url.path.removeprefix("/v2/bench/").partition("/")
        self.calls[action] += 1
        if action == "run":
            job_id = f"again-{self.calls['run']}"
            self.running.add(job_id)
            return httpx.Response(200, json={"id": job_id, "status": "IN_QUEUE"})
        if action == "health":
            return httpx.Response(200, json={"jobs": {}, "workers": {"running": 1}})
        if job_id not in self.running:
            return httpx.Response(404)
        progress = {"phase": "processing", "progress": 50}
        return httpx.Response(200, json={"id": job_id, "status": "IN_PROGRESS", "output": progress})


def prepare(store: JobStore, bucket: Bucket, provider: Provider, count: int) -> None:
    """Stores the jobs as the broker left them a day ago, and what happened since.

    Each job has its fate as metadata.
    """
    began = now_ms() - DAY_MS
    finished: list[tuple[Job, Attempt]] = []
    bucket.write(object_key(USER, "a.mp4"), b"a video")
    for number in range(count):
        fate = FATES[number % len(FATES)]
        job = Job(
            id=f"job-{number}",
            user_id=USER,
            type=JobType.FRAMING,
            input_key="a.mp4",
            params="{}",
            meta=fate,
            max_attempts=3,
            created_at=began,
            due_at=began,
        )
        store.add(job)
        if fate == "new":
            continue
        attempt = Attempt(
            token=secrets.token_hex(16),
            job_id=job.id,
            number=1,
            state=AttemptState.SUBMITTED,
            provider="runpod",
            target=ENDPOINT,
            provider_job_id=f"rp-{number}",
            created_at=began,
            submitted_at=began,
            ttl_seconds=90_000,
        )
        changes = {
            "status": JobStatus.PROCESSING,
            "attempt": 1,
            "provider_job_id": attempt.provider_job_id,
        }
        moved = store.transition(
            job, EventKind.SUBMITTED, JobChange.model_validate(changes), attempt
        )
        assert moved is not None
        if fate == "finished":
            finished.append((moved, attempt))
        if fate == "running":
            provider.running.add(f"rp-{number}")
    with ThreadPoolExecutor(16) as hands:
        list(hands.map(lambda one: _finish(bucket, *one), finished))


def _finish(bucket: Bucket, job: Job, attempt: Attempt) -> None:
    """What its worker wrote."""
    key = f"final_videos/framing_{job.id}_00000000.mp4"
    facts = OutputFacts(
        bytes=len(FILM),
        sha256="0" * 64,
        width=64,
        height=96,
        fps=25,
        frames=10,
        duration_seconds=0.4,
        video_codec="h264",
        audio_codec=None,
    )
    timings = Timings(fetch_seconds=1, edit_seconds=1, upload_seconds=1)
    result = Result(
        output_key=key, runpod_job_id=attempt.provider_job_id or "", facts=facts, timings=timings
    )
    bucket.write(object_key(USER, key), FILM)
    bucket.write(
        object_key(USER, document_key(attempt, "result.json")), result.model_dump_json().encode()
    )


#: Open jobs that are not yet settled: at their end, at what their worker reports, or at the
#: provider (again).
LEFT = """SELECT count(*) FROM export_jobs WHERE NOT CASE meta
          WHEN 'finished' THEN status = 'complete'
          WHEN 'running' THEN progress = 50 ELSE coalesce(runpod_job_id, '') LIKE 'again%' END"""


async def recover(settings: Settings, store: JobStore, provider: Provider) -> float:
    """Starts a broker's loop; returns after how many seconds all were recovered."""
    began, origin = time.monotonic(), now_ms()

    def clock() -> int:
        return origin + int((time.monotonic() - began) * 1000 * FASTER)

    async with httpx.AsyncClient(transport=provider) as http:
        providers = make_providers(settings, http)
        loop = Scheduler(
            store,
            make_core(
                settings, store, UploadStore(store._engine), open_bucket(settings), providers, clock
            ),
            clock,
        )
        running = asyncio.create_task(loop.run())
        with reading(settings.database_url) as engine:
            while left := await asyncio.to_thread(_left, engine):
                print(f"\r{time.monotonic() - began:5.1f} s: {left:6} to go", end="", flush=True)
                await asyncio.sleep(0.5)
        seconds = time.monotonic() - began
        loop.close()
        await running
    print()
    return seconds


def _left(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.exec_driver_sql(LEFT).scalar_one())


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=10_000)
    count = parser.parse_args().jobs
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("CRITICAL"))
    with tempfile.TemporaryDirectory(prefix="reelbroker-recovery-") as name:
        folder = Path(name)
        with running_store(folder) as objects:
            print(json.dumps(_measured(folder, objects, count)))


def _measured(folder: Path, objects: ObjectStore, count: int) -> dict[str, Any]:
    settings = Settings(
        _env_file=None,
        RUNPOD_API_KEY="k",
        RUNPOD_ENDPOINT_URL=ENDPOINT,
        R2_ENDPOINT=objects.url,
        R2_ACCESS_KEY_ID=objects.access_key,
        R2_SECRET_ACCESS_KEY=objects.secret_key,
        R2_BUCKET_NAME=objects.bucket,
        REELBROKER_API_KEY="x" * 16,
        REELBROKER_RUNPOD_CALLS_PER_SECOND=200,
        REELBROKER_DATABASE_URL=f"sqlite:///{folder}/jobs.db",
    )
    store, provider = JobStore(open_engine(settings.database_url)), Provider()
    print(f"preparing {count} open jobs ...", flush=True)
    prepare(store, open_bucket(settings), provider, count)
    seconds = asyncio.run(recover(settings, store, provider))
    store.close()
    return {
        "jobs": count,
        "recovered_seconds": round(seconds, 1),
        "jobs_per_second": round(count / seconds),
        "runpod_calls": dict(provider.calls),
        "runpod_calls_per_open_job": round(sum(provider.calls.values()) / count, 2),
    }


if __name__ == "__main__":
    main()
