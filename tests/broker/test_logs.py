"""What is logged: one line an event, with its action and ids, and never a secret, however a job
goes.
"""

import asyncio
import re
import time
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
import structlog

from broker.bucket import open_bucket
from broker.cli.main import log_to_stderr
from schemas.keys import object_key
from tests.broker.api.calls import JOB, on_one_database, until
from tests.broker.provider import Provider, Worker

ADMIN_KEY, SCRAPER_KEY = "admin-key-that-nobody-may-see", "metrics-key-that-nobody-may-see"
JWT_SECRET = "jwt-secret-that-nobody-may-see-0123456789"
ALICE = {
    "Authorization": "Bearer " + jwt.encode({"sub": "alice", "exp": time.time() + 600}, JWT_SECRET)
}
FORGED = jwt.encode(
    {"sub": "alice", "exp": time.time() + 600}, "another secret of some length 0123"
)
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    yield
    structlog.reset_defaults()


def signature(url):
    (found,) = parse_qs(urlsplit(url).query)["X-Amz-Signature"]
    return found


async def logged(capsys, seen, *actions):
    """Returns the log once these are in it."""
    async with asyncio.timeout(20):
        while not all(f"action={action}" in seen for action in actions):
            await asyncio.sleep(0.1)
            seen += capsys.readouterr().err
    return seen


async def secrets_of_a_life(client, provider, bucket):
    """Does all that a user and an operator may do around a job; returns each secret that came
    up.
    """
    secrets = [FORGED, ALICE["Authorization"].split()[1]]
    for wrong in (FORGED, "rb_" + "w" * 40):
        reply = await client.get("/api/me", headers={"Authorization": f"Bearer {wrong}"})
        assert reply.status_code == 401
    made = (await client.post("/api/keys", json={"user_id": "bob"}, headers=ADMIN)).json()
    hook = await client.post(
        "/api/webhooks", json={"url": "http://127.0.0.1:9/hook"}, headers=ALICE
    )
    secrets += [made["key"], hook.json()["secret"]]
    secrets.append((await client.post("/api/tickets", headers=ALICE)).json()["ticket"])
    upload = await client.post("/api/videos/upload-url", json={"filename": "a.mp4"}, headers=ALICE)
    secrets.append(signature(upload.json()["upload_url"]))
    url = (await client.post("/api/jobs", json=JOB, headers=ALICE)).headers["location"]
    client.headers["Authorization"] = ALICE["Authorization"]
    await until(client, url, lambda job: job["phase"] == "queued")
    sent = provider.only()["sent"]
    secrets += [sent["input"]["attempt_token"]]
    Worker(bucket, sent).finish()
    await until(client, url, lambda job: job["status"] == "complete")
    secrets.append(signature((await client.get(f"{url}/output")).headers["location"]))
    return secrets


@on_one_database
async def test_no_secret_is_ever_logged(settings, running, object_store, capsys, caplog):
    """Of a job that goes well, one whose bucket is away, one whose provider refuses, and one on
    which we stumble.
    """
    provider = Provider()
    made = {
        "REELBROKER_API_KEY": ADMIN_KEY,
        "REELBROKER_METRICS_KEY": SCRAPER_KEY,
        "REELBROKER_JWT_SECRET": JWT_SECRET,
        "REELBROKER_WEBHOOKS_TO_PRIVATE_ADDRESSES": "true",
    }
    bucket = open_bucket(settings(**made))
    bucket.write(object_key("alice", JOB["input_key"]), b"a video")
    log_to_stderr()
    async with running(settings(**made), provider) as client:
        secrets = await secrets_of_a_life(client, provider, bucket)
        assert (
            await client.get("/metrics", headers={"Authorization": f"Bearer {SCRAPER_KEY}"})
        ).is_success
        for fault in (lambda _: httpx.Response(500, text="down"), lambda _: 1 / 0):
            provider.fault = fault
            reply = await client.post("/api/jobs", json=JOB)
            await until(client, reply.headers["location"], lambda job: job["attempt"] == 1)
        seen = await logged(capsys, "", "look_crashed", "webhook_called")
    async with running(settings(**made, R2_ENDPOINT="http://127.0.0.1:9"), provider) as client:
        client.headers["Authorization"] = ALICE["Authorization"]
        asked = {"filename": "big.mp4", "bytes": 200_000_000}
        assert (await client.post("/api/videos/upload-url", json=asked)).status_code == 503
        assert (await client.get("/readyz")).status_code == 503
        seen = await logged(capsys, seen, "look_failed", "storage_failed")
    seen += capsys.readouterr().err + "\n".join(record.getMessage() for record in caplog.records)
    for action in (
        "accepted",
        "submitted",
        "ended",
        "webhook_called",
        "storage_failed",
        "look_crashed",
        "look_failed",
    ):
        assert re.search(rf"action={action}\b", seen), action
    secrets += [
        ADMIN_KEY,
        SCRAPER_KEY,
        JWT_SECRET,
        object_store.secret_key,
        "runpod-key",
        "X-Amz-Signature",
    ]
    assert len(secrets) == 14
    assert min(map(len, secrets)) >= 10
    assert [secret for secret in secrets if secret in seen] == []
