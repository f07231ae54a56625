"""What must not work: each a clear 4xx, nothing stored, memory flat. Keys of others are in
test_tenants.py, tokens in test_auth.py, webhook targets in test_webhooks.py, forged calls of the
provider in test_jobs.py."""

import asyncio
import gc
import json
import time
import tracemalloc
import uuid

import httpx
import pytest

from broker import ids
from broker.bucket import Bucket
from broker.errors import StorageError
from broker.store.jobs import JobStore
from schemas.jobs import JobStatus
from tests.broker.api.calls import JOB, on_one_database, submitted_ids, until
from tests.broker.provider import Worker, refuse

pytestmark = on_one_database
KEYFRAME = {"time": 0, "x": 0, "y": 0, "width": 9, "height": 16}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        pytest.param(
            json.dumps(JOB | {"params": {"crop_keyframes": [KEYFRAME] * 1_000_000}}).encode(),
            413,
            id="a-million-keyframes",
        ),
        pytest.param(
            json.dumps(JOB | {"params": {"crop_keyframes": [KEYFRAME] * 15_000}}).encode(),
            422,
            id="too-many-keyframes",
        ),
        pytest.param(
            b'{"type": "framing", "params": ' + b'{"a":' * 100_000, 422, id="deep-objects"
        ),
        pytest.param(b"[" * 900_000, 422, id="deep-arrays"),
        pytest.param(
            b'{"type": "framing", "input_key": "a.mp4", "project_id": ' + b"9" * 900_000 + b"}",
            422,
            id="long-number",
        ),
        pytest.param(
            json.dumps(JOB | {"metadata": {str(n): "x" for n in range(60_000)}}).encode(),
            422,
            id="much-metadata",
        ),
        pytest.param(
            b'{"type": "framing", "input_key": "' + b"a" * 900_000 + b'"}', 422, id="long-key"
        ),
        pytest.param(b'"' + b"\\u0000" * 100_000 + b'"', 422, id="zeroes"),
    ],
)
async def test_a_monstrous_body_is_refused(client, content, status):
    """By size or by field; the answer is small, whatever came."""
    reply = await client.post("/api/jobs", content=content)
    assert reply.status_code == status
    assert len(reply.content) < 100_000
    assert await submitted_ids(client) == []


async def test_refusing_costs_no_memory(client):
    """A hundred oversized bodies and as many broken ones leave nothing behind."""

    chunk = b" " * 65_536

    async def endless():
        while True:
            yield chunk

    async def abuse():
        for _ in range(50):
            assert (await client.post("/api/jobs", content=endless())).status_code == 413
            assert (await client.post("/api/jobs", content=b"[" * 500_000)).status_code == 422

    await abuse()
    gc.collect()
    tracemalloc.start()
    try:
        await abuse()
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000


async def test_a_body_that_dribbles_in_is_cut_off(settings, running, provider):
    """408 after as long as the settings say; others are served meanwhile."""

    async def slow():
        while True:
            yield b" "
            await asyncio.sleep(0.05)

    async with running(settings(REELBROKER_BODY_SECONDS="0.5"), provider) as client:
        dribbling = asyncio.create_task(client.post("/api/jobs", content=slow()))
        assert (await client.get("/api/jobs")).status_code == 200
        reply = await asyncio.wait_for(dribbling, 5)
        assert (reply.status_code, reply.json()["code"]) == (408, "too_slow")


async def test_too_many_requests_are_told_when_to_come_again(settings, running, provider):
    """429 with `Retry-After`; each answer says how many are left; another user is not held up."""
    async with running(settings(REELBROKER_REQUESTS_PER_MINUTE="5"), provider) as client:
        key = (await client.post("/api/keys", json={"user_id": "bob"})).json()["key"]
        left = [(await client.get("/api/jobs")).headers["ratelimit"] for _ in range(4)]
        assert left == [f'"user";r={number};t=60' for number in (3, 2, 1, 0)]
        over = await client.get("/api/jobs")
        assert (over.status_code, over.json()["code"], over.json()["retryable"]) == (
            429,
            "rate_limited",
            True,
        )
        assert 1 <= int(over.headers["retry-after"]) <= 12
        assert over.headers["ratelimit"] == f'"user";r=0;t={over.headers["retry-after"]}'
        assert (
            await client.get("/api/jobs", headers={"Authorization": f"Bearer {key}"})
        ).status_code == 200
        assert (await client.get("/healthz")).status_code == 200


async def test_nobody_has_more_open_jobs_than_allowed(settings, running, provider, bucket):
    """Not by many at once either. A job that ends makes room; one that is known is not one more."""
    made = settings(REELBROKER_MAX_OPEN_JOBS="3")
    # Else the jobs end by themselves.
    bucket.write(f"{made.user_id}/a.mp4", b"a video")
    provider.fault = refuse
    async with running(made, provider) as client:
        key = {"Idempotency-Key": "k"}
        first = await client.post("/api/jobs", json=JOB, headers=key)
        replies = await asyncio.gather(*(client.post("/api/jobs", json=JOB) for _ in range(10)))
        assert sorted(reply.status_code for reply in replies) == [202] * 2 + [429] * 8
        refused = next(reply for reply in replies if reply.status_code == 429)
        assert (refused.json()["code"], "retry-after" in refused.headers) == (
            "quota_exceeded",
            True,
        )
        assert (await client.post("/api/jobs", json=JOB, headers=key)).json()[
            "job_id"
        ] == first.json()["job_id"]
        await client.post(first.json()["urls"]["cancel"])
        await until(client, first.json()["urls"]["self"], lambda job: job["status"] == "cancelled")
        assert (await client.post("/api/jobs", json=JOB)).status_code == 202


async def test_nobody_asks_for_more_video_than_a_days(settings, running, provider, bucket):
    """By what was asked for; a job that failed or was cancelled does not count."""
    ten, made = JOB | {"params": {"end_time": 10}}, settings(REELBROKER_MEDIA_SECONDS_PER_DAY="25")
    bucket.write(f"{made.user_id}/a.mp4", b"a video")
    provider.fault = refuse
    async with running(made, provider) as client:
        assert [(await client.post("/api/jobs", json=ten)).status_code for _ in range(3)] == [
            202,
            202,
            429,
        ]
        for job_id in await submitted_ids(client):
            await client.post(f"/api/jobs/{job_id}/cancel")
            await until(client, f"/api/jobs/{job_id}", lambda job: job["status"] == "cancelled")
        slow = JOB | {
            "params": {"end_time": 10, "segments": [{"start": 0, "end": 10, "speed": 0.25}]}
        }
        assert (
            await client.post("/api/jobs", json=slow)
            # 40 seconds of output.
        ).status_code == 429
        assert (await client.post("/api/jobs", json=ten)).status_code == 202


@pytest.mark.abuse
async def test_a_burst_of_jobs_of_unknown_length_stays_within_a_day(
    settings, running, provider, bucket
):
    """Each counts by its file's size until its length is known, also by many at once, and the last
    what is left; a retry is no way round.
    """
    made = settings(REELBROKER_MEDIA_SECONDS_PER_DAY="25")
    # Ten seconds at most.
    bucket.write(f"{made.user_id}/a.mp4", b"x" * 400_000)
    provider.fault = refuse
    async with running(made, provider) as client:
        replies = await asyncio.gather(*(client.post("/api/jobs", json=JOB) for _ in range(20)))
        assert sorted(reply.status_code for reply in replies) == [202] * 3 + [429] * 17
        refused = next(reply.json() for reply in replies if reply.status_code == 429)
        assert (refused["code"], "end_time" in refused["detail"]) == ("quota_exceeded", True)
        one, *_ = await submitted_ids(client)
        await client.post(f"/api/jobs/{one}/cancel")
        await until(client, f"/api/jobs/{one}", lambda job: job["status"] == "cancelled")
        replies = await asyncio.gather(*(client.post(f"/api/jobs/{one}/retry") for _ in range(5)))
        assert {reply.status_code for reply in replies} == {202}
        assert (await client.post("/api/jobs", json=JOB)).status_code == 429


async def test_a_length_that_is_known_counts_in_place_of_the_guess(
    settings, running, provider, bucket
):
    """A file of 500 seconds at most may be one of 0.4 seconds: one at a time, a small quota takes
    many.
    """
    made = settings(REELBROKER_MEDIA_SECONDS_PER_DAY="25")
    bucket.write(f"{made.user_id}/a.mp4", b"x" * 20_000_000)
    async with running(made, provider) as client:
        for _ in range(3):
            url = (await client.post("/api/jobs", json=JOB)).raise_for_status().headers["location"]
            assert (await client.post("/api/jobs", json=JOB)).status_code == 429
            assert (
                await client.post("/api/jobs", json=JOB | {"params": {"end_time": 1}})
            ).status_code == 429
            await until(client, url, lambda job: job["status"] == "processing")
            Worker(bucket, list(provider.every.values())[-1]["sent"]).finish()
            await until(client, url, lambda job: job["status"] == "complete")
        assert (
            await client.post("/api/jobs", json=JOB | {"params": {"end_time": 23.7}})
        ).status_code == 202


@pytest.mark.abuse
@pytest.mark.parametrize("trouble", ["missing", "away", "silent"])
async def test_a_source_of_unknown_size_is_as_long_as_any_may_be(
    settings, running, provider, bucket, monkeypatch, trouble
):
    """One that comes after its job, and one of a bucket that does not answer: the submit waits two
    seconds at most.
    """
    made = settings(REELBROKER_MEDIA_SECONDS_PER_DAY="25")
    provider.fault = refuse

    def size(self, key):
        if trouble == "silent":
            time.sleep(5)
        raise StorageError("away")

    if trouble != "missing":
        monkeypatch.setattr(Bucket, "size", size)
    async with running(made, provider) as client:
        began = time.monotonic()
        job = {
            **JOB,
            "type": "multi_clip",
            "input_key": None,
            "params": {"clips": [{"input_key": "later.mp4"}]},
        }
        assert (await client.post("/api/jobs", json=job)).status_code == 202
        assert time.monotonic() - began < 4
        monkeypatch.undo()
        # Else the job has ended by now, since its file is not there.
        if trouble != "missing":
            assert (
                await client.post("/api/jobs", json=JOB | {"params": {"end_time": 1}})
            ).status_code == 429


async def test_a_full_disk_takes_no_job_and_answers_all_else(settings, running, provider):
    """503 before anything is accepted."""
    async with running(settings(REELBROKER_MIN_FREE_BYTES=str(2**60)), provider) as client:
        reply = await client.post("/api/jobs", json=JOB)
        assert (reply.status_code, reply.json()["code"], reply.json()["retryable"]) == (
            503,
            "disk_full",
            True,
        )
        assert (await client.get("/api/jobs")).json()["jobs"] == []


async def test_a_database_that_fails_is_said_to_be_away(client, monkeypatch):
    """503 and not 500; nothing was accepted."""
    from sqlalchemy.exc import OperationalError

    def full(*_):
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    with monkeypatch.context() as patch:
        patch.setattr(JobStore, "add", full)
        reply = await client.post("/api/jobs", json=JOB)
    assert (reply.status_code, reply.json()["code"], "INSERT" in reply.text) == (
        503,
        "database_unavailable",
        False,
    )
    assert await submitted_ids(client) == []


async def test_a_retry_is_one_new_job(client, provider, bucket):
    """Of a job that failed or was cancelled, and of no other; many at once make one."""
    url = (await client.post("/api/jobs", json=JOB | {"metadata": {"a": "b"}})).headers["location"]
    assert (await client.post(f"{url}/retry")).json()["code"] == "not_retryable"
    await client.post(f"{url}/cancel")
    await until(client, url, lambda job: job["status"] == "cancelled")
    replies = await asyncio.gather(*(client.post(f"{url}/retry") for _ in range(10)))
    assert len({reply.json()["job_id"] for reply in replies}) == 1
    assert sum("idempotent-replayed" not in reply.headers for reply in replies) == 1
    again = replies[0].json()
    assert (f"/api/jobs/{again['retry_of']}", again["metadata"], again["status"]) == (
        url,
        {"a": "b"},
        "pending",
    )
    where = again["urls"]["self"]
    await until(client, where, lambda job: job["status"] == "processing")
    Worker(bucket, list(provider.every.values())[-1]["sent"]).finish()
    await until(client, where, lambda job: job["status"] == JobStatus.COMPLETE)
    assert (await client.post(f"{where}/retry")).status_code == 409
    assert (await client.post("/api/jobs/none/retry")).status_code == 404


@pytest.mark.abuse
async def test_no_user_can_take_an_id_that_another_will_need(settings, running, provider):
    """The id of a retry, or of an older client's export, follows from what others may know: it
    cannot be put or sent by them.
    """
    made, film = settings(), {"video": ("a.mp4", b"film", "video/mp4")}
    fields = {"export_id": "export_1", "keyframes_json": json.dumps([KEYFRAME]), "target_fps": "30"}
    async with running(made, provider) as client:
        key = (await client.post("/api/keys", json={"user_id": "mallory"})).json()["key"]
        mallory = {"Authorization": f"Bearer {key}"}
        first = (await client.post("/api/jobs", json=JOB)).json()["job_id"]
        await client.post(f"/api/jobs/{first}/cancel")
        await until(client, f"/api/jobs/{first}", lambda job: job["status"] == "cancelled")
        old = [
            uuid.uuid5(uuid.NAMESPACE_URL, name)
            for name in (f"{first}/retry", f"{made.user_id}/export_1")
        ]
        new = [ids.derived("retry", first), ids.derived("export", made.user_id, "export_1")]
        for taken in old:
            assert (
                await client.put(f"/api/jobs/{taken}", json=JOB, headers=mallory)
            ).status_code == 202
        for wanted in new:
            put = await client.put(f"/api/jobs/{wanted}", json=JOB, headers=mallory)
            sent = await client.post(
                "/api/export/upscale",
                data=fields | {"export_id": wanted},
                files=film,
                headers=mallory,
            )
            assert [
                (one.status_code, one.json()["errors"][0]["pointer"]) for one in (put, sent)
            ] == [
                (422, "/job_id"),
                (422, "/export_id"),
            ]
        same = await client.post("/api/export/upscale", data=fields, files=film, headers=mallory)
        retried = await client.post(f"/api/jobs/{first}/retry")
        exported = await client.post("/api/export/upscale", data=fields, files=film)
        assert [reply.status_code for reply in (same, retried, exported)] == [202, 202, 202]
        assert same.json()["job_id"] != exported.json()["job_id"]
        assert (await client.get("/api/exports/export_1/remote-status")).status_code == 200
        assert (
            await client.get(f"/api/exports/{exported.json()['job_id']}/remote-status")
        ).status_code == 200


async def test_a_quote_before_the_job_and_its_cost_afterwards(settings, running, provider, bucket):
    """First by figures that came along, and once there are enough jobs like it, by theirs."""
    made = settings(REELBROKER_GPU_PRICES={"*": 0.001})
    bucket.write(f"{made.user_id}/a.mp4", b"x" * 2_000_000)
    async with running(made, provider) as client:
        asked = JOB | {
            "params": {
                "end_time": 10,
                "output_width": 1080,
                "output_height": 1920,
                "target_fps": 30,
            }
        }
        told = (await client.post("/api/jobs/quote", json=asked)).json()
        assert (told["output_seconds"], told["source_known"], told["basis"]) == (
            10,
            True,
            "default",
        )
        assert told["gpu_seconds"] == pytest.approx(
            8 + 0.04 * 10 * 30 * 1080 * 1920 / 1e6, rel=0.01
        )
        assert told["cost_usd"] == pytest.approx(told["gpu_seconds"] / 1000)
        assert told["gpu_seconds_p90"] > told["gpu_seconds"]
        unknown = (await client.post("/api/jobs/quote", json=JOB)).json()
        assert (unknown["output_seconds"], unknown["source_known"]) == (
            2,
            False,
            # 2 MB at 8 Mbit/s.
        )
        known = (await client.post("/api/jobs/quote", json=JOB | {"source_seconds": 7.5})).json()
        assert (known["output_seconds"], known["source_known"]) == (7.5, True)
        assert await submitted_ids(client) == []
        for _ in range(5):
            url = (await client.post("/api/jobs", json=JOB)).headers["location"]
            await until(client, url, lambda job: job["status"] == "processing")
            Worker(bucket, list(provider.every.values())[-1]["sent"]).finish()
            done = await until(client, url, lambda job: job["status"] == "complete")
            assert (done["gpu_seconds"], done["cost_usd"]) == (3.5, 0.0035)
        told = (await client.post("/api/jobs/quote", json=asked)).json()
        assert told["basis"] == "history"
        assert told["gpu_seconds"] == pytest.approx(
            3.5 / 10 * 300,
            rel=0.01,
            # Ten frames of that size took 3.5 s.
        )
        wrong = await client.post("/api/jobs/quote", json=JOB | {"params": {"end_time": "x"}})
        assert wrong.status_code == httpx.codes.UNPROCESSABLE_ENTITY
