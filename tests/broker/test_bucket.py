"""The bucket: the same tests on the real one and on the one in memory that stands in for it."""

import uuid

import pytest

from broker.bucket import open_bucket
from broker.errors import StorageError
from tests.broker.memory_bucket import MemoryBucket
from tests.http_server import BreaksOff, serving


@pytest.fixture(params=["real", "memory"])
def bucket(request):
    """An S3 store over HTTP, and the stand-in."""
    if request.param == "memory":
        return MemoryBucket()
    return open_bucket(request.getfixturevalue("settings_without_database")())


@pytest.fixture
def folder():
    """A prefix that nobody else uses."""
    return f"t-{uuid.uuid4()}"


def test_what_was_written_is_read(bucket, folder):
    """Whole, cut at a limit, and measured."""
    bucket.write(f"{folder}/a", b"12345")
    assert (bucket.read(f"{folder}/a"), bucket.read(f"{folder}/a", 3)) == (b"12345", b"123")
    assert bucket.size(f"{folder}/a") == 5
    bucket.write(f"{folder}/a", b"6")
    assert bucket.read(f"{folder}/a") == b"6"


def test_what_is_not_there_is_none(bucket, folder):
    """Neither an error nor empty; and it can be deleted."""
    assert (bucket.read(f"{folder}/a"), bucket.size(f"{folder}/a")) == (None, None)
    bucket.delete(f"{folder}/a")


def test_what_was_deleted_is_gone(bucket, folder):
    """At once."""
    bucket.write(f"{folder}/a", b"1")
    bucket.delete(f"{folder}/a")
    assert bucket.size(f"{folder}/a") is None


def test_a_folder_is_listed(bucket, folder):
    """All of it, however much; and nothing of others."""
    names = (
        [f"{folder}/{n:04d}" for n in range(1005)]
        if isinstance(bucket, MemoryBucket)
        else [f"{folder}/{n}" for n in "abc"]
    )
    for name in names:
        bucket.write(name, b"12")
    bucket.write(f"{folder}x/a", b"1")
    assert [(found.key, found.bytes) for found in bucket.listed(f"{folder}/")] == [
        (name, 2) for name in names
    ]
    assert list(bucket.listed(f"{folder}/none/")) == []


def test_a_bucket_that_is_away_is_said(settings_without_database):
    """Every method."""
    bucket = open_bucket(settings_without_database(R2_ENDPOINT="http://127.0.0.1:9"))
    for call in (
        lambda: bucket.size("a"),
        lambda: bucket.read("a"),
        lambda: bucket.write("a", b""),
        lambda: bucket.delete("a"),
        lambda: list(bucket.listed("a")),
        bucket.check,
    ):
        with pytest.raises(StorageError):
            call()


def test_an_answer_that_breaks_off_is_a_failure_of_the_bucket(settings_without_database):
    """Neither a short document nor an error of the HTTP library."""
    with serving(BreaksOff) as port:
        bucket = open_bucket(settings_without_database(R2_ENDPOINT=f"http://127.0.0.1:{port}"))
        with pytest.raises(StorageError):
            bucket.read("a")
