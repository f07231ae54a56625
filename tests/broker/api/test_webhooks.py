"""Calls when a job ends: signed, tried for a day, logged, sent again; never to where they must not
go.
"""

import asyncio
import json
from datetime import UTC, datetime

import httpx
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from broker.clock import now_ms
from broker.errors import InvalidRequest
from broker.jobs.model import EventKind, JobChange
from broker.services.webhooks import AGAIN_SECONDS, WebhookService, open_caller
from broker.store.engine import open_engine
from broker.store.jobs import JobStore
from broker.store.tables import WebhookRow
from broker.store.webhooks import Outbox
from schemas.jobs import JobStatus
from schemas.webhooks import WebhookRequest
from tests.broker.api.calls import JOB, on_one_database, until


class Receiver:
    """The client's server; answers what `answers` says next, then 204."""

    def __init__(self):
        self.calls, self.answers = [], []

    async def __call__(self, request):
        self.calls.append(request)
        answer = self.answers.pop(0) if self.answers else httpx.Response(204)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Office:
    """The service on a real database, with a clock, a network and a DNS of the test's own."""

    def __init__(self, settings, make_job):
        self.settings, self.make_job = settings, make_job
        self.engine = open_engine(settings.database_url)
        self.store, self.outbox, self.receiver = (
            JobStore(self.engine),
            Outbox(self.engine),
            Receiver(),
        )
        self.now, self.names = now_ms(), {"app.example": ["93.184.215.14"]}
        self.http = httpx.AsyncClient(transport=httpx.MockTransport(self.receiver))
        self.service = WebhookService(
            settings, self.outbox, self.http, self.resolve, lambda: self.now
        )

    async def resolve(self, host, port):
        found = self.names.get(host)
        if found is None:
            raise OSError(f"{host} is not known")
        return found.pop(0) if found and isinstance(found[0], list) else found

    async def add(self, url="https://app.example/hook", **fields):
        return await self.service.add("u1", WebhookRequest(url=url, **fields))

    def finish(self, status=JobStatus.CANCELLED):
        """A job ends; returns it."""
        job = self.store.add(self.make_job())
        job = self.store.transition(
            job, EventKind.ERROR, JobChange.model_validate({"status": status})
        )
        self.now = max(self.now, now_ms())
        return job

    async def send(self, after=0.0):
        """Sends what is due after a while, and waits for the calls."""
        self.now += int(after * 1000)
        while self.service._calling or self.outbox.due(self.now, 1):
            await self.service._send_due()
            await asyncio.gather(*self.service._calling)
            await asyncio.sleep(0)

    async def only(self, webhook):
        (delivery,) = (await self.service.deliveries("u1", webhook.id)).deliveries
        return delivery


@pytest.fixture
async def office(settings, make_job):
    office = Office(settings(), make_job)
    yield office
    await office.http.aclose()
    office.store.close()


async def test_a_call_is_signed_and_thin(office):
    """The receiver's library accepts it, and no change to it; the body says which job, and what to
    ask for.
    """
    webhook = await office.add()
    job = office.finish()
    await office.send()
    (call,) = office.receiver.calls
    told = Webhook(webhook.secret).verify(call.content, dict(call.headers))
    assert (told["type"], told["data"]["job_id"], told["data"]["seq"]) == (
        "job.cancelled",
        job.id,
        job.version,
    )
    with pytest.raises(WebhookVerificationError):
        Webhook(webhook.secret).verify(
            call.content.replace(b"job.cancelled", b"job.completed"), dict(call.headers)
        )
    assert (call.url.host, call.headers["host"]) == ("93.184.215.14", "app.example")
    assert call.extensions["sni_hostname"] == "app.example"
    delivery = await office.only(webhook)
    assert (delivery.id, delivery.tries[0].status, delivery.next_try_at) == (
        call.headers["webhook-id"],
        204,
        None,
    )
    await office.send(after=100_000)
    assert len(office.receiver.calls) == 1


async def test_only_the_users_own_and_wanted_ends_are_told(office):
    """Not another user's, not other ends, and nothing while a job goes on."""
    await office.add(kinds={"job.error"})
    job = office.store.add(office.make_job())
    office.store.transition(job, EventKind.PROGRESS, JobChange.model_validate({"progress": 5}))
    office.finish()
    office.make_job.count += 100
    other = office.store.add(office.make_job(user_id="u2"))
    office.store.transition(
        other,
        EventKind.ERROR,
        JobChange.model_validate(
            {"status": JobStatus.ERROR, "error_code": "internal", "error": "x"}
        ),
    )
    await office.send()
    assert office.receiver.calls == []


async def test_a_receiver_that_is_down_is_called_for_a_day(office):
    """At the times of Standard Webhooks, each under the same id with a fresh time; then never
    again, but for redelivery.
    """
    webhook = await office.add()
    office.finish()
    office.receiver.answers = [
        httpx.Response(500),
        httpx.ConnectError("down"),
        httpx.Response(301),
    ] + [httpx.Response(503)] * 20
    await office.send()
    for number, seconds in enumerate(AGAIN_SECONDS, start=1):
        await office.send(after=0.85 * seconds)
        assert len(office.receiver.calls) == number
        await office.send(after=0.3 * seconds)
        assert len(office.receiver.calls) == number + 1
    await office.send(after=1_000_000)
    assert len(office.receiver.calls) == 10
    assert len({call.headers["webhook-id"] for call in office.receiver.calls}) == 1
    assert len({call.headers["webhook-timestamp"] for call in office.receiver.calls}) == 10
    delivery = await office.only(webhook)
    assert [made.status for made in delivery.tries] == [500, None, 301] + [503] * 7
    assert "redirects are not followed" in delivery.tries[2].detail
    assert (delivery.next_try_at, delivery.delivered_at) == (None, None)
    assert sum(AGAIN_SECONDS) > 86_400
    office.receiver.answers = []
    await office.service.send_again("u1", webhook.id, delivery.id)
    await office.send()
    again = await office.only(webhook)
    assert (again.id, again.tries[-1].status, again.delivered_at is not None) == (
        delivery.id,
        204,
        True,
    )


async def test_a_message_that_is_sent_again_meanwhile_is_not_undone(office):
    """A call that ends late adds to the log, and nothing else."""
    webhook = await office.add()
    office.finish()
    (row,) = office.outbox.due(office.now, 9)
    assert office.outbox.claim(row, office.now + 30_000)
    late = office.service._deliver(row, row.due_at + 30_000)
    await office.service.send_again("u1", webhook.id, row.id)
    await office.send()
    office.receiver.answers = [httpx.Response(500)]
    await late
    told = await office.only(webhook)
    assert ([made.status for made in told.tries], told.next_try_at) == ([204, 500], None)
    assert told.delivered_at is not None


async def test_one_receiver_that_hangs_holds_up_no_other(office):
    """No more than two calls to it are under way at once."""
    office.names["slow.example"] = ["93.184.215.15"]
    hangs, works = await office.add("https://slow.example/"), await office.add()
    over = asyncio.Event()

    async def answer(request):
        office.receiver.calls.append(request)
        if request.url.host == "93.184.215.15":
            await over.wait()
        return httpx.Response(204)

    office.service._http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    for _ in range(12):
        office.finish()

    def calls(address):
        return sum(call.url.host == address for call in office.receiver.calls)

    async with asyncio.timeout(30):
        while calls("93.184.215.14") < 12 or len(office.service._calling) > 2:
            await office.service._send_due()
            await asyncio.sleep(0.01)
    assert (calls("93.184.215.15"), calls("93.184.215.14")) == (2, 12)
    over.set()
    await office.send()
    for webhook in (hangs, works):
        assert all(
            one.delivered_at
            for one in (await office.service.deliveries("u1", webhook.id)).deliveries
        )
    await office.service._http.aclose()


async def test_what_one_receiver_sets_no_other_gets(office):
    """Two names at one address, as behind a CDN: no cookie goes from one to the other, or back."""
    office.names["other.example"] = office.names["app.example"]
    await office.add()
    await office.add("https://other.example/")
    office.service._http = open_caller()
    office.service._http._transport = httpx.MockTransport(office.receiver)
    office.receiver.answers = [
        httpx.Response(204, headers={"Set-Cookie": f"sid={n}"}) for n in range(9)
    ]
    for _ in range(3):
        office.finish()
        await office.send()
    assert len(office.receiver.calls) == 6
    assert not any("cookie" in call.headers for call in office.receiver.calls)
    await office.service._http.aclose()


async def test_switched_off_ones_make_room(office):
    """Ten may be on at once; one that is off is not sent to again."""
    made = [await office.add() for _ in range(10)]
    with pytest.raises(InvalidRequest, match="10 webhooks"):
        await office.add()
    office.finish()
    await office.service.switch_off("u1", made[0].id)
    await office.add()
    (one,) = (await office.service.deliveries("u1", made[0].id)).deliveries
    with pytest.raises(InvalidRequest, match="switched off"):
        await office.service.send_again("u1", made[0].id, one.id)


async def test_gone_means_never_again(office):
    """410 switches the webhook off, and what is still to be sent to it is not."""
    webhook = await office.add()
    office.finish()
    office.receiver.answers = [httpx.Response(500), httpx.Response(410)]
    await office.send()
    office.finish()
    await office.send()
    (shown,) = (await office.service.list("u1")).webhooks
    assert shown.disabled_at is not None
    office.finish()
    await office.send(after=1_000_000)
    assert len(office.receiver.calls) == 2
    assert len((await office.service.deliveries("u1", webhook.id)).deliveries) == 2


async def test_a_new_secret_and_the_former_one_sign_together_for_a_day(office):
    """So the receiver may change over whenever it likes."""
    former = await office.add()
    new = await office.service.rotate("u1", former.id)
    office.finish()
    await office.send()
    office.finish()
    await office.send(after=90_000)
    both, later = office.receiver.calls
    for secret in (former.secret, new.secret):
        Webhook(secret).verify(both.content, dict(both.headers))
    assert len(later.headers["webhook-signature"].split()) == 1
    sent = datetime.fromtimestamp(int(later.headers["webhook-timestamp"]), UTC)
    assert (
        Webhook(new.secret).sign(later.headers["webhook-id"], sent, later.content.decode())
        == later.headers["webhook-signature"]
    )


@pytest.mark.abuse
@on_one_database
@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.1.2.3"],
        ["192.168.0.1"],
        ["169.254.169.254"],
        ["100.64.0.1"],
        ["0.0.0.0"],
        ["224.0.0.1"],
        ["::ffff:0:127.0.0.1"],
        ["::ffff:0:a01:203"],
        ["64:ff9b::127.0.0.1"],
        ["64:ff9b:1::7f00:1"],
        ["100::1"],
        ["5f00::1"],
        ["4000::1"],
        ["2001:0:4136:e378:8000:63bf:80ff:fffe"],
        ["::ffff:192.168.0.1"],
        ["2002:c0a8:1::1"],
        ["ff0e::1"],
        ["64:ff9b::a00:1"],
        ["::7f00:1"],
        ["fec0::1"],
        ["::1"],
        ["fd00::1"],
        ["fe80::1%eth0"],
        ["::ffff:127.0.0.1"],
        ["2002:7f00:1::"],
        ["93.184.215.14", "127.0.0.1"],
        [],
    ],
    ids=lambda addresses: ",".join(addresses) or "none",
)
async def test_a_target_within_is_neither_taken_nor_called(office, addresses):
    """All of a name's addresses count, and again at each call: the DNS may have changed its
    mind.
    """
    office.names["app.example"] = addresses
    with pytest.raises(Exception, match="not a public address"):
        await office.add()
    office.names["app.example"] = ["93.184.215.14"]
    webhook = await office.add()
    office.finish()
    office.names["app.example"] = addresses
    await office.send()
    assert office.receiver.calls == []
    assert "not a public address" in (await office.only(webhook)).tries[0].detail


async def test_the_address_that_was_checked_is_the_one_that_is_called(office):
    """A DNS that answers otherwise the second time is not asked a second time."""
    office.names["app.example"] = [["93.184.215.14"], ["93.184.215.14"], ["127.0.0.1"]]
    await office.add()
    office.finish()
    await office.send()
    assert [call.url.host for call in office.receiver.calls] == ["93.184.215.14"]
    assert office.names["app.example"] == [["127.0.0.1"]]


@on_one_database
@pytest.mark.parametrize(
    "url",
    [
        "http://app.example/",
        "https://app.example:8443/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://nowhere.example/",
        "https://xn--a.example/",
        "https://2130706433/",
    ],
)
async def test_other_targets_are_refused(office, url):
    """Another scheme, another port, an address within, a name that is not known."""
    office.names |= {"127.0.0.1": ["127.0.0.1"], "::1": ["::1"], "2130706433": ["127.0.0.1"]}
    with pytest.raises(
        Exception, match=r"no URL of a host|https, on port 443|public address|cannot be resolved"
    ):
        await office.add(url)


@on_one_database
async def test_a_receiver_that_says_too_much_or_nothing_holds_nobody_up(office, monkeypatch):
    """An endless answer is not read; one that never comes is given up."""
    monkeypatch.setattr("broker.services.webhooks.CALL_SECONDS", 0.2)

    async def endless():
        while True:
            yield b"x" * 65_536

    webhook = await office.add()
    office.finish()
    office.receiver.answers = [httpx.Response(200, content=endless())]
    await asyncio.wait_for(office.send(), 5)
    assert (await office.only(webhook)).tries[0].status == 200

    async def hang(request):
        await asyncio.sleep(60)

    office.service._http = httpx.AsyncClient(transport=httpx.MockTransport(hang))
    office.finish()
    await asyncio.wait_for(office.send(), 5)
    newest = (await office.service.deliveries("u1", webhook.id)).deliveries
    assert {made.detail for delivery in newest for made in delivery.tries} == {
        "delivered",
        "no answer: TimeoutError",
    }
    await office.service._http.aclose()


async def test_two_brokers_send_a_message_once(office):
    """Both see that it is due; one takes it in hand."""
    await office.add()
    office.finish()
    (row,) = office.outbox.due(office.now, 9)
    assert [office.outbox.claim(row, office.now + 30_000) for _ in range(2)] == [True, False]
    await office.send()
    assert office.receiver.calls == []
    # The one that had it has died.
    await office.send(after=31)
    assert len(office.receiver.calls) == 1


async def test_the_whole_way_over_http(settings, running, provider):
    """Registered, called by a running broker on a real port, seen in the log, sent again, switched
    off.
    """
    heard = asyncio.Queue()

    async def take(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(
            next(
                line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
            ).split()[1]
        )
        heard.put_nowait(json.loads(await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        running(settings(REELBROKER_WEBHOOKS_TO_PRIVATE_ADDRESSES="true"), provider) as client,
    ):
        made = (
            await client.post("/api/webhooks", json={"url": f"http://127.0.0.1:{port}/h"})
        ).json()
        assert "secret" not in (await client.get("/api/webhooks")).text
        url = (await client.post("/api/jobs", json=JOB)).headers["location"]
        told = await asyncio.wait_for(heard.get(), 10)
        assert (told["type"], told["data"]["error_code"]) == ("job.error", "source_not_found")
        hook = f"/api/webhooks/{made['id']}"
        log = await until(
            client, f"{hook}/deliveries", lambda log: log["deliveries"][0]["delivered_at"]
        )
        again = await client.post(f"{hook}/deliveries/{log['deliveries'][0]['id']}/redeliver")
        assert again.status_code == 202
        assert await asyncio.wait_for(heard.get(), 10) == told
        assert (await client.delete(hook)).status_code == 204
        assert url.endswith(told["data"]["job_id"])


def test_what_is_told_is_committed_with_the_move(database_url, make_job):
    """The message is there with the job's end, or neither is."""
    engine = open_engine(database_url)
    store, outbox = JobStore(engine), Outbox(engine)
    outbox.add(
        WebhookRow(
            id="w",
            user_id="u1",
            url="https://a",
            kinds="job.cancelled",
            secret="whsec_x",
            created_at=1,
        )
    )
    job = store.add(make_job())
    stale = job.model_copy(update={"version": 7})
    assert (
        store.transition(
            stale, EventKind.ERROR, JobChange.model_validate({"status": JobStatus.CANCELLED})
        )
        is None
    )
    assert outbox.due(now_ms(), 9) == []
    store.transition(
        job, EventKind.ERROR, JobChange.model_validate({"status": JobStatus.CANCELLED})
    )
    assert [row.job_id for row in outbox.due(now_ms(), 9)] == [job.id]
    engine.dispose()


async def test_what_came_of_each_call_is_told(office):
    """Delivered, failed and to be made again, or given up: by us, or because the receiver never
    wants another.
    """
    outcomes = []
    office.service._on_call = outcomes.append
    await office.add()
    office.receiver.answers = [httpx.Response(500), httpx.Response(204), httpx.Response(410)]
    office.finish()
    await office.send()
    await office.send(after=AGAIN_SECONDS[0] * 1.2)
    office.finish()
    await office.send()
    assert outcomes == ["failed", "delivered", "given_up"]
