"""A job as it happens: polling, server-sent events and WebSockets tell the same story, whatever
breaks in between.
"""

import asyncio
import json
import random
import time
import uuid

import httpx
import jwt
import pytest
import websockets

from broker.api import live
from broker.jobs.model import Event, EventKind, JobChange
from broker.services import tokens
from broker.store.jobs import JobStore
from tests.broker.api.calls import JOB, on_one_database, until
from tests.broker.api.served import API_KEY, serve
from tests.broker.provider import Worker


async def frames(client, url, headers=None, **query):
    """Yields the frames of an event stream as (event, id, data) until it ends."""
    async with client.stream("GET", f"{url}/events", params=query, headers=headers) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        frame = {}
        async for line in reply.aiter_lines():
            if line == "" and "data" in frame:
                yield frame["event"], int(frame["id"]), json.loads(frame["data"])
                frame = {}
            elif line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                frame[name] = value


def progress(provider, percent, phase="processing"):
    """The worker tells how far it is."""
    job = provider.only()
    job |= {
        "status": "IN_PROGRESS",
        "output": {"phase": phase, "progress": percent, "message": f"at {percent}"},
    }


async def log_of(client, url):
    """The job's whole log, as a watcher from the start sees it."""
    return [data async for _, _, data in frames(client, url, after=0)]


async def test_a_watcher_sees_the_job_and_each_change_until_its_end(served, provider, bucket):
    """Laying the changes over the snapshot gives the job as a GET shows it."""
    async with served.async_client(timeout=20) as client:
        url = (await client.post("/api/jobs", json=JOB)).headers["location"]
        seen = []
        async for event, number, data in frames(client, url):
            seen.append((event, number))
            if event == "snapshot":
                job = data["job"]
                continue
            job |= data["changes"]
            if job["status"] == "processing" and job["progress"] < 40:
                progress(provider, 40)
            elif job["progress"] == 40:
                Worker(bucket, provider.only()["sent"]).finish()
        assert seen[0][0] == "snapshot"
        numbers = [number for _, number in seen]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        now = (await client.get(url)).json()
        # Follow from the rest, or are no events.
        derived = {"urls", "last_evidence"}
        assert {k: v for k, v in job.items() if k not in derived} == {
            k: v for k, v in now.items() if k not in derived
        }
        assert (now["status"], job["result"]["bytes"]) == ("complete", 6)
        again = await client.get(f"{url}/events", headers={"Last-Event-ID": str(numbers[-1])})
        assert (again.status_code, again.content) == (204, b"")
        (only,) = [frame async for frame in frames(client, url)]
        assert (only[0], only[2]["job"]["status"]) == ("snapshot", "complete")


async def test_a_number_that_cannot_be_gets_a_snapshot(client):
    """After a restore of an older copy, say."""
    url = (await client.post("/api/jobs", json=JOB)).headers["location"]
    await client.post(f"{url}/cancel")
    await until(client, url, lambda job: job["status"] == "cancelled")
    (only,) = [frame async for frame in frames(client, url, headers={"Last-Event-ID": "4000"})]
    assert only[0] == "snapshot"
    numbers = [data["seq"] for data in await log_of(client, url)]
    assert numbers == list(range(1, only[1] + 1))


class Dropped(Exception):
    """The line is cut."""


async def over_sse(served, url, cut, seen):
    """Reads an event stream until it ends or is cut, as a browser would resume it."""
    async with served.async_client(timeout=20) as client:
        async for _, number, data in frames(
            client, url, headers={"Last-Event-ID": str(seen[-1]["seq"] if seen else 0)}
        ):
            assert number == data["seq"]
            seen.append(data)
            if cut():
                raise Dropped


async def over_websocket(served, url, cut, seen):
    """The same over a WebSocket; half of the times the place is named in a first message."""
    after = seen[-1]["seq"] if seen else 0
    query, first = (
        (f"?after={after}", None)
        if random.random() < 0.5
        else ("?after=99999", {"resume_after": after})
    )
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with websockets.connect(
        f"{served.ws}{url}/ws{query}", additional_headers=headers
    ) as socket:
        if first:
            assert json.loads(await socket.recv())["event"] == "snapshot"
            await socket.send(json.dumps(first))
            while json.loads(await socket.recv()) != {"event": "resumed", "seq": after}:
                continue
        await socket.send("ping")
        async for text in socket:
            if text == "pong":
                continue
            frame = json.loads(text)
            assert frame.pop("event") == "update"
            seen.append(frame)
            if cut():
                socket.transport.abort()
                raise Dropped
        assert socket.close_code == 1000


@on_one_database
@pytest.mark.parametrize("watch", [over_sse, over_websocket])
async def test_a_watcher_dropped_two_hundred_times_hears_everything_once(
    served, provider, watch, measured
):
    """In order, without a gap: the exact sequence of the log, on jobs that move all the time."""
    dropped, heard = 0, 0
    random.seed(7)
    async with served.async_client(timeout=20) as client:
        while dropped < 200:
            url = (await client.post("/api/jobs", json=JOB)).headers["location"]
            stop = asyncio.create_task(stir(client, url))
            seen = []
            while True:
                try:
                    await watch(served, url, lambda: random.random() < 0.9, seen)
                    break
                except Dropped:
                    dropped += 1
                    if seen[-1]["changes"].get("status") == "cancelled":
                        break
            await stop
            assert seen == await log_of(client, url)
            heard += len(seen)
    measured(
        f"{watch.__name__}: dropped {dropped} times, {heard} events heard, each once and in order"
    )


async def stir(client, url):
    """Has a job move a dozen times through the broker's own store, and be cancelled."""
    store, job_id = JobStore.opened, url.rpartition("/")[2]
    for number in range(12):
        job, _ = await asyncio.to_thread(store.load, job_id)
        change = JobChange(message=f"move {number}")
        await asyncio.to_thread(store.transition, job, EventKind.PROGRESS, change)
        await asyncio.sleep(random.random() * 0.01)
    await client.post(f"{url}/cancel")


@pytest.fixture(autouse=True)
def opened_store(monkeypatch):
    """The store of the broker under test, for a hand that moves jobs from within."""
    make = JobStore.__init__

    def remember(self, engine, *observers):
        make(self, engine, *observers)
        JobStore.opened = self

    monkeypatch.setattr(JobStore, "__init__", remember)
    monkeypatch.setattr(JobStore, "opened", None, raising=False)


@on_one_database
async def test_a_slow_watcher_and_one_told_in_the_wrong_order_miss_nothing(client):
    """More events than are kept for one who does not read; two swapped on their way; one told
    twice.
    """
    url = (await client.post("/api/jobs", json=JOB)).headers["location"]
    job_id, store = url.rpartition("/")[2], JobStore.opened
    announce = store._on_event
    held = []
    store._on_event = lambda *news: held.append(news)
    hearing = asyncio.create_task(log_of(client, url))
    await asyncio.sleep(0.2)
    for number in range(100):
        job, _ = await asyncio.to_thread(store.load, job_id)
        change = JobChange(message=f"move {number}")
        await asyncio.to_thread(store.transition, job, EventKind.PROGRESS, change)
    for event in [*held[1::2], *held[::2], held[5]]:
        announce(*event)
    store._on_event = announce
    await client.post(f"{url}/cancel")
    numbers = [data["seq"] for data in await asyncio.wait_for(hearing, 10)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 100


async def test_a_poll_that_knows_the_job_gets_304(client):
    """Weakly: `last_evidence` may be newer in the same version."""
    url = (await client.post("/api/jobs", json=JOB)).headers["location"]
    await until(client, url, lambda job: job["status"] == "processing")
    reply = await client.get(url)
    etag = reply.headers["etag"]
    for known in (etag, etag.removeprefix("W/"), f'"x", {etag}'):
        same = await client.get(url, headers={"If-None-Match": known})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    assert (await client.get(url, headers={"If-None-Match": 'W/"1"'})).status_code == 200
    await client.post(f"{url}/cancel")
    assert (await client.get(url, headers={"If-None-Match": etag})).status_code == 200
    missing = await client.get("/api/jobs/none", headers={"If-None-Match": etag})
    assert missing.status_code == 404


async def test_a_poll_may_wait_for_a_change(client):
    """It returns with the change, or after as long as it said; no longer than 25 s, whatever it
    said.
    """
    url = (await client.post("/api/jobs", json=JOB)).headers["location"]
    await until(client, url, lambda job: job["status"] == "processing")
    etag = (await client.get(url)).headers["etag"]
    nothing = await client.get(url, headers={"Prefer": "wait=1", "If-None-Match": etag})
    assert (nothing.status_code, nothing.headers["preference-applied"]) == (304, "wait=1")
    waiting = asyncio.create_task(
        client.get(url, headers={"Prefer": "respond-async, wait=900", "If-None-Match": etag})
    )
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await client.post(f"{url}/cancel")
    reply = await asyncio.wait_for(waiting, 3)
    assert reply.headers["preference-applied"] == "wait=25"
    assert reply.json()["cancel_requested_at"] is not None


async def test_a_submit_may_wait_for_the_end(client, provider):
    """What is ready within the time needs no poll."""
    provider.fault = lambda request: httpx.Response(400, json={})
    reply = await client.post("/api/jobs", json=JOB, headers={"Prefer": "wait=20"})
    assert (reply.status_code, reply.json()["error_code"]) == (202, "provider_refused")


@on_one_database
async def test_a_websocket_answers_pings_and_says_why_it_closes(served):
    """Both spellings of a ping; nonsense is ignored; a job of nobody is 4404, no key is no
    connection.
    """
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with served.async_client() as client:
        url = (await client.post("/api/jobs", json=JOB)).headers["location"]
    async with websockets.connect(f"{served.ws}{url}/ws", additional_headers=headers) as socket:
        assert json.loads(await socket.recv())["event"] == "snapshot"
        for said, answer in (("ping", "pong"), ('{"type": "ping"}', '{"type":"pong"}')):
            for nonsense in ("", "{", "[1]", '{"resume_after": -1}', "7"):
                await socket.send(nonsense)
            await socket.send(said)
            while (text := await socket.recv()) != answer:
                assert json.loads(text)["event"] == "update"
        await socket.send(b"\x00")
        await asyncio.wait_for(socket.wait_closed(), 5)
    async with websockets.connect(
        f"{served.ws}/api/jobs/none/ws", additional_headers=headers
    ) as socket:
        await asyncio.wait_for(socket.wait_closed(), 5)
        assert socket.close_code == 4404
    with pytest.raises(websockets.InvalidStatus, match="403"):
        await websockets.connect(f"{served.ws}{url}/ws")


def test_an_event_knows_whether_it_is_the_last():
    """By the status that it changed to."""
    from broker.jobs.views import ends

    told = {"job_id": "j", "seq": 1, "at": 1, "kind": "progress"}
    assert not ends(Event(**told, data='{"progress": 100}'))
    assert not ends(Event(**told, data='{"status": "processing"}'))
    assert ends(Event(**told, data='{"status": "cancelled"}'))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_watchers_hear_what_another_broker_moves(settings, running, provider):
    """Two brokers on one database: the one that is asked is not the one that moves."""
    made = settings()
    async with running(made, provider) as mover, running(made, provider) as told:
        url = (await mover.post("/api/jobs", json=JOB)).headers["location"]
        hearing = asyncio.create_task(log_of(told, url))
        await asyncio.sleep(0.3)
        await mover.post(f"{url}/cancel")
        kinds = [data["kind"] for data in await asyncio.wait_for(hearing, 15)]
        assert kinds[0] == "accepted"
        assert kinds[-1] in ("cancelled", "error")


@on_one_database
async def test_an_end_that_comes_while_one_asks_is_told(served, monkeypatch):
    """Between the look at how far the job is and the look at the job itself, it ends: that is no
    reason to say that all is told.
    """
    store = JobStore.opened
    async with served.async_client(timeout=20) as client:
        url = (await client.post("/api/jobs", json=JOB)).headers["location"]
        await until(client, url, lambda job: job["status"] == "processing")
        version = JobStore.version

        def ends_behind_our_back(self, job_id, user_id):
            seen = version(self, job_id, user_id)
            monkeypatch.undo()
            job, _ = store.load(job_id)
            store.transition(job, EventKind.CANCELLED, JobChange(status="cancelled"))
            return seen

        after = version(
            store, url.rpartition("/")[2], store.load(url.rpartition("/")[2])[0].user_id
        )
        monkeypatch.setattr(JobStore, "version", ends_behind_our_back)
        told = [
            data async for _, _, data in frames(client, url, headers={"Last-Event-ID": str(after)})
        ]
    assert told[-1]["changes"]["status"] == "cancelled"


@pytest.fixture
def often_checked(monkeypatch):
    """Streams are asked for their key ten times a second."""
    monkeypatch.setattr(live, "RECHECK_SECONDS", 0.1)


async def key_of(client, user):
    """Makes a key of a user, and returns its id with the header that shows it."""
    made = (await client.post("/api/keys", json={"user_id": user})).json()
    return made["id"], {"Authorization": f"Bearer {made['key']}"}


@pytest.mark.abuse
@on_one_database
@pytest.mark.parametrize("by_ticket", [False, True])
async def test_a_stream_ends_when_its_key_is_revoked(served, often_checked, bucket, by_ticket):
    """Of either kind, also where a ticket opened it that was made with the key; streams of other
    keys go on.
    """
    bucket.write("bob/a.mp4", b"a video")
    async with served.async_client(timeout=20) as client:
        key_id, headers = await key_of(client, "bob")
        url = (await client.post("/api/jobs", json=JOB)).headers["location"]
        bobs = (await client.put(f"/api/jobs/{uuid.uuid4()}", json=JOB, headers=headers)).headers[
            "location"
        ]

        async def ticket():
            if not by_ticket:
                return ""
            return (
                "?ticket=" + (await client.post("/api/tickets", headers=headers)).json()["ticket"]
            )

        shown = None if by_ticket else headers
        at = f"{served.ws}{bobs}/ws{await ticket()}"
        mine = f"{served.ws}{url}/ws"
        none = httpx.AsyncClient(base_url=served.url, headers=shown, timeout=20)
        async with (
            none,
            websockets.connect(at, additional_headers=shown) as socket,
            websockets.connect(mine, additional_headers=served.headers) as other,
            none.stream("GET", f"{bobs}/events{await ticket()}") as reply,
        ):
            assert reply.status_code == 200
            await asyncio.sleep(0.5)
            await other.send("ping")
            await socket.send("ping")
            left_over = await ticket()
            await client.delete(f"/api/keys/{key_id}")
            await asyncio.wait_for(socket.wait_closed(), 5)
            assert socket.close_code == 1008
            async with asyncio.timeout(5):
                assert "event: snapshot" in (await reply.aread()).decode()
            await other.send("ping")
            while await other.recv() != "pong":
                continue
            if by_ticket:
                assert (await none.get(f"{bobs}/events{left_over}")).status_code == 401


@pytest.mark.abuse
@on_one_database
async def test_a_stream_ends_when_its_token_expires(
    settings, running, provider, often_checked, bucket, monkeypatch
):
    """As soon as nobody would be let in with it."""
    bucket.write("alice/a.mp4", b"a video")
    monkeypatch.setattr(tokens, "LEEWAY_SECONDS", 0)
    secret = "s" * 32
    async with running(settings(REELBROKER_JWT_SECRET=secret), provider) as client:
        token = jwt.encode({"sub": "alice", "exp": int(time.time()) + 4}, secret)
        headers = {"Authorization": f"Bearer {token}"}
        url = (await client.post("/api/jobs", json=JOB, headers=headers)).headers["location"]
        async with asyncio.timeout(20):
            reply = await client.get(f"{url}/events", headers=headers)
        assert reply.text.count("event: ") >= 1
        assert (await client.get(url, headers=headers)).status_code == 401


@pytest.mark.abuse
@on_one_database
async def test_brackets_without_end_are_only_nonsense(served):
    """As deep as a message can be; the WebSocket goes on."""
    async with served.async_client() as client:
        url = (await client.post("/api/jobs", json=JOB)).headers["location"]
    for path in (f"{url}/ws", "/ws/export/none"):
        async with websockets.connect(
            f"{served.ws}{path}", additional_headers=served.headers
        ) as socket:
            for nonsense in (
                "[" * 60_000,
                '{"a":' * 10_000,
                "9" * 60_000,
                '{"resume_after": "' + "9" * 60_000,
            ):
                await socket.send(nonsense)
            await socket.send("ping")
            while await socket.recv() != "pong":
                continue


@pytest.mark.abuse
@on_one_database
async def test_messages_of_a_websocket_count_as_requests(settings, provider):
    """More of them than a user may make are answered with 1013; other users are not held up."""
    with serve(settings(REELBROKER_REQUESTS_PER_MINUTE="50"), provider) as served:
        async with served.async_client() as client:
            _, headers = await key_of(client, "bob")
            async with websockets.connect(
                f"{served.ws}/ws/export/none", additional_headers=served.headers
            ) as socket:
                with pytest.raises(websockets.ConnectionClosed):
                    for _ in range(60):
                        await socket.send("ping")
                        assert await socket.recv() == "pong"
                assert socket.close_code == 1013
            assert (await client.get("/api/jobs")).status_code == 429
            assert (await client.get("/api/jobs", headers=headers)).status_code == 200
