"""Two tenants and every route: nobody sees, changes or even learns of what is another's. Generated
from the table of routes.
"""

import asyncio
import json

import pytest
import websockets

from broker.api.route import Access
from broker.api.routes import ROUTES
from tests.broker.api.calls import JOB, on_one_database
from tests.broker.provider import refuse

pytestmark = on_one_database
UPLOAD = {"filename": "a.mp4", "bytes": 100_000_000}
#: Bodies for operations that want one.
BODIES = {
    "/api/jobs": JOB,
    "/api/jobs/{job_id}": JOB,
    "/api/jobs/quote": JOB,
    "/api/videos/upload-url": UPLOAD,
    "/api/webhooks": {"url": "http://127.0.0.1:9/hook"},
    "/api/export/{type}/start": {"input_key": "a.mp4"},
    "/api/keys": {"user_id": "bob"},
    "/api/operations/drain": {"on": True},
}
NAMED = [
    operation
    for operation in ROUTES
    if "_id}" in operation.path and operation.access is not Access.PUBLIC
]
ASKING = [operation for operation in ROUTES if operation.access is not Access.PUBLIC]


@pytest.fixture
def settings(settings):
    """Webhooks may go to this machine."""
    return lambda **overrides: settings(
        REELBROKER_WEBHOOKS_TO_PRIVATE_ADDRESSES="true", **overrides
    )


async def key_of(client, user):
    key = (await client.post("/api/keys", json={"user_id": user})).json()["key"]
    return {"Authorization": f"Bearer {key}"}


async def belongings(client, headers):
    """Makes one of everything; returns their ids by the names that paths have for them."""
    job = (await client.post("/api/jobs", json=JOB, headers=headers)).json()
    upload = (await client.post("/api/videos/upload-url", json=UPLOAD, headers=headers)).json()
    hook = (
        await client.post("/api/webhooks", json=BODIES["/api/webhooks"], headers=headers)
    ).json()
    return {
        "job_id": job["job_id"],
        "upload_id": upload["upload_id"],
        "webhook_id": hook["id"],
        "delivery_id": "msg_1",
        "key_id": "key_1",
        "type": "framing",
        "video_key": upload["video_key"],
    }


async def everything(client, headers):
    """All that a user can list or read."""
    jobs = (await client.get("/api/jobs", headers=headers)).json()["jobs"]
    watched = [
        {k: v for k, v in job.items() if k in ("job_id", "status", "cancel_requested_at")}
        for job in jobs
    ]
    hooks = (await client.get("/api/webhooks", headers=headers)).json()
    return json.dumps([watched, hooks])


def ids(operation):
    return f"{operation.method} {operation.path}"


@pytest.mark.parametrize("operation", NAMED, ids=ids)
async def test_anothers_is_not_there(client, provider, bucket, operation):
    """404 as for what never was (409 where an id is taken), and nothing of it has changed."""
    # So that jobs stay where they are.
    provider.fault = refuse
    bucket.write("alice/a.mp4", b"a video")
    alice, bob = await key_of(client, "alice"), await key_of(client, "bob")
    hers = await belongings(client, alice)
    before = await everything(client, alice)
    path = operation.path.format(**hers)
    reply = await client.request(
        operation.method, path, json=BODIES.get(operation.path), headers=bob
    )
    assert reply.status_code == {"PUT": 409}.get(
        operation.method, 403 if operation.access is Access.ADMIN else 404
    )
    assert reply.json()["code"] in ("not_found", "id_taken", "forbidden")
    for name, value in hers.items():
        if name.endswith("_id") and value not in path:
            assert value not in reply.text
    assert await everything(client, alice) == before


@pytest.mark.parametrize("operation", ASKING, ids=ids)
async def test_nobody_gets_in_without_a_key(client, operation):
    """401, and it says how to ask."""
    path = operation.path.format(
        job_id="j", upload_id="u", webhook_id="w", delivery_id="d", key_id="k", type="framing"
    )
    reply = await client.request(
        operation.method, path, headers={"Authorization": "Bearer rb_wrong"}
    )
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("operation", [op for op in ASKING if op.access is Access.ADMIN], ids=ids)
async def test_a_users_key_is_no_admins(client, operation):
    """403 on what concerns all users."""
    bob = await key_of(client, "bob")
    reply = await client.request(
        operation.method,
        operation.path.format(key_id="k"),
        json=BODIES.get(operation.path),
        headers=bob,
    )
    assert (reply.status_code, reply.json()["code"]) == (403, "forbidden")


async def test_lists_and_files_are_ones_own(client):
    """Also where one names the other's key: it means a file in one's own folder."""
    alice, bob = await key_of(client, "alice"), await key_of(client, "bob")
    hers = await belongings(client, alice)
    for path in ("/api/jobs", "/api/export/jobs", "/api/exports/active", "/api/webhooks"):
        assert hers["job_id"] not in (await client.get(path, headers=bob)).text
        assert hers["webhook_id"] not in (await client.get(path, headers=bob)).text
    for key in (
        hers["video_key"],
        f"../alice/{hers['video_key']}",
        f"/alice/{hers['video_key']}",
        "a/../../alice/b",
    ):
        got = await client.get("/api/storage/presigned-url", params={"key": key}, headers=bob)
        assert got.status_code in (404, 422)
    same_key = {"Idempotency-Key": "one"}
    made = [
        (await client.post("/api/jobs", json=JOB, headers=who | same_key)).json()
        for who in (alice, bob)
    ]
    assert made[0]["job_id"] != made[1]["job_id"]


async def test_sockets_and_tickets_are_ones_own(served):
    """A ticket lets one user in, once; on live routes only."""
    async with served.async_client() as client:
        alice, bob = await key_of(client, "alice"), await key_of(client, "bob")
        job = (await client.post("/api/jobs", json=JOB, headers=alice)).json()

        async def ticket(who):
            return (await client.post("/api/tickets", headers=who)).json()["ticket"]

        async with websockets.connect(
            f"{served.ws}{job['urls']['ws']}?ticket={await ticket(bob)}"
        ) as socket:
            await asyncio.wait_for(socket.wait_closed(), 5)
            assert socket.close_code == 4404
        hers = await ticket(alice)
        async with websockets.connect(f"{served.ws}{job['urls']['ws']}?ticket={hers}") as socket:
            assert job["job_id"] in await socket.recv()
        for path in (job["urls"]["events"], job["urls"]["self"]):
            again = await client.get(path, params={"ticket": hers}, headers={"Authorization": ""})
            assert again.status_code == 401
        fresh = await ticket(alice)
        assert (
            await client.get(
                job["urls"]["self"], params={"ticket": fresh}, headers={"Authorization": ""}
            )
        ).status_code == 401
        query = {"ticket": fresh}
        async with client.stream(
            "GET", job["urls"]["events"], params=query, headers={"Authorization": ""}
        ) as stream:
            assert stream.status_code == 200
            assert "hello" in await anext(stream.aiter_lines())
