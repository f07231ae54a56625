"""`reelbroker doctor`: what is in order, what is not, and how to mend it. It changes nothing but a probe in the bucket, which it removes."""

import asyncio
import importlib.util
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
from dotenv import dotenv_values

from broker.bucket import Bucket, open_bucket
from broker.errors import ProviderError, StorageError
from broker.jobs.observation import Health
from broker.providers.registry import open_providers
from broker.settings import Settings
from broker.store.engine import reading, sqlite_path
from broker.store.jobs import JobStore
from schemas.keys import object_key

#: A worker loads torch and warms its model.
WORKER_SECONDS = 180


@dataclass(frozen=True)
class Finding:
    """What one look has shown; `mend` says what to do where it is not `ok`."""

    what: str
    ok: bool
    told: str
    mend: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Looks at one thing after the other."""
    yield _database(settings)
    yield from _bucket(settings)
    yield _endpoint(settings)
    yield _reachable(settings)
    yield _worker()


def _database(settings: Settings) -> Finding:
    mend = "check REELBROKER_DATABASE_URL, and that its server runs; `reelbroker restore` takes a copy of a SQLite file back"
    try:
        path = sqlite_path(settings.database_url)
        if path is not None and not path.exists() and path.absolute().parent.is_dir():
            return Finding("database", True, f"none yet; `reelbroker serve` makes {path}")
        with reading(settings.database_url) as engine:
            count = JobStore(engine).count_open()
    except Exception as error:  # noqa: BLE001  # whatever a database driver raises
        return Finding("database", False, str(error).splitlines()[0], mend)
    return Finding("database", True, f"{count} open jobs")


def _bucket(settings: Settings) -> Iterator[Finding]:
    """Puts, reads, signs, and removes a probe, as broker, worker and browser will."""
    keys = "check R2_ENDPOINT, R2_ACCESS_KEY_ID, R2_SECRET_ACCESS_KEY and R2_BUCKET_NAME; the token needs Object Read & Write"
    bucket, key = (
        open_bucket(settings),
        object_key(settings.user_id, f"uploads/doctor-{secrets.token_hex(4)}"),
    )
    try:
        bucket.check()
        bucket.write(key, b"probe")
        try:
            yield from _probe(bucket, key)
        finally:
            bucket.delete(key)
    except StorageError as error:
        yield Finding("bucket", False, str(error), keys)
    except httpx.HTTPError as error:
        told = f"{type(error).__name__} from {settings.r2_endpoint}"
        yield Finding(
            "presigned URL",
            False,
            told,
            "boto3 reaches the bucket and httpx does not: see HTTPS_PROXY, and the certificates",
        )


def _probe(bucket: Bucket, key: str) -> Iterator[Finding]:
    read = bucket.read(key)
    told = "written, read and removed" if read == b"probe" else f"what was written reads {read!r}"
    yield Finding("bucket", read == b"probe", told, "is another bucket behind this name?")
    url = bucket.presigned_get(key, "probe", 60)
    stranger = httpx.get(httpx.URL(url).copy_with(query=None), timeout=10)
    closed = not (stranger.is_success and stranger.content == b"probe")
    told = f"without a signature: {stranger.status_code}"
    yield Finding("bucket is private", closed, told, "switch off public access of the bucket")
    yield Finding("presigned URL", httpx.get(url, timeout=10).content == b"probe", "read by its URL", "is this machine's clock right?")  # fmt: skip


def _endpoint(settings: Settings) -> Finding:
    async def ask() -> Health:
        async with httpx.AsyncClient(timeout=15) as http:
            providers = open_providers(settings, http)
            place = providers.places[0]
            return await providers.named(place.provider).health(place.target)

    try:
        health = asyncio.run(ask())
    except ProviderError as error:
        return Finding(
            "endpoint",
            False,
            str(error),
            "check RUNPOD_API_KEY, and RUNPOD_ENDPOINT_URL (without /run)",
        )
    told = f"{health.workers_up} workers up, {health.workers_starting} starting, {health.jobs_queued} jobs queued"
    none = health.workers_up + health.workers_starting + health.workers_throttled == 0
    if health.workers_unhealthy:
        return Finding(
            "endpoint",
            False,
            f"{told}, {health.workers_unhealthy} unhealthy",
            "see the workers' logs in the provider's console",
        )
    if none and health.jobs_queued:
        return Finding(
            "endpoint",
            False,
            told,
            "jobs wait and no worker comes: is the endpoint's max workers 0? Idle ones are scaled down to that",
        )
    return Finding("endpoint", True, told)


def _reachable(settings: Settings) -> Finding:
    what, url = "webhook", settings.public_url
    if url is None:
        return Finding(
            what,
            True,
            "REELBROKER_PUBLIC_URL is not set: jobs are polled, results come a little later",
        )
    try:
        status = httpx.get(f"{url}/healthz", timeout=10).status_code
    except httpx.HTTPError as error:
        return Finding(
            what,
            False,
            f"{url}: {type(error).__name__}",
            "start the broker, or let the provider reach REELBROKER_PUBLIC_URL",
        )
    told = f"{url}/healthz: {status}"
    return Finding(
        what, status == httpx.codes.OK, told, "REELBROKER_PUBLIC_URL must lead to the broker"
    )


def _worker() -> Finding:
    """Asks the worker itself, where it is installed: device, ffmpeg, model files, disk."""
    what = "worker on this machine"
    if importlib.util.find_spec("torch") is None:
        return Finding(what, True, "not installed here, and not needed where workers run elsewhere")
    try:
        run = subprocess.run(
            [sys.executable, "-m", "gpu_worker.fitness"],
            capture_output=True,
            text=True,
            timeout=WORKER_SECONDS,
            check=False,
            env=_environment(),
        )
    except subprocess.TimeoutExpired:
        return Finding(
            what,
            False,
            f"no answer within {WORKER_SECONDS} s",
            "is the model's file on a slow disk?",
        )
    if run.returncode:
        last = (run.stderr.strip() or "it ended without a word").splitlines()[-1]
        return Finding(
            what,
            False,
            last,
            "see docs/models.md for model files, .env.example for the worker's settings",
        )
    facts = json.loads(run.stdout.splitlines()[-1])
    told = f"{facts['device']}, ffmpeg {facts['ffmpeg']}, model {facts['model'] or 'none (QUALITY names its own)'}, torch {facts['torch']}"
    return Finding(what, True, told)


def _environment() -> dict[str, str]:
    """A worker's settings come from its environment alone; here the broker's may be in a file."""
    written = {name: value for name, value in dotenv_values(".env").items() if value is not None}
    return written | dict(os.environ)
