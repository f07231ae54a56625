"""The worker's view of the bucket, on the real store."""

import pytest

from gpu_worker.bucket import RANGE_TRIES, open_bucket
from gpu_worker.errors import FileTooLarge, SourceNotFound, StorageUnavailable
from tests.gpu_worker.footage import growing_at_most
from tests.http_server import BreaksOff, serving


def test_what_is_uploaded_is_fetched(bucket, user_id, tmp_path):
    """Byte for byte."""
    (tmp_path / "a").write_bytes(b"film" * 1000)
    bucket.upload(tmp_path / "a", f"{user_id}/a.mp4")
    bucket.fetch(f"{user_id}/a.mp4", tmp_path / "b", 5000)
    assert (tmp_path / "b").read_bytes() == b"film" * 1000


@pytest.mark.parametrize("breaks", [1, 4, 5])
def test_a_range_whose_answer_breaks_off_is_asked_for_again(
    bucket, objects, user_id, tmp_path, monkeypatch, breaks
):
    """A line that is lost in the middle of an answer is no reason to lose a job; a store that never
    gives a whole one is.
    """
    key, body = f"{user_id}/a.mp4", bytes(range(256)) * 100
    objects.put(key, body)
    get, left = bucket._client.get_object, [breaks]

    def breaking(**asked):
        answer = get(**asked)
        if left[0]:
            left[0] -= 1
            answer["Body"]._content_length = 10**6
        return answer

    monkeypatch.setattr(bucket._client, "get_object", breaking)
    if breaks == RANGE_TRIES:
        with pytest.raises(StorageUnavailable, match="could not be reached"):
            bucket.fetch(key, tmp_path / "a", 1 << 20)
    else:
        bucket.fetch(key, tmp_path / "a", 1 << 20)
        assert (tmp_path / "a").read_bytes() == body


def test_a_file_that_is_replaced_while_it_is_fetched_is_no_mixture(
    bucket, objects, user_id, tmp_path, monkeypatch
):
    """Each range is of what the first one was of."""
    key = f"{user_id}/a.mp4"
    objects.put(key, bytes(8 << 20))
    get = bucket._client.get_object

    def replacing(**asked):
        if "IfMatch" in asked:
            objects.put(key, bytes([1]) * (8 << 20))
        return get(**asked)

    monkeypatch.setattr(bucket._client, "get_object", replacing)
    with pytest.raises(StorageUnavailable):
        bucket.fetch(key, tmp_path / "a", 1 << 30)


def test_an_empty_file_is_fetched(bucket, objects, user_id, tmp_path):
    """The probe says what is wrong with it."""
    objects.put(f"{user_id}/a.mp4", b"")
    bucket.fetch(f"{user_id}/a.mp4", tmp_path / "a", 1 << 30)
    assert (tmp_path / "a").read_bytes() == b""


def test_a_document_is_put_once(bucket, user_id):
    """The second writer learns that it was second, and the first one's words stand."""
    assert bucket.write_once(f"{user_id}/r.json", b"first")
    assert not bucket.write_once(f"{user_id}/r.json", b"second")
    assert bucket.read(f"{user_id}/r.json") == b"first"


def test_what_is_not_there_is_told_apart_from_a_failure(bucket, settings, user_id, tmp_path):
    """No source is the user's affair, no store is ours."""
    assert bucket.read(f"{user_id}/none.json") is None
    bucket.delete(f"{user_id}/none.json")
    with pytest.raises(SourceNotFound):
        bucket.fetch(f"{user_id}/none.mp4", tmp_path / "x", 5000)
    # A store that refuses us, rather than one that is away: the client would wait for that one to
    # come back.
    refused = open_bucket(settings(R2_SECRET_ACCESS_KEY="wrong"))
    with pytest.raises(StorageUnavailable) as caught:
        refused.fetch(f"{user_id}/none.mp4", tmp_path / "x", 5000)
    assert "wrong" not in caught.value.detail


def test_a_key_with_spaces_and_umlauts_is_a_key(bucket, user_id):
    """Names come from people."""
    bucket.write(f"{user_id}/uploads/clip ü 1.json", b"x")
    assert bucket.read(f"{user_id}/uploads/clip ü 1.json") == b"x"


@pytest.mark.abuse
def test_a_document_that_is_too_large_is_not_read(bucket, objects, user_id):
    """Of 64 MiB, less than 16 arrive; an attempt's own documents have some hundred bytes."""
    objects.put(f"{user_id}/stop.json", bytes(64 << 20))
    with (
        growing_at_most(16 << 20),
        pytest.raises(FileTooLarge, match="67108864 bytes; 1048576 are taken"),
    ):
        bucket.read(f"{user_id}/stop.json")


def test_a_document_whose_answer_breaks_off_is_a_failure_of_the_store(settings):
    """Neither a short document nor an error of the HTTP library."""
    with serving(BreaksOff) as port:
        bucket = open_bucket(settings(R2_ENDPOINT=f"http://127.0.0.1:{port}"))
        with pytest.raises(StorageUnavailable):
            bucket.read("a")
