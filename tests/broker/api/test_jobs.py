"""The HTTP face: status codes, problem documents, pages, and what a wrong body leaves behind
(nothing).
"""

import asyncio
import time
import uuid

import httpx
import pytest

from broker.bucket import open_bucket
from broker.jobs import policy
from schemas.keys import object_key
from tests.broker.api.calls import JOB, on_one_database, submitted_ids, until
from tests.broker.provider import Provider, Worker, refuse


async def test_a_submit_is_answered_before_anything_is_sent(client):
    """202 with where to look and when."""
    reply = await client.post("/api/jobs", json=JOB | {"project_id": 7, "metadata": {"a": "b"}})
    job = reply.json()
    assert reply.status_code == 202
    assert reply.headers["location"] == f"/api/jobs/{job['job_id']}" == job["urls"]["self"]
    assert "retry-after" in reply.headers
    assert (job["status"], job["phase"], job["progress"]) == ("pending", "accepted", 0)
    assert (job["project_id"], job["metadata"], job["output_key"]) == (7, {"a": "b"}, None)


async def test_the_whole_life_of_a_job_over_http(client, provider, bucket):
    """Submit, poll, download: the redirect leads to the very bytes."""
    url = (await client.post("/api/jobs", json=JOB)).headers["location"]
    await until(client, url, lambda job: job["status"] == "processing")
    assert (await client.get(f"{url}/output")).status_code == 404
    key = Worker(bucket, provider.only()["sent"]).finish(b"a film")
    job = await until(client, url, lambda job: job["status"] == "complete")
    assert (job["output_key"], job["result"]["bytes"], job["progress"]) == (key, 6, 100)
    reply = await client.get(job["urls"]["output"])
    assert reply.status_code == 302
    async with httpx.AsyncClient() as bucket:
        download = await bucket.get(reply.headers["location"])
    assert (download.content, "attachment" in download.headers["content-disposition"]) == (
        b"a film",
        True,
    )


async def test_a_job_of_nobody_is_404(client):
    """So is one of another user: they look the same."""
    for method, path in [("GET", ""), ("GET", "/output"), ("POST", "/cancel")]:
        reply = await client.request(method, f"/api/jobs/none{path}")
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found")


async def test_an_id_that_cannot_be_is_404(client):
    """Whatever is in it, on every database."""
    for path in (
        "/api/jobs/%00",
        "/api/jobs/a%00b/cancel",
        "/hooks/runpod/%00/x",
        "/api/videos/uploads/%00",
    ):
        method = "POST" if path.endswith(("cancel", "/x")) else "GET"
        assert (await client.request(method, path)).status_code == 404


async def test_cancel_answers_the_same_when_asked_again(client):
    """First 202, then the end; after a cancel, 200."""
    url = (await client.post("/api/jobs", json=JOB)).headers["location"]
    first = await client.post(f"{url}/cancel")
    again = await client.post(f"{url}/cancel")
    assert first.status_code == 202
    assert again.status_code in (200, 202)
    await until(client, url, lambda job: job["status"] == "cancelled")
    assert (await client.post(f"{url}/cancel")).status_code == 200


async def test_a_finished_job_cannot_be_cancelled(client, provider, bucket):
    """409, and the job stays what it is."""
    url = (await client.post("/api/jobs", json=JOB)).headers["location"]
    await until(client, url, lambda job: job["status"] == "processing")
    Worker(bucket, provider.only()["sent"]).finish()
    await until(client, url, lambda job: job["status"] == "complete")
    reply = await client.post(f"{url}/cancel")
    assert (reply.status_code, reply.json()["code"]) == (409, "already_finished")


@pytest.mark.parametrize("quote", ["", '"'])
async def test_a_submit_that_is_sent_again_makes_no_second_job(client, quote):
    """By its Idempotency-Key, in quotes or without; the answer says that it is a replay."""
    headers = {"Idempotency-Key": f"{quote}export-7{quote}"}
    first = await client.post("/api/jobs", json=JOB, headers={"Idempotency-Key": "export-7"})
    again = await client.post("/api/jobs", json=JOB, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.headers["location"] == again.headers["location"]
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (
        False,
        "true",
    )
    assert await submitted_ids(client) == [first.json()["job_id"]]


async def test_many_at_once_with_one_key_make_one_job(client):
    """The key is in the job's own transaction."""
    asks = [client.post("/api/jobs", json=JOB, headers={"Idempotency-Key": "k"}) for _ in range(20)]
    replies = await asyncio.gather(*asks)
    assert {reply.status_code for reply in replies} == {202}
    assert len({reply.json()["job_id"] for reply in replies}) == 1
    assert sum("idempotent-replayed" not in reply.headers for reply in replies) == 1
    assert len(await submitted_ids(client)) == 1


async def test_a_key_with_another_body_is_refused(client):
    """422, and nothing is made; the same body in another spelling is the same."""
    await client.post("/api/jobs", json=JOB, headers={"Idempotency-Key": "k"})
    other = await client.post(
        "/api/jobs", json=JOB | {"project_id": 1}, headers={"Idempotency-Key": "k"}
    )
    assert (other.status_code, other.json()["code"]) == (422, "key_reused")
    spelled = {"params": {}, "input_video_key": "a.mp4", "type": "framing"}
    same = await client.post("/api/jobs", json=spelled, headers={"Idempotency-Key": "k"})
    assert same.status_code == 202
    assert len(await submitted_ids(client)) == 1


@on_one_database
@pytest.mark.parametrize("key", ["", "x" * 256, '""'])
async def test_a_key_that_is_none_is_refused(client, key):
    """Rather than taken for no key."""
    reply = await client.post("/api/jobs", json=JOB, headers={"Idempotency-Key": key})
    assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, "/Idempotency-Key")


async def test_a_client_may_draw_the_id(client):
    """PUT, as often as it likes; another request under that id is refused."""
    url = f"/api/jobs/{uuid.uuid4()}"
    first, again = await client.put(url, json=JOB), await client.put(url, json=JOB)
    assert (first.status_code, again.status_code, first.json()["urls"]["self"]) == (202, 202, url)
    assert again.headers["idempotent-replayed"] == "true"
    other = await client.put(url, json=JOB | {"project_id": 1})
    assert (other.status_code, other.json()["code"]) == (422, "key_reused")
    assert (await client.get(url)).status_code == 200
    bad = await client.put("/api/jobs/my-job", json=JOB)
    assert (bad.status_code, bad.json()["errors"][0]["pointer"]) == (422, "/job_id")


async def test_the_providers_call_has_the_job_looked_at(client, provider, bucket, monkeypatch):
    """It needs the attempt's token and no key; what it says beside the id is not believed. Without
    it, nobody would look for long.
    """
    monkeypatch.setattr(policy, "CADENCE", ((float("inf"), 600.0),))
    url = (await client.post("/api/jobs", json=JOB)).headers["location"]
    job = await until(client, url, lambda job: job["status"] == "processing")
    sent = provider.only()["sent"]["input"]
    body = {"id": job["runpod_job_id"], "status": "COMPLETED", "output": {"output_key": "x.mp4"}}
    hook = f"/hooks/runpod/{job['job_id']}/{sent['attempt_token']}"
    assert (await client.post(hook, json=body, headers={"Authorization": ""})).status_code == 200
    assert (await client.get(url)).json()["status"] == "processing"
    Worker(bucket, provider.only()["sent"]).finish()
    assert (
        await client.post(hook, content=b"\xff", headers={"Authorization": ""})
    ).status_code == 200
    await until(client, url, lambda job: job["status"] == "complete")
    assert (await client.post(hook, json=body)).status_code == 200
    for wrong in (
        f"/hooks/runpod/{job['job_id']}/{'0' * 32}",
        f"/hooks/runpod/x/{sent['attempt_token']}",
    ):
        assert (await client.post(wrong, json=body)).status_code == 404


@on_one_database
async def test_a_thousand_watchers_cost_no_more_calls_than_one(client, provider, bucket, measured):
    """They read the database; only the broker asks the provider."""

    async def life(watchers):
        before = len(provider.calls)
        url = (await client.post("/api/jobs", json=JOB)).headers["location"]
        await until(client, url, lambda job: job["status"] == "processing")
        sent = list(provider.every.values())[-1]["sent"]
        asked, ended = 0, time.monotonic() + 2
        while time.monotonic() < ended:
            replies = await asyncio.gather(*(client.get(url) for _ in range(watchers)))
            assert {reply.status_code for reply in replies} == {200}
            asked += watchers
            await asyncio.sleep(0.1)
        Worker(bucket, sent).finish()
        await until(client, url, lambda job: job["status"] == "complete")
        return len(provider.calls) - before, asked

    alone, crowded = await life(1), await life(1000)
    measured(
        f"RunPod calls in a job's life: {alone[0]} with {alone[1]} polls, {crowded[0]} with "
        f"{crowded[1]} polls by 1,000 watchers"
    )
    assert crowded[0] <= alone[0] + 2
    assert crowded[1] >= 1000


@on_one_database
async def test_a_drain_holds_jobs_back_and_survives_a_restart(settings, running, provider):
    """What was accepted waits; a new job is asked to come again; one that is known is not new."""
    made, key = settings(), {"Idempotency-Key": "k"}
    open_bucket(made).write(object_key(made.user_id, JOB["input_key"]), b"a video")
    provider.fault = refuse
    async with running(made, provider) as client:
        url = (await client.post("/api/jobs", json=JOB, headers=key)).headers["location"]
        assert (await client.post("/api/operations/drain", json={"on": True})).json() == {
            "draining": True
        }
    provider.fault = None
    async with running(made, provider) as client:
        calls = len(provider.calls)
        job = await until(client, url, lambda job: "sends no jobs" in job["message"])
        assert (job["status"], len(provider.calls)) == ("pending", calls)
        refused = await client.post("/api/jobs", json=JOB)
        assert (refused.status_code, refused.json()["code"]) == (503, "draining")
        assert (refused.json()["retryable"], int(refused.headers["retry-after"]) > 0) == (
            True,
            True,
        )
        assert (await client.post("/api/jobs", json=JOB, headers=key)).headers["location"] == url
        assert len(await submitted_ids(client)) == 1
        await client.post("/api/operations/drain", json={"on": False})
        await until(client, url, lambda job: job["status"] == "processing")


async def test_pages_follow_one_another(client):
    """Every job once, newest first, by cursor."""
    made = [(await client.post("/api/jobs", json=JOB)).json()["job_id"] for _ in range(5)]
    seen, cursor = [], None
    while True:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await client.get("/api/jobs", params=query)).json()
        seen += [job["job_id"] for job in page["jobs"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert sorted(seen) == sorted(made)
    assert len(seen) == 5


@on_one_database
@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=x",
        "status=lost",
        "cursor=%00",
        "cursor=OTk5OTk5OTk5OTk5OTk5OTk5OTk6eA==",
        "colour=red",
    ],
)
async def test_a_wrong_query_is_refused_by_name(client, query):
    """The pointer is the query's field."""
    reply = await client.get(f"/api/jobs?{query}")
    assert reply.status_code == 422
    assert reply.json()["errors"][0]["pointer"].split("/")[1] == query.split("=")[0]


@on_one_database
@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        pytest.param(b'{"type": "sharpen", "input_key": "a.mp4"}', "/type", id="unknown-type"),
        pytest.param(
            b'{"type": "framing", "input_key": "a.mp4", "loud": 1}', "/loud", id="unknown-field"
        ),
        pytest.param(b'{"type": "framing"}', "/input_key", id="missing-field"),
        pytest.param(b'{"type": "framing", "input_key": "../b/a.mp4"}', "/input_key", id="dot-dot"),
        pytest.param(
            b'{"type": "framing", "input_key": "/a.mp4"}', "/input_key", id="leading-slash"
        ),
        pytest.param(
            b'{"type": "framing", "input_key": "a", "params": {"end_time": NaN}}',
            "/params/end_time",
            id="nan",
        ),
        pytest.param(
            b'{"type": "framing", "input_key": "a", "params": {"end_time": 5300000}}',
            "/params/end_time",
            id="milliseconds",
        ),
        pytest.param(
            b'{"type": "framing", "input_key": "a", "params": {"start_time": 3, "end_time": 2}}',
            "/params/end_time",
            id="end-before-start",
        ),
        pytest.param(
            b'{"type": "framing", "input_key": "a", "params": {"source_width": 100, '
            b'"source_height": 100, "crop_keyframes": [{"time": 0, "x": 80, "y": 0, "width": 50, '
            b'"height": 50}]}}',
            "/params/crop_keyframes/0",
            id="keyframe-outside",
        ),
        pytest.param(b'{"type": "framing", ', "", id="cut-off-json"),
        pytest.param(b"[" * 50_000, "", id="deep-json"),
        pytest.param(b"\xff\xfe", "", id="not-text"),
    ],
)
async def test_a_wrong_body_is_refused_by_name_and_stores_nothing(client, body, pointer):
    """422 problem+json with a pointer to the field."""
    reply = await client.post("/api/jobs", content=body)
    problem = reply.json()
    assert (reply.status_code, problem["code"]) == (422, "invalid_request")
    assert reply.headers["content-type"] == "application/problem+json"
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert problem["request_id"] == reply.headers["x-request-id"]
    assert (await client.get("/api/jobs")).json()["jobs"] == []


@on_one_database
async def test_a_body_over_the_limit_is_cut_off(client):
    """Counted on the bytes that arrive: a client need not say how many there are."""

    async def endless():
        for _ in range(10_000):
            yield b" " * 1024

    reply = await client.post("/api/jobs", content=endless())
    assert (reply.status_code, reply.json()["code"]) == (413, "body_too_large")
    assert (await client.get("/api/jobs")).json()["jobs"] == []


@on_one_database
@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer wrong", "Basic dGVzdA==", "test-key-0123456789"]
)
async def test_without_the_key_there_is_nothing(client, header):
    """401 for every route below /api, also for those that are not there."""
    for path in ("/api/jobs", "/api/nothing"):
        reply = await client.get(path, headers={"Authorization": header})
        assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
        assert reply.headers["www-authenticate"] == "Bearer"


@on_one_database
async def test_an_upload_goes_straight_to_the_bucket(client):
    """The presigned PUT takes the file, and the key fits a job."""
    ticket = (await client.post("/api/videos/upload-url", json={"filename": "clip ü.mp4"})).json()
    async with httpx.AsyncClient() as bucket:
        put = await bucket.put(ticket["upload_url"], content=b"film", headers=ticket["headers"])
        other_type = await bucket.put(
            ticket["upload_url"], content=b"x", headers={"Content-Type": "text/html"}
        )
    assert (put.status_code, other_type.status_code) == (200, 403)
    reply = await client.post(
        "/api/jobs", json={"type": "framing", "input_key": ticket["video_key"]}
    )
    assert reply.status_code == 202


@on_one_database
async def test_the_bucket_is_closed_to_strangers(client, object_store):
    """Without a signature nothing is read."""
    async with httpx.AsyncClient() as stranger:
        reply = await stranger.get(f"{object_store.url}/{object_store.bucket}/.ready")
    assert reply.status_code == 403


async def test_ready_says_what_is_missing(settings, running, client, tmp_path):
    """A broker without its bucket is alive but not ready."""
    assert (await client.get("/healthz")).status_code == 200
    assert (await client.get("/readyz")).status_code == 200
    async with running(
        settings(
            R2_ENDPOINT="http://127.0.0.1:9", REELBROKER_DATABASE_URL=f"sqlite:///{tmp_path}/b.db"
        ),
        Provider(),
    ) as alone:
        reply = await alone.get("/readyz")
        assert (reply.status_code, reply.json()["code"]) == (503, "not_ready")
        assert "bucket" in reply.json()["detail"]
        assert (await alone.get("/healthz")).status_code == 200


@on_one_database
async def test_a_crash_of_ours_tells_no_insides(settings, running, monkeypatch):
    """500 problem+json without a traceback."""
    from broker.engine.service import JobService

    async def crash(self, user_id, job_id):
        raise RuntimeError("secret path /etc/x")

    monkeypatch.setattr(JobService, "job", crash)
    async with running(settings(), Provider()) as client:
        reply = await client.get("/api/jobs/x")
    assert (reply.status_code, reply.json()["code"]) == (500, "internal")
    assert "secret" not in reply.text


async def test_the_list_is_searched(client):
    """In the id, the file's name and the metadata, whatever the case; a percent sign is only
    that.
    """
    made = {}
    for name, metadata in (("Final_100%.mp4", {}), ("b.mp4", {"match": "Final"}), ("c.mp4", {})):
        made[name] = (
            await client.post("/api/jobs", json=JOB | {"input_key": name, "metadata": metadata})
        ).json()["job_id"]

    async def found(text):
        return {
            job["input_key"]
            for job in (await client.get("/api/jobs", params={"search": text})).json()["jobs"]
        }

    assert await found("final") == {"Final_100%.mp4", "b.mp4"}
    assert await found("0%") == {"Final_100%.mp4"}
    assert await found(made["c.mp4"][:8]) == {"c.mp4"}
    assert await found("nothing") == set()
    assert (await client.get("/api/jobs", params={"search": "\0"})).status_code == 422
