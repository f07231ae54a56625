"""A user's folders, listed at once. The bucket is real; the provider is steered; the clock is
ours.
"""

from collections import Counter

import httpx
import pytest

from broker.bucket import open_bucket
from broker.clock import now_ms
from broker.engine import listing
from broker.engine.core import make_core
from broker.errors import StorageError
from broker.providers.registry import make_providers
from broker.store.jobs import JobFilter
from broker.store.uploads import UploadStore
from schemas.jobs import JobStatus
from schemas.keys import object_key
from tests.broker.provider import Provider, Worker

JOBS, FRESH = 5, listing.FRESH_SECONDS


class Counted:
    """A bucket that counts the calls of each method."""

    def __init__(self, bucket):
        self._bucket = bucket
        self.calls = Counter()

    def __getattr__(self, name):
        self.calls[name] += 1
        return getattr(self._bucket, name)


class Scene:
    """A few jobs of one user, each with a worker that has not begun."""

    def __init__(self, settings, store, http, provider):
        self.settings, self.store, self.provider = settings, store, provider
        self.bucket, self.now = Counted(open_bucket(settings)), now_ms()
        providers = make_providers(settings, http)
        self.core = make_core(
            settings, store, UploadStore(store._engine), self.bucket, providers, lambda: self.now
        )

    async def look(self, seconds_later=0.0):
        """Reconciles all open jobs; returns how often each method of the bucket was called."""
        self.now += int(seconds_later * 1000)
        self.bucket.calls.clear()
        for job_id in self.store.open_jobs():
            await self.core.reconciler.reconcile(job_id)
        return self.bucket.calls

    async def list(self, seconds_later=0.0):
        """Lists the user's folders, with every job overdue."""
        self.now += int(seconds_later * 1000)
        await self.core.listings.refresh(least=1)

    def finish(self, count=JOBS):
        """Has so many workers commit their results."""
        for remote in list(self.provider.jobs.values())[:count]:
            Worker(self.bucket, remote["sent"]).finish()

    @property
    def complete(self):
        jobs = self.store.page(self.settings.user_id, JobFilter(), JOBS)
        return sum(job.status is JobStatus.COMPLETE for job in jobs)


@pytest.fixture
async def scene(settings, store, make_job):
    """A scene with jobs that the provider has."""
    known, provider = settings(), Provider()
    async with httpx.AsyncClient(transport=provider) as http:
        scene = Scene(known, store, http, provider)
        scene.bucket.write(object_key(known.user_id, "a.mp4"), b"a video")
        for _ in range(JOBS):
            store.add(make_job(user_id=known.user_id))
        await scene.look()
        yield scene


async def test_a_listing_spares_the_bucket_a_question_about_each_job(scene):
    """Results are read one by one; what is not there, and how large each output is, is known."""
    scene.finish(3)
    calls = await scene.look(1)
    assert (calls["read"], calls["size"], scene.complete) == (5, 3, 3)
    scene.finish(4)
    await scene.list(FRESH + 1)
    calls = await scene.look()
    assert (calls["read"], calls["size"], scene.complete) == (1, 0, 4)


async def test_a_result_that_is_newer_than_the_listing_counts(scene):
    """The run is over at the provider, or forgotten there: the bucket is asked, whatever the
    listing shows.
    """
    await scene.list(FRESH + 1)
    scene.finish()
    for remote in list(scene.provider.jobs.values())[:3]:
        remote["status"] = "COMPLETED"
    for remote_id in list(scene.provider.jobs)[3:]:
        del scene.provider.jobs[remote_id]
    await scene.look()
    assert scene.complete == JOBS


async def test_a_listing_is_used_while_it_is_fresh(scene):
    """A job that goes on at the provider is found complete once the listing is too old."""
    await scene.list(FRESH + 1)
    scene.finish()
    await scene.look(FRESH - 1)
    assert scene.complete == 0
    await scene.look(2)
    assert scene.complete == JOBS


async def test_folders_with_too_many_objects_are_not_listed_to_their_end(scene, monkeypatch):
    """A listing that would cost more than it spares is given up, and each job is asked for."""
    monkeypatch.setattr(listing, "OBJECTS_PER_JOB", 1)
    scene.finish()
    await scene.list(FRESH + 1)
    calls = await scene.look()
    assert (calls["read"], calls["size"], scene.complete) == (JOBS, JOBS, JOBS)


async def test_few_overdue_jobs_are_not_worth_a_listing(scene):
    """Nothing is listed for a handful of jobs, nor where none is due."""
    scene.bucket.calls.clear()
    await scene.core.listings.refresh()
    scene.now -= 3_600_000
    await scene.core.listings.refresh(least=1)
    assert scene.bucket.calls["listed"] == 0


async def test_a_bucket_that_cannot_be_listed_changes_nothing(scene, monkeypatch):
    """The failure is the caller's to log; jobs are reconciled by single requests."""
    scene.finish()

    def fails(prefix):
        raise StorageError("the bucket is away")

    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(scene.bucket, "listed", fails, raising=False)
        await scene.list(FRESH + 1)
    await scene.look()
    assert scene.complete == JOBS
