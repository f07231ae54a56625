"""What is swept from the bucket, and what never is."""

import asyncio
import time
import uuid

import pytest

from broker.bucket import open_bucket
from broker.clock import DAY_MS, now_ms
from broker.ops.retention import KEYS_DAYS, Retention
from broker.store.tables import UploadRow
from broker.store.uploads import UploadStore
from schemas.jobs import ErrorCode, JobStatus
from schemas.keys import object_key

TOKEN, EXECUTION = "0" * 32, "0123abcd"
LATER = 8 * DAY_MS


class Shelf:
    """A user's folder in the real bucket, some jobs, and a sweep at a time of our choice."""

    def __init__(self, settings, store, make_job):
        self.settings, self.store, self.make_job = settings, store, make_job
        self.bucket, self.uploads = open_bucket(settings), UploadStore(store._engine)
        self.user = settings.user_id

    def job(self, status=JobStatus.COMPLETE, ended_ago=LATER, output="published", **fields):
        """Stores a job that ended so long ago, with the output that it points to."""
        job_id = str(uuid.uuid4())
        if status is JobStatus.COMPLETE:
            fields["output_key"] = f"final_videos/framing_{job_id}_{EXECUTION}.mp4"
            self.put(fields["output_key"])
        if status is JobStatus.ERROR:
            fields |= {"error": "x", "error_code": ErrorCode.INTERNAL}
        completed = now_ms() + LATER - ended_ago if status.is_terminal else None
        self.store.add(
            self.make_job(
                id=job_id, user_id=self.user, status=status, completed_at=completed, **fields
            )
        )
        return job_id

    def put(self, key):
        self.bucket.write(object_key(self.user, key), b"x")
        return key

    def upload(self, key):
        """Puts an object that the user was given a URL for."""
        row = UploadRow(
            id=key, user_id=self.user, key=key, content_type="video/mp4", created_at=now_ms()
        )
        self.uploads.add(row)
        return self.put(key)

    def sweep(self, later=LATER):
        """Returns what is left."""
        Retention(
            self.settings, self.store, self.uploads, self.bucket, lambda: now_ms() + later
        ).sweep()
        prefix = object_key(self.user, "")
        return {found.key.removeprefix(prefix) for found in self.bucket.listed(prefix)}


@pytest.fixture
def shelf(settings, store, make_job):
    return Shelf(settings(), store, make_job)


@pytest.mark.parametrize("status", list(JobStatus))
def test_control_documents_go_when_the_job_is_long_over(shelf, status):
    """And not before it has ended."""
    job = shelf.job(status, ended_ago=LATER)
    documents = {
        shelf.put(f"jobs/{job}/{TOKEN}/{name}.json") for name in ("started", "result", "stop")
    }
    assert documents <= shelf.sweep(later=0)
    left = shelf.sweep()
    assert documents & left == (set() if status.is_terminal else documents)


def test_documents_of_a_job_that_has_just_ended_stay(shelf):
    """Somebody may still want to know."""
    job = shelf.job(ended_ago=DAY_MS)
    document = shelf.put(f"jobs/{job}/{TOKEN}/result.json")
    assert document in shelf.sweep()


def test_what_a_job_points_to_stays_for_ever(shelf):
    """However old; what its other executions left goes."""
    job = shelf.job()
    published = f"final_videos/framing_{job}_{EXECUTION}.mp4"
    left_over = shelf.put(f"final_videos/framing_{job}_deadbeef.mp4")
    left = shelf.sweep(later=1000 * DAY_MS)
    assert (published in left, left_over in left) == (True, False)


def test_an_output_of_a_failed_job_goes(shelf):
    """Nobody can ask for it."""
    job = shelf.job(JobStatus.ERROR)
    output = shelf.put(f"final_videos/multi_clip_{job}_{EXECUTION}.mp4")
    assert output not in shelf.sweep()


def test_an_output_of_an_open_job_stays(shelf):
    """It may be on its way to being published."""
    job = shelf.job(JobStatus.PROCESSING)
    output = shelf.put(f"final_videos/framing_{job}_{EXECUTION}.mp4")
    assert output in shelf.sweep()


def test_of_an_unknown_job_nothing_is_removed(shelf):
    """The database may have been restored from an older copy; or somebody else put it there."""
    shelf.job()
    stranger = uuid.uuid4()
    kept = {
        shelf.put(f"final_videos/framing_{stranger}_{EXECUTION}.mp4"),
        shelf.put(f"jobs/{stranger}/{TOKEN}/result.json"),
        shelf.put("final_videos/my holiday.mp4"),
        shelf.put("jobs/notes.txt"),
        shelf.put("games/1.mp4"),
    }
    assert kept <= shelf.sweep()


def test_only_uploads_that_no_job_ever_named_go(shelf):
    """A clip or a picture deep in the params is a name too; and a new upload has a few days."""
    named = [shelf.upload(f"uploads/{n}/a.mp4") for n in range(3)]
    abandoned = shelf.upload("uploads/9/a.mp4")
    shelf.job(input_key=named[0])
    shelf.job(
        JobStatus.ERROR, input_key=None, params=f'{{"clips": [{{"input_key": "{named[1]}"}}]}}'
    )
    shelf.job(params=f'{{"text_layers": [{{"png_key": "{named[2]}"}}]}}')
    assert abandoned in shelf.sweep(later=DAY_MS)
    assert set(named) <= shelf.sweep() - {abandoned}
    assert abandoned not in shelf.sweep()


def test_an_upload_that_the_database_does_not_know_stays(shelf):
    """It may be new, or an older copy, and another one knew which job is made of that file."""
    shelf.upload("uploads/1/a.mp4")
    strange = shelf.put("uploads/2/a.mp4")
    assert strange in shelf.sweep()


@pytest.mark.abuse
def test_parts_of_an_upload_that_never_completes_go(shelf):
    """Nobody sees them in a list, and they are paid for; those of a form's file too. A new one has
    a few days.
    """
    begun = []
    for key in ("uploads/1/a.mp4", "temp/2/source.mp4", "final_videos/x.mp4"):
        whole = object_key(shelf.user, key)
        begun.append((whole, shelf.bucket.begin_parts(whole, "video/mp4")))
        shelf.bucket.put_part(*begun[-1], 1, b"x" * 1000)
    shelf.upload("uploads/1/b.mp4")

    def left():
        return [shelf.bucket.parts(*one) is not None for one in begun]

    shelf.sweep(later=DAY_MS)
    assert left() == [True, True, True]
    shelf.sweep()
    assert left() == [False, False, True]


@pytest.mark.abuse
def test_an_upload_is_known_for_as_long_as_a_file_may_come(settings, store, make_job):
    """URLs are given until it is a week old, and may live for another: what comes last is swept a
    week later.
    """
    shelf = Shelf(settings(REELBROKER_URL_LIFETIME_SECONDS=str(7 * 86_400)), store, make_job)
    shelf.upload("uploads/1/a.mp4")
    shelf.sweep(later=15 * DAY_MS)
    shelf.put("uploads/1/a.mp4")
    assert "uploads/1/a.mp4" not in shelf.sweep(later=21 * DAY_MS)
    shelf.sweep(later=30 * DAY_MS)
    assert shelf.uploads.sizes(shelf.user) == {}


def test_idempotency_keys_go_after_a_week(shelf):
    """And are then free again."""
    first = shelf.make_job(user_id=shelf.user, created_at=now_ms())
    shelf.store.add(first, "k")
    shelf.sweep(later=(KEYS_DAYS - 1) * DAY_MS)
    assert shelf.store.add(shelf.make_job(user_id=shelf.user), "k") == first
    shelf.sweep(later=(KEYS_DAYS + 1) * DAY_MS)
    assert shelf.store.add(shelf.make_job(user_id=shelf.user), "k") != first


async def test_the_daily_sweep_ends_with_the_broker(shelf):
    """At once."""
    retention = Retention(shelf.settings, shelf.store, shelf.uploads, shelf.bucket)
    running = asyncio.create_task(retention.run())
    await asyncio.sleep(0.05)
    began = time.monotonic()
    retention.close()
    await running
    assert time.monotonic() - began < 1


def test_a_file_that_came_with_a_job_stays_as_long_as_a_retry_may_want_it(shelf):
    """It goes when all jobs that name it are long over, and when no job ever did."""
    failed, again, done, nobody = (shelf.put(f"temp/{name}/source.mp4") for name in "abcd")
    shelf.job(JobStatus.ERROR, input_key=failed, ended_ago=LATER)
    shelf.job(JobStatus.ERROR, input_key=again, ended_ago=LATER)
    shelf.job(JobStatus.PROCESSING, input_key=again)
    shelf.job(JobStatus.ERROR, input_key=done, ended_ago=DAY_MS)
    assert {failed, again, done, nobody} <= shelf.sweep(later=0)
    left = shelf.sweep()
    assert left & {failed, again, done, nobody} == {again, done}
