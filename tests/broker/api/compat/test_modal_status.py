"""Document 002's client: it stores a call's id and asks what became of the call, on Modal's
unmodified client and the embedded server.
"""

import sqlite3

import pytest

from broker.store.engine import sqlite_path
from schemas.keys import object_key
from tests.broker.api.calls import JOB, on_one_database, until
from tests.broker.modal_side import TOKEN, modal_server, sent
from tests.broker.provider import Worker


@pytest.fixture
async def modal(tmp_path):
    """The embedded server, with no container."""
    async with modal_server(tmp_path) as served:
        yield served.server


@pytest.fixture
async def at_modal(settings, modal, bucket, running, provider):
    """A client of a broker that sends its jobs to Modal, and an export there."""
    made = settings(
        MODAL_ENABLED="true",
        MODAL_TOKEN_ID=TOKEN[0],
        MODAL_TOKEN_SECRET=TOKEN[1],
        REELBROKER_PROVIDERS="modal",
        REELBROKER_LOST_AFTER_SECONDS=600,
    )
    bucket.write(object_key(made.user_id, JOB["input_key"]), b"a video")
    async with running(made, provider) as client:
        url = (await client.post("/api/jobs", json=JOB)).headers["location"]
        await until(client, url, lambda job: job["modal_call_id"] is not None)
        yield client, url, made


async def status(client, url):
    return (await client.get(f"/api/exports/{url.rpartition('/')[2]}/modal-status")).json()


async def test_an_export_at_modal_is_finalized_when_its_user_asks(at_modal, modal, bucket):
    """Running until the worker has committed; then the question itself completes the job."""
    client, url, made = at_modal
    ((call_id, job),) = sent(modal).items()
    told = await status(client, url)
    assert (told["status"], told["modal_call_id"]) == ("running", call_id)
    if path := sqlite_path(made.database_url):
        row = sqlite3.connect(path).execute(
            "SELECT modal_call_id, runpod_job_id, provider FROM export_jobs"
        )
        assert row.fetchone() == (call_id, None, "modal")
    key = Worker(bucket, {"input": job}).finish()
    told = await status(client, url)
    assert (told["status"], told["output_key"]) == ("complete", key)
    view = (await client.get(url)).json()
    assert (view["provider"], view["modal_call_id"], view["runpod_job_id"]) == (
        "modal",
        "rp-9",
        None,
    )


@on_one_database
async def test_a_call_that_modal_forgot_is_expired(at_modal, modal):
    """Modal keeps results for seven days; the export may be tried again."""
    client, url, _ = at_modal
    modal._queue._jobs.clear()
    assert (await status(client, url))["status"] == "expired"


@on_one_database
async def test_a_cancelled_export_is_cancelled_at_modal(at_modal, modal):
    """The word for older clients is `error`, with the sentence that they know."""
    client, url, _ = at_modal
    reply = await client.delete(f"/api/exports/{url.rpartition('/')[2]}")
    assert reply.json() == {"message": "Export cancelled", "modal_cancelled": True}
    await until(client, url, lambda job: job["status"] == "cancelled")
    told = await status(client, url)
    assert (told["status"], told["error"]) == ("error", "Cancelled by user")
    (job,) = modal._queue._jobs.values()
    assert job.state == "CANCELLED"


@on_one_database
async def test_an_export_elsewhere_is_not_modals(client):
    """The question changes nothing."""
    url = (await client.post("/api/jobs", json=JOB)).headers["location"]
    await until(client, url, lambda job: job["runpod_job_id"] is not None)
    assert (await status(client, url))["status"] == "not_modal"
    missing = await client.get("/api/exports/00000000-0000-0000-0000-000000000000/modal-status")
    assert missing.status_code == 404


@on_one_database
async def test_a_wrong_token_is_named_in_the_jobs_message(
    settings, modal, bucket, running, provider
):
    """The job waits; an operator has to act."""
    made = settings(
        REELBROKER_PROVIDERS="modal", MODAL_TOKEN_ID="ak-wrong", MODAL_TOKEN_SECRET="as-wrong"
    )
    bucket.write(object_key(made.user_id, JOB["input_key"]), b"a video")
    async with running(made, provider) as client:
        url = (await client.post("/api/jobs", json=JOB)).headers["location"]
        job = await until(client, url, lambda job: "refuses" in job["message"])
        assert (job["status"], job["message"]) == (
            "pending",
            "The job waits until an operator acts: Modal refuses the token",
        )
