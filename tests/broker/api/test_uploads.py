"""Files straight to the bucket: exact type and size, equal parts, cut off and resumed, checked at
the end.
"""

import asyncio

import httpx
import pytest

from broker.clock import DAY_MS, now_ms
from broker.ops.retention import Retention
from broker.services import uploads
from broker.store.engine import reading
from broker.store.jobs import JobStore
from broker.store.uploads import UploadStore
from tests.broker.api.calls import JOB, on_one_database, until

pytestmark = on_one_database


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 5 MiB, from 12 MB on: the least that S3 takes."""
    monkeypatch.setattr(uploads, "PART_BYTES", 5 * 2**20)
    monkeypatch.setattr(uploads, "IN_PARTS_FROM", 12_000_000)


async def begin(client, size=None, name="clip.mp4"):
    body = {"filename": name} | ({} if size is None else {"bytes": size})
    return (await client.post("/api/videos/upload-url", json=body)).raise_for_status().json()


async def put(url, content, headers=None):
    async with httpx.AsyncClient() as bucket:
        return (await bucket.put(url, content=content, headers=headers)).status_code


async def test_an_announced_size_is_the_only_one_taken(client):
    """And the only type; then the upload can be said to be complete, as often as one likes."""
    ticket = await begin(client, 4)
    assert await put(ticket["upload_url"], b"films", ticket["headers"]) == 403
    assert (
        await put(ticket["upload_url"], b"film", ticket["headers"] | {"Content-Type": "text/html"})
        == 403
    )
    early = await client.post(ticket["complete_url"])
    assert (early.status_code, early.json()["code"]) == (409, "upload_incomplete")
    assert await put(ticket["upload_url"], b"film", ticket["headers"]) == 200
    for _ in range(2):
        done = await client.post(ticket["complete_url"])
        assert (done.status_code, done.json()["bytes"], done.json()["video_key"]) == (
            200,
            4,
            ticket["video_key"],
        )
    again = (await client.get(f"/api/videos/uploads/{ticket['upload_id']}")).json()
    assert (again["completed"], again["upload_url"]) == (True, None)


async def test_a_file_of_another_size_is_not_complete(client, bucket, settings):
    """Where a store does not hold clients to the length that was signed."""
    ticket = await begin(client, 4)
    bucket.write(f"{settings().user_id}/{ticket['video_key']}", b"films")
    reply = await client.post(ticket["complete_url"])
    assert (reply.status_code, "5 bytes" in reply.json()["detail"]) == (409, True)


async def test_a_large_file_goes_in_equal_parts_and_is_resumed(
    client, small_parts, bucket, settings
):
    """Cut off in the middle: what has arrived is not sent again, and the file is what it was."""
    # 14.3 MB: three parts.
    film = bytes(range(256)) * 56_000
    ticket = await begin(client, len(film), 'größe "x"; y.mp4')
    assert ticket["upload_url"] is None
    assert [part["bytes"] for part in ticket["parts"]] == [
        5 * 2**20,
        5 * 2**20,
        len(film) - 10 * 2**20,
    ]

    async def send(part, length=None):
        piece = film[part["offset"] : part["offset"] + (length or part["bytes"])]
        return await put(part["upload_url"], piece)

    assert await send(ticket["parts"][1]) == 200
    assert await send(ticket["parts"][0], 1000) == 403
    early = await client.post(ticket["complete_url"])
    assert (
        early.status_code,
        "2 parts are missing; the first is part 1" in early.json()["detail"],
    ) == (
        409,
        True,
    )
    resumed = (await client.get(f"/api/videos/uploads/{ticket['upload_id']}")).json()
    assert [part["number"] for part in resumed["parts"]] == [1, 3]
    assert await asyncio.gather(*map(send, resumed["parts"])) == [200, 200]
    for _ in range(2):
        done = await client.post(ticket["complete_url"])
        assert (done.status_code, done.json()["bytes"]) == (200, len(film))
    url = (
        await client.get("/api/storage/presigned-url", params={"key": ticket["video_key"]})
    ).json()["url"]
    async with httpx.AsyncClient() as http:
        got = await http.get(url)
    assert got.content == film
    assert (
        await client.post("/api/jobs", json=JOB | {"input_key": ticket["video_key"]})
    ).status_code == 202


async def test_joined_but_not_noted_is_complete_all_the_same(client, small_parts, monkeypatch):
    """The broker died between the two."""
    film = b"x" * 12_000_000
    ticket = await begin(client, len(film))
    for part in ticket["parts"]:
        assert (
            await put(part["upload_url"], film[part["offset"] : part["offset"] + part["bytes"]])
            == 200
        )
    with monkeypatch.context() as patch:
        patch.setattr(UploadStore, "complete", lambda *_: 1 / 0)
        assert (await client.post(ticket["complete_url"])).status_code == 500
    assert (await client.post(ticket["complete_url"])).json()["bytes"] == len(film)


async def test_an_upload_that_the_store_gave_up_begins_anew(client, small_parts, bucket, settings):
    """After a day, by the bucket's own rule: the parts are asked for again, and can be sent."""
    film = b"x" * 12_000_000
    ticket = await begin(client, len(film))
    part = ticket["parts"][0]
    assert await put(part["upload_url"], film[: part["bytes"]]) == 200
    key = f"{settings().user_id}/{ticket['video_key']}"
    (left,) = bucket._client.list_multipart_uploads(Bucket=bucket._name, Prefix=key)["Uploads"]
    bucket.drop_parts(key, left["UploadId"])
    assert (await client.post(ticket["complete_url"])).status_code == 409
    resumed = (await client.get(f"/api/videos/uploads/{ticket['upload_id']}")).json()
    assert [part["number"] for part in resumed["parts"]] == [1, 2, 3]
    for part in resumed["parts"]:
        assert (
            await put(part["upload_url"], film[part["offset"] : part["offset"] + part["bytes"]])
            == 200
        )
    assert (await client.post(ticket["complete_url"])).json()["bytes"] == len(film)


async def test_an_abandoned_upload_is_gone(client, small_parts):
    """With its parts; one that is complete stays."""
    ticket = await begin(client, 12_000_000)
    part = ticket["parts"][0]
    assert await put(part["upload_url"], b"x" * part["bytes"]) == 200
    where = f"/api/videos/uploads/{ticket['upload_id']}"
    assert (await client.delete(where)).status_code == 204
    assert (await client.get(where)).status_code == 404
    assert await put(part["upload_url"], b"x" * part["bytes"]) == 404
    single = await begin(client, 4)
    await put(single["upload_url"], b"film", single["headers"])
    assert (await client.delete(f"/api/videos/uploads/{single['upload_id']}")).status_code == 204
    lost = await client.get("/api/storage/presigned-url", params={"key": single["video_key"]})
    assert lost.status_code == 404
    whole = await begin(client, 1)
    await put(whole["upload_url"], b"x", whole["headers"])
    await client.post(whole["complete_url"])
    assert (await client.delete(f"/api/videos/uploads/{whole['upload_id']}")).status_code == 204
    assert (await client.post(whole["complete_url"])).status_code == 200


async def test_a_file_that_is_too_large_is_refused_at_once(client):
    """By the field that says so; the largest there may be is planned in parts that the store
    takes.
    """
    reply = await client.post("/api/videos/upload-url", json={"filename": "a.mp4", "bytes": 2**40})
    assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, "/bytes")
    ticket = await begin(client, 32 * 2**30)
    assert (len(ticket["parts"]), {part["bytes"] for part in ticket["parts"]}) == (
        100,
        {16 * 2**20},
    )
    await client.delete(f"/api/videos/uploads/{ticket['upload_id']}")


async def test_a_name_cannot_break_out_of_a_header(client, bucket, settings):
    """Quotes, semicolons and line ends in a file's name stay in the name."""
    for name in ('a"; filename="evil.exe', "a\u2028b", "ü.mp4", "a%0d%0aX-Evil: 1.mp4"):
        ticket = await begin(client, None, name)
        assert await put(ticket["upload_url"], b"film", ticket["headers"]) == 200
        url = (
            await client.get("/api/storage/presigned-url", params={"key": ticket["video_key"]})
        ).json()["url"]
        async with httpx.AsyncClient() as http:
            got = await http.get(url)
        told = got.headers["content-disposition"]
        assert told.startswith("attachment; filename*=UTF-8''")
        assert not set('";\r\n ') & set(told.split("''")[1])
        assert "x-evil" not in got.headers
    for name in ("a\r\nX: 1", "a\x00b", "a/b", "a\\b", "", "..", "."):
        assert (
            await client.post("/api/videos/upload-url", json={"filename": name})
        ).status_code == 422


def swept(made, bucket, days):
    """What of the user's uploads is left after a sweep in so many days."""
    with reading(made.database_url) as engine:
        store = JobStore(engine)
        known = UploadStore(engine)
        # Only read: the broker has the database.
        store.forget_keys = known.forget = lambda *_: None
        Retention(made, store, known, bucket, lambda: now_ms() + days * DAY_MS).sweep()
    prefix = f"{made.user_id}/"
    return {found.key.removeprefix(prefix) for found in bucket.listed(f"{prefix}uploads/")}


@pytest.mark.abuse
async def test_a_file_over_the_limit_is_removed_however_it_came(
    settings, running, provider, bucket
):
    """Without telling `bytes`: 413 at `complete`, also the second time, and from then on no URL;
    the sweep gets what comes later.
    """
    made = settings(REELBROKER_MAX_UPLOAD_BYTES="10")
    async with running(made, provider) as client:
        ticket = await begin(client)
        where, whole = (
            f"/api/videos/uploads/{ticket['upload_id']}",
            f"{made.user_id}/{ticket['video_key']}",
        )
        for _ in range(2):
            assert await put(ticket["upload_url"], b"x" * 11, ticket["headers"]) == 200
            reply = await client.post(ticket["complete_url"])
            assert (reply.status_code, reply.json()["code"]) == (413, "file_too_large")
            assert bucket.size(whole) is None
            assert (await client.get(where)).status_code == 413
        assert await put(ticket["upload_url"], b"x" * 11, ticket["headers"]) == 200
        named = await client.post("/api/jobs", json=JOB | {"input_key": ticket["video_key"]})
        await client.post(named.json()["urls"]["cancel"])
        # A job has named it, and it came after that job's end.
        bucket.write(whole, b"x" * 12)
        assert ticket["video_key"] not in swept(made, bucket, 8)
        fits = await begin(client)
        assert await put(fits["upload_url"], b"x" * 10, fits["headers"]) == 200
        assert (await client.post(fits["complete_url"])).json()["bytes"] == 10


@pytest.mark.abuse
async def test_a_job_of_a_file_over_the_limit_sees_no_gpu(settings, running, provider, bucket):
    """The upload was never said to be complete: the job ends as `file_too_large`. What an operator
    put elsewhere has no limit.
    """
    made = settings(REELBROKER_MAX_UPLOAD_BYTES="10")
    async with running(made, provider) as client:
        ticket = await begin(client)
        assert await put(ticket["upload_url"], b"x" * 11, ticket["headers"]) == 200
        clips = {
            "type": "multi_clip",
            "params": {"clips": [{"input_key": ticket["video_key"], "end_time": 1}]},
        }
        for job in (JOB | {"input_key": ticket["video_key"]}, clips):
            url = (await client.post("/api/jobs", json=job)).raise_for_status().headers["location"]
            ended = await until(client, url, lambda job: job["status"] == "error")
            if job is not clips:
                assert (ended["error_code"], ended["retryable"]) == ("file_too_large", False)
        assert provider.submits == []
        assert bucket.size(f"{made.user_id}/{ticket['video_key']}") is None
        assert (await client.get(f"/api/videos/uploads/{ticket['upload_id']}")).status_code == 413
        bucket.write(f"{made.user_id}/games/final.mp4", b"x" * 11)
        url = (await client.post("/api/jobs", json=JOB | {"input_key": "games/final.mp4"})).headers[
            "location"
        ]
        await until(client, url, lambda job: job["phase"] == "queued")


async def test_what_was_accepted_stays_when_the_limit_falls(settings, running, provider, bucket):
    """An operator lowers it: uploads that were complete before are used on."""
    async with running(settings(), provider) as client:
        ticket = await begin(client)
        assert await put(ticket["upload_url"], b"x" * 11, ticket["headers"]) == 200
        await client.post(ticket["complete_url"])
    async with running(settings(REELBROKER_MAX_UPLOAD_BYTES="10"), provider) as client:
        assert (await client.post(ticket["complete_url"])).json()["bytes"] == 11
        url = (
            await client.post("/api/jobs", json=JOB | {"input_key": ticket["video_key"]})
        ).headers["location"]
        await until(client, url, lambda job: job["phase"] == "queued")


@pytest.mark.abuse
async def test_a_file_that_is_there_cannot_be_replaced(client, small_parts, bucket, settings):
    """By its URL, before and after `complete`, or by the URL of a part; `complete` again changes
    nothing.
    """
    ticket = await begin(client, 4)
    plain = {"Content-Type": ticket["headers"]["Content-Type"]}
    assert await put(ticket["upload_url"], b"film", ticket["headers"]) == 200
    for _ in range(2):
        assert await put(ticket["upload_url"], b"evil", ticket["headers"]) == 412
        assert await put(ticket["upload_url"], b"evil", plain) == 403
        assert (await client.post(ticket["complete_url"])).status_code == 200
    assert bucket.read(f"{settings().user_id}/{ticket['video_key']}") == b"film"
    film = b"x" * 12_000_000
    large = await begin(client, len(film))
    for part in large["parts"]:
        assert (
            await put(part["upload_url"], film[part["offset"] : part["offset"] + part["bytes"]])
            == 200
        )
    for _ in range(2):
        assert (await client.post(large["complete_url"])).status_code == 200
        part = large["parts"][0]
        assert await put(part["upload_url"], b"y" * part["bytes"]) == 404
    assert bucket.read(f"{settings().user_id}/{large['video_key']}", 100) == b"x" * 100


async def test_a_file_that_has_arrived_is_not_asked_for_again(client):
    """A client that lost the answer looks, finds no URL, and goes on to `complete`."""
    ticket = await begin(client, 4)
    where = f"/api/videos/uploads/{ticket['upload_id']}"
    assert (await client.get(where)).json()["upload_url"] is not None
    assert await put(ticket["upload_url"], b"film", ticket["headers"]) == 200
    again = (await client.get(where)).json()
    assert (again["upload_url"], again["parts"], again["completed"]) == (None, [], False)
    assert (await client.post(ticket["complete_url"])).status_code == 200


@pytest.mark.abuse
async def test_what_comes_by_the_url_of_a_dropped_upload_is_swept(client, bucket, settings):
    """It answers 404 at once, but its URL is good for a while: the file must not stay for ever."""
    ticket = await begin(client)
    assert (await client.delete(f"/api/videos/uploads/{ticket['upload_id']}")).status_code == 204
    assert await put(ticket["upload_url"], b"film", ticket["headers"]) == 200
    for reply in (
        await client.get(f"/api/videos/uploads/{ticket['upload_id']}"),
        await client.post(ticket["complete_url"]),
    ):
        assert reply.status_code == 404
    assert ticket["video_key"] in swept(settings(), bucket, 1)
    assert ticket["video_key"] not in swept(settings(), bucket, 8)


@pytest.mark.abuse
@pytest.mark.parametrize("character", ["é", "日", "🎬", "a"])
async def test_a_long_name_gives_a_url_that_works(client, character):
    """255 characters are up to 1020 bytes, of which the store takes 255: the name is cut between
    characters, and keeps its suffix.
    """
    ticket = await begin(client, None, character * 251 + ".mp4")
    name = ticket["video_key"].rpartition("/")[2]
    assert (250 < len(name.encode()) <= 255, name.endswith(character + ".mp4"), set(name)) == (
        True,
        True,
        {character, *".mp4"},
    )
    assert await put(ticket["upload_url"], b"film", ticket["headers"]) == 200
    assert (await client.post(ticket["complete_url"])).json()["video_key"] == ticket["video_key"]
    job = await client.post("/api/jobs", json=JOB | {"input_key": ticket["video_key"]})
    assert job.status_code == 202


async def test_an_older_client_puts_with_its_content_type_alone(client):
    """It is known by the `job_id` that it sends."""
    body = {"filename": "a.mp4", "content_type": "video/mp4", "job_id": None}
    ticket = (await client.post("/api/videos/upload-url", json=body)).json()
    assert await put(ticket["upload_url"], b"film", {"Content-Type": "video/mp4"}) == 200
