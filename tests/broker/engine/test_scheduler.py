"""Which job is looked at when, with many of them at once."""

import asyncio
import time
from collections import deque

import httpx
import pytest

from broker.clock import now_ms
from broker.engine.core import make_core
from broker.engine.scheduler import Scheduler
from broker.jobs.model import AttemptState, EventKind, JobChange
from broker.providers.registry import make_providers
from broker.store.uploads import UploadStore
from schemas.jobs import JobStatus
from schemas.keys import object_key
from tests.broker.memory_bucket import MemoryBucket
from tests.broker.provider import Provider

CANCELS, SUBMITS = 400, 117
#: RunPod's base limit of `/cancel`: so many calls within so many seconds.
LIMIT, WINDOW_SECONDS = 100, 10


def limits_cancels():
    """A fault as RunPod has it: cancels beyond the limit are answered 429."""
    calls = deque()

    def fault(request):
        if "/cancel/" not in request.url.path:
            return None
        now = time.monotonic()
        while calls and now - calls[0] > WINDOW_SECONDS:
            calls.popleft()
        if len(calls) >= LIMIT:
            return httpx.Response(429)
        calls.append(now)
        return None

    return fault


@pytest.mark.abuse
async def test_many_cancels_hold_no_submit_up(settings, store, make_job):
    """400 jobs are cancelled, and 117 come in: all of these are sent while most cancels still wait
    for their turn.
    """
    bucket, provider, now = MemoryBucket(), Provider(), now_ms()
    provider.fault = limits_cancels()
    known = settings()
    bucket.write(object_key(known.user_id, "a.mp4"), b"a video")
    jobs = [
        store.add(make_job(user_id=known.user_id, created_at=now, due_at=now))
        for _ in range(CANCELS + SUBMITS)
    ]
    async with httpx.AsyncClient(transport=provider) as http:
        providers = make_providers(known, http)
        fast = make_core(
            known,
            store,
            UploadStore(store._engine),
            bucket,
            make_providers(settings(REELBROKER_RUNPOD_CALLS_PER_SECOND=1000), http),
        ).reconciler
        for job in jobs[:CANCELS]:
            await fast.reconcile(job.id)
            sent = store.find(job.id)
            store.transition(
                sent,
                EventKind.CANCEL_REQUESTED,
                JobChange.model_validate({"cancel_requested_at": now_ms(), "due_at": now - 60_000}),
            )
        loop = Scheduler(
            store, make_core(known, store, UploadStore(store._engine), bucket, providers), now_ms
        )
        running = asyncio.create_task(loop.run())
        async with asyncio.timeout(30):
            while len(provider.submits) < CANCELS + SUBMITS:
                await asyncio.sleep(0.05)
        cancelled = [job for job in jobs if store.find(job.id).status is JobStatus.CANCELLED]
        loop.close()
        await running
    assert not providers.breaker_open
    assert len(cancelled) < CANCELS / 2
    newest = [store.load(job.id)[1][-1] for job in jobs[CANCELS:]]
    assert {attempt.state for attempt in newest} == {AttemptState.SUBMITTED}
