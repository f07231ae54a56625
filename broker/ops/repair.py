"""The operator's commands on a broker's database: `reconcile`, and a job's whole history."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from broker.bucket import Bucket
from broker.clock import iso, now_ms
from broker.engine.core import make_core
from broker.engine.reconciler import Reconciler
from broker.errors import BrokerError, NotFound
from broker.jobs.decide import (
    BeginAttempt,
    Change,
    Complete,
    Decision,
    End,
    NoOp,
    Reschedule,
    StopAttempt,
    Submit,
)
from broker.jobs.model import Attempt, AttemptState, Job, provider_ids
from broker.providers.registry import open_providers
from broker.settings import Settings
from broker.store.jobs import JobStore
from broker.store.uploads import UploadStore
from schemas.jobs import JobStatus
from schemas.keys import object_key


@dataclass(frozen=True)
class Finding:
    """What a reconcile did to an open job, or would do."""

    job_id: str
    before: str
    what: str
    message: str


async def reconcile(
    settings: Settings, engine: Engine, bucket: Bucket, dry_run: bool
) -> list[Finding]:
    """Reconciles every open job once, due or not; adopts results that the database lacks.

    Args:
        dry_run: return the decisions; write, submit and stop nothing.
    """
    store = JobStore(engine)
    async with (
        httpx.AsyncClient(timeout=30) as http,
        open_providers(settings, http) as providers,
    ):
        core = make_core(settings, store, UploadStore(engine), bucket, providers)
        run = partial(_foresee if dry_run else _reconcile, store, bucket, core.reconciler)
        return [await run(job_id) for job_id in await run_in_threadpool(store.open_jobs)]


async def _foresee(store: JobStore, bucket: Bucket, reconciler: Reconciler, job_id: str) -> Finding:
    job, attempts = await run_in_threadpool(store.load, job_id)
    try:
        decision = await reconciler.decision(job, attempts)
    except BrokerError as error:
        return Finding(job_id, job.status, "cannot be seen", str(error))
    return Finding(job_id, job.status, *_outcome(job, decision))


def _outcome(job: Job, decision: Decision) -> tuple[str, str]:
    """Returns the outcome of a decision, and the job's message after it."""
    match decision:
        case Change(change=change) | End(change=change):
            status, message = change.status or job.status, change.message or job.message
            return f"{status}, attempt {job.attempt}", message
        case Complete():
            return f"{JobStatus.COMPLETE}, attempt {job.attempt}", "Done"
        case BeginAttempt() | Submit():
            return f"sent, attempt {job.attempt + isinstance(decision, BeginAttempt)}", job.message
        case StopAttempt():
            return "stopped at the provider", job.message
        case Reschedule() | NoOp():
            return "nothing new", job.message


async def _reconcile(
    store: JobStore, bucket: Bucket, reconciler: Reconciler, job_id: str
) -> Finding:
    before = await run_in_threadpool(store.find, job_id)
    assert before is not None  # noqa: S101
    try:
        await run_in_threadpool(adopt_results, store, bucket, before)
        await reconciler.reconcile(job_id)
    except BrokerError as error:
        return Finding(job_id, before.status, "cannot be seen", str(error))
    after = await run_in_threadpool(store.find, job_id)
    assert after is not None  # noqa: S101
    what = f"{after.status}, attempt {after.attempt}"
    if after.version == before.version:
        what = "nothing new"
    return Finding(job_id, before.status, what, after.message)


def adopt_results(store: JobStore, bucket: Bucket, job: Job) -> int:
    """Stores the attempts of an open job that committed a result and are not in the database.

    There are such attempts after a restore. The next reconcile considers them.

    Returns:
        How many it stored.
    """
    known = store.attempts(job.id)
    first = min((attempt.number for attempt in known), default=1)
    tokens = set(_committed(bucket, job)) - {attempt.token for attempt in known}
    for back, token in enumerate(sorted(tokens), start=1):
        found = Attempt(
            token=token,
            job_id=job.id,
            # Its number is unknown, so it goes before all others.
            number=min(first, 1) - back,
            state=AttemptState.SUPERSEDED,
            provider="",
            target="",
            created_at=now_ms(),
        )
        store.note(found)
    return len(tokens)


def _committed(bucket: Bucket, job: Job) -> Iterator[str]:
    folder = object_key(job.user_id, f"jobs/{job.id}/")
    for found in bucket.listed(folder):
        token, _, name = found.key.removeprefix(folder).partition("/")
        if name == "result.json" and len(token) == len(secrets.token_hex(16)):
            yield token


def story(store: JobStore, job_id: str) -> dict[str, Any]:
    """Returns a job, its attempts and its events, for printing.

    Raises:
        NotFound: there is no such job.
    """
    job = store.find(job_id)
    if job is None:
        raise NotFound(f"There is no job {job_id[:64]}.")
    return {
        "job": {
            **job.model_dump(mode="json"),
            **{name: _time(getattr(job, name)) for name in _JOB_TIMES},
        },
        "attempts": [
            {
                "number": attempt.number,
                "state": attempt.state,
                "provider": attempt.provider,
                "target": attempt.target,
                **provider_ids(attempt.provider, attempt.provider_job_id),
                "submitted": _time(attempt.submitted_at),
                "ended": _time(attempt.ended_at),
                "error_code": attempt.error_code,
                "gpu_seconds": attempt.gpu_seconds,
                "token": attempt.token,
            }
            for attempt in store.attempts(job_id)
        ],
        "events": [
            {"seq": event.seq, "at": _time(event.at), "kind": event.kind, "data": event.data}
            for event in store.events(job_id)
        ],
    }


_JOB_TIMES = [name for name in Job.model_fields if name.endswith("_at") or name == "stalled_since"]


def _time(moment_ms: int | None) -> str | None:
    return None if moment_ms is None else iso(moment_ms)
