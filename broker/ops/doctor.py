"""`reelbroker doctor`: what works, what does not, and the remedy.

The checks change nothing but a probe object in the bucket, which they remove.
"""

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
from broker.jobs.place import Place
from broker.providers.registry import Providers, open_providers
from broker.settings import Settings
from broker.store.engine import reading, sqlite_path
from broker.store.jobs import JobStore
from broker.store.reports import Reports
from schemas.keys import object_key

#: A worker loads torch and warms its model.
WORKER_SECONDS = 180
_DATABASE = (
    "check REELBROKER_DATABASE_URL, and that its server runs; `reelbroker restore` takes a copy "
    "of a SQLite file back"
)
_BUCKET = (
    "check R2_ENDPOINT, R2_ACCESS_KEY_ID, R2_SECRET_ACCESS_KEY and R2_BUCKET_NAME; the token needs "
    "Object Read & Write"
)
_HTTPX = "boto3 reaches the bucket and httpx does not: see HTTPS_PROXY, and the certificates"
_UNHEALTHY = "see the workers' logs in the provider's console"
_NO_WORKER = (
    "jobs wait and no worker comes: is the endpoint's max workers 0? Idle ones are scaled down to "
    "that"
)
_NO_KEY = "set the provider's keys again until these attempts have ended"
_NOT_POLLED = "REELBROKER_PUBLIC_URL is not set: jobs are polled, results come a little later"
_NOT_REACHED = "start the broker, or let the provider reach REELBROKER_PUBLIC_URL"
_FITNESS = "see docs/models.md for model files, .env.example for the worker's settings"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check; `remedy` helps where it is not `ok`."""

    what: str
    ok: bool
    report: str
    remedy: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Runs one check after the other."""
    yield _database(settings)
    yield from _bucket(settings)
    yield from asyncio.run(_places(settings))
    yield _webhook(settings.public_url)
    yield _worker("worker on this machine")


def _database(settings: Settings) -> Finding:
    try:
        path = sqlite_path(settings.database_url)
        if path is not None and not path.exists() and path.absolute().parent.is_dir():
            return Finding("database", True, f"none yet; `reelbroker serve` makes {path}")
        with reading(settings.database_url) as engine:
            count = JobStore(engine).count_open()
    # Drivers raise errors of many kinds.
    except Exception as error:  # noqa: BLE001
        return Finding("database", False, str(error).splitlines()[0], _DATABASE)
    return Finding("database", True, f"{count} open jobs")


def _bucket(settings: Settings) -> Iterator[Finding]:
    """Writes, reads, signs and removes a probe, as broker, worker and browser do."""
    name = f"uploads/doctor-{secrets.token_hex(4)}"
    bucket, key = open_bucket(settings), object_key(settings.user_id, name)
    try:
        bucket.check()
        bucket.write(key, b"probe")
        try:
            yield from _probe(bucket, key)
        finally:
            bucket.delete(key)
    except StorageError as error:
        yield Finding("bucket", False, str(error), _BUCKET)
    except httpx.HTTPError as error:
        report = f"{type(error).__name__} from {settings.r2_endpoint}"
        yield Finding("presigned URL", False, report, _HTTPX)


def _probe(bucket: Bucket, key: str) -> Iterator[Finding]:
    read = bucket.read(key)
    report = "written, read and removed" if read == b"probe" else f"what was written reads {read!r}"
    yield Finding("bucket", read == b"probe", report, "is another bucket behind this name?")
    url = bucket.presigned_get(key, "probe", 60)
    unsigned = httpx.get(httpx.URL(url).copy_with(query=None), timeout=10)
    closed = not (unsigned.is_success and unsigned.content == b"probe")
    report = f"without a signature: {unsigned.status_code}"
    yield Finding("bucket is private", closed, report, "switch off public access of the bucket")
    signed = httpx.get(url, timeout=10).content == b"probe"
    yield Finding("presigned URL", signed, "read by its URL", "is this machine's clock right?")


async def _places(settings: Settings) -> list[Finding]:
    """Checks each place of the settings, and each one that only open attempts still need."""
    async with (
        httpx.AsyncClient(timeout=15) as http,
        open_providers(settings, http) as providers,
    ):
        needed = await asyncio.to_thread(_needed, settings)
        others = [place for place in needed if place not in providers.places]
        findings = [await _place(providers, place) for place in providers.places]
        for place in others:
            found = await _place(providers, place)
            report = f"{needed[place]} open attempts at {place.target}: {found.report}"
            findings.append(Finding(f"former {found.what}", found.ok, report, found.remedy))
        return findings


async def _place(providers: Providers, place: Place) -> Finding:
    alike = [other for other in providers.places if other.provider == place.provider]
    what = f"{place.provider} {place.target}" if len(alike) > 1 else place.provider
    remedy = _NO_KEY
    try:
        provider = providers.named(place.provider)
        remedy = provider.remedy
        health = await provider.health(place.target)
    except ProviderError as error:
        return Finding(what, False, str(error), remedy)
    return _healthy(what, health)


def _healthy(what: str, health: Health) -> Finding:
    report, remedy = f"{health.workers_up} workers up", ""
    if health.workers_starting is not None:
        report += f", {health.workers_starting} starting"
    report += f", {health.jobs_queued} jobs queued"
    if health.workers_unhealthy:
        report, remedy = f"{report}, {health.workers_unhealthy} unhealthy", _UNHEALTHY
    elif health.jobs_queued and not any(
        (health.workers_up, health.workers_starting, health.workers_throttled)
    ):
        remedy = "" if health.workers_starting is None else _NO_WORKER
    return Finding(what, not remedy, report, remedy)


def _needed(settings: Settings) -> dict[Place, int]:
    """Returns how many attempts each place still has, as far as the database can be read."""
    path = sqlite_path(settings.database_url)
    if path is not None and not path.exists():
        return {}
    try:
        with reading(settings.database_url) as engine:
            return Reports(engine).places()
    # Drivers raise errors of many kinds, and the check of the database reports them.
    except Exception:  # noqa: BLE001
        return {}


def _webhook(url: str | None) -> Finding:
    what = "webhook"
    if url is None:
        return Finding(what, True, _NOT_POLLED)
    try:
        status = httpx.get(f"{url}/healthz", timeout=10).status_code
    except httpx.HTTPError as error:
        return Finding(what, False, f"{url}: {type(error).__name__}", _NOT_REACHED)
    remedy = "REELBROKER_PUBLIC_URL must lead to the broker"
    return Finding(what, status == httpx.codes.OK, f"{url}/healthz: {status}", remedy)


def _worker(what: str) -> Finding:
    """Runs the worker's own checks where it is installed: device, ffmpeg, model files, disk."""
    if importlib.util.find_spec("torch") is None:
        return Finding(what, True, "not installed here, and not needed where workers run elsewhere")
    # A worker reads its settings from the environment alone; the broker's may be in a file.
    written = {name: value for name, value in dotenv_values(".env").items() if value is not None}
    try:
        run = subprocess.run(
            [sys.executable, "-m", "gpu_worker.fitness"],
            capture_output=True,
            text=True,
            timeout=WORKER_SECONDS,
            check=False,
            env=written | dict(os.environ),
        )
    except subprocess.TimeoutExpired:
        report = f"no answer within {WORKER_SECONDS} s"
        return Finding(what, False, report, "is the model's file on a slow disk?")
    if run.returncode:
        last = (run.stderr.strip() or "it ended without a word").splitlines()[-1]
        return Finding(what, False, last, _FITNESS)
    facts = json.loads(run.stdout.splitlines()[-1])
    model = facts["model"] or "none (QUALITY names its own)"
    report = f"{facts['device']}, ffmpeg {facts['ffmpeg']}, model {model}, torch {facts['torch']}"
    return Finding(what, True, report)
