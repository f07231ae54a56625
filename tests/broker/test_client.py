"""Both clients against a broker on a real port, the real bucket, and a failing network."""

import asyncio
import contextlib
import threading
import time

import httpx
import pytest

from broker import client as clients
from broker.bucket import open_bucket
from broker.client import ApiError, AsyncClient, Client, ClientError
from broker.services import uploads
from schemas.jobs import Snapshot
from tests.broker.api.calls import JOB
from tests.broker.api.served import API_KEY, serve
from tests.broker.provider import Provider, Worker


class Synchronous:
    """The async client, called as the sync one is, so that one test serves both."""

    def __init__(self, url, key, transport=None):
        self._runner = asyncio.Runner()
        self._client = AsyncClient(url, key, transport=transport)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._runner.run(self._client.__aexit__(None, None, None))
        self._runner.close()

    def __getattr__(self, name):
        return lambda *args, **kwargs: self._runner.run(
            getattr(self._client, name)(*args, **kwargs)
        )

    def watch(self, job_id):
        watched = self._client.watch(job_id)
        with contextlib.suppress(StopAsyncIteration):
            while True:
                yield self._runner.run(anext(watched))


@pytest.fixture(params=[Client, Synchronous], ids=["sync", "async"])
def make(request):
    """Either client."""
    return request.param


@pytest.fixture
def database_url(tmp_path):
    """SQLite is enough: a client uses HTTP only."""
    return f"sqlite:///{tmp_path}/broker.db"


@pytest.fixture
def provider():
    return Provider()


@pytest.fixture
def served(settings, provider):
    """A broker on a real port, with a video in the bucket."""
    made = settings()
    open_bucket(made).write(f"{made.user_id}/a.mp4", b"a video")
    with serve(made, provider) as served:
        yield served


@pytest.fixture
def bucket(settings):
    return open_bucket(settings())


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Tries come soon after one another."""
    monkeypatch.setattr(clients, "RETRY_SECONDS", (0.05,) * 6)


def finish_soon(provider, bucket):
    """Has a worker finish the newest job, once it is at the provider."""

    def work():
        deadline = time.monotonic() + 10
        while not provider.jobs and time.monotonic() < deadline:
            time.sleep(0.02)
        Worker(bucket, list(provider.jobs.values())[-1]["sent"]).finish(b"a film")

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_the_whole_journey(served, make, provider, bucket, tmp_path, monkeypatch):
    """Upload in parts, submit, watch to the end, download, with progress of each transfer."""
    monkeypatch.setattr(uploads, "PART_BYTES", 5 * 2**20)
    monkeypatch.setattr(uploads, "IN_PARTS_FROM", 12_000_000)
    video, moved = tmp_path / "clip.mp4", []
    video.write_bytes(b"x" * 12_500_000)
    with make(served.url, API_KEY) as client:
        key = client.upload(video, on_progress=moved.append)
        assert (sum(moved), key.endswith("/clip.mp4")) == (12_500_000, True)
        assert client.quote(JOB, source_seconds=2.0).output_seconds == 2.0
        job = client.submit(JOB | {"input_key": key})
        working = finish_soon(provider, bucket)
        seen = list(client.watch(job.job_id))
        working.join()
        assert (seen[-1].status, seen[-1].result.bytes, seen[-1].urls.output) == (
            "complete",
            6,
            f"{job.urls.self}/output",
        )
        assert [one.progress for one in seen] == sorted(one.progress for one in seen)
        assert client.get(job.job_id).status == "complete"
        got = client.download(seen[-1], tmp_path / "out.mp4", on_progress=moved.append)
        assert (got.read_bytes(), sum(moved), list(tmp_path.glob("*.part"))) == (
            b"a film",
            12_500_006,
            [],
        )
        assert [one.job_id for one in client.jobs(status="complete").jobs] == [job.job_id]
        with pytest.raises(ClientError, match="no output"):
            client.download(job, tmp_path / "none.mp4")


def test_what_the_broker_refuses_is_an_error_with_its_code(served, make):
    """And with the pointer to each field."""
    with make(served.url, API_KEY) as client:
        with pytest.raises(ApiError, match="/input_key") as caught:
            client.submit({"type": "framing"})
        assert (caught.value.status, caught.value.code, caught.value.errors[0][0]) == (
            422,
            "invalid_request",
            "/input_key",
        )
        for call in (
            client.get,
            client.cancel,
            client.retry,
            lambda job_id: list(client.watch(job_id)),
        ):
            with pytest.raises(ApiError) as caught:
                call("none")
            assert caught.value.code == "not_found"
    with make(served.url, "wrong") as client, pytest.raises(ApiError, match="Bearer"):
        client.get("none")
    with make("http://127.0.0.1:9", "x") as client, pytest.raises(httpx.ConnectError):
        client.get("none")


def losing(make, method, lost):
    """A transport that loses the first three answers to a method; `lost` gets their statuses."""
    inner = httpx.HTTPTransport if make is Client else httpx.AsyncHTTPTransport

    class Losing(inner):
        def handle_request(self, request):
            reply = super().handle_request(request)
            if len(lost) < 3 and request.method == method:
                lost.append(reply.status_code)
                raise httpx.ReadError("cut off")
            return reply

        async def handle_async_request(self, request):
            reply = await super().handle_async_request(request)
            if len(lost) < 3 and request.method == method:
                lost.append(reply.status_code)
                raise httpx.ReadError("cut off")
            return reply

    return Losing()


def test_an_upload_whose_answer_is_lost_has_arrived(served, make, tmp_path):
    """The bucket answers 412 to a second PUT. `complete` confirms that the file is whole."""
    video, lost = tmp_path / "clip.mp4", []
    video.write_bytes(b"x" * 3_000_000)
    with make(served.url, API_KEY, transport=losing(make, "PUT", lost)) as client:
        key = client.upload(video)
        assert lost == [200, 412, 412]
        assert client.quote(JOB | {"input_key": key}).output_seconds == 3


def test_an_answer_that_is_lost_makes_no_second_job(served, make):
    """The client sends the submit again with the same idempotency key."""
    lost = []
    with make(served.url, API_KEY, transport=losing(make, "POST", lost)) as client:
        job = client.submit(JOB)
        assert lost == [202, 202, 202]
        assert [one.job_id for one in client.jobs().jobs] == [job.job_id]


def test_watching_goes_on_through_a_restart_of_the_broker(settings, make, provider, bucket):
    """The stream ends, no broker listens for a while, and the stream goes on at the same event."""
    made = settings()
    bucket.write(f"{made.user_id}/a.mp4", b"a video")
    with serve(made, provider) as first:
        port = int(first.url.rpartition(":")[2])
        client = make(first.url, API_KEY)
        job = client.submit(JOB)
        watched = client.watch(job.job_id)
        statuses = [next(watched).status]
    with serve(made, provider, port):
        working = finish_soon(provider, bucket)
        statuses += [one.status for one in watched]
        working.join()
        client.__exit__()
    assert statuses[-1] == "complete"


def test_a_file_that_arrives_broken_is_not_kept(served, make, provider, bucket, tmp_path):
    """Its SHA-256 is not the job's."""
    with make(served.url, API_KEY) as client:
        job = client.submit(JOB)
        finish_soon(provider, bucket).join()
        done = list(client.watch(job.job_id))[-1]
        user = provider.only()["sent"]["input"]["user_id"]
        bucket.write(f"{user}/{done.output_key}", b"others")
        with pytest.raises(ClientError, match="SHA-256"):
            client.download(done, tmp_path / "out.mp4")
    assert list(tmp_path.glob("out.mp4*")) == []


def test_a_caption_with_other_line_ends_is_no_end_of_a_frame(served, make):
    """JSON leaves them as they are, and a stream's lines end at a line feed alone."""
    with make(served.url, API_KEY) as client:
        job = client.submit(JOB | {"metadata": {"name": "a\u2028b\u0085c\rd"}})
        client.cancel(job.job_id)
        seen = list(client.watch(job.job_id))
    assert (seen[-1].status, seen[-1].metadata) == ("cancelled", {"name": "a\u2028b\u0085c\rd"})


def test_a_quiet_job_behind_a_line_that_is_cut_again_and_again_is_watched_on(make):
    """A proxy may end silent connections. The client goes on as long as the broker answers."""
    answered = []

    def answer(request):
        answered.append(request.url.query)
        if len(answered) > 30:
            problem = {"code": "not_found", "detail": "enough", "retryable": False}
            kind = {"content-type": "application/problem+json"}
            return httpx.Response(404, json=problem, headers=kind)
        return httpx.Response(
            200, headers={"content-type": "text/event-stream"}, content=b": hello\n\n"
        )

    with (
        make("http://broker", "k", transport=httpx.MockTransport(answer)) as client,
        pytest.raises(ApiError, match="enough"),
    ):
        list(client.watch("j"))
    assert len(answered) == 31


def test_an_answer_of_another_server_is_an_error(make):
    """A proxy's redirect, and a web page instead of an answer."""
    for reply in (
        httpx.Response(301, headers={"location": "https://x"}),
        httpx.Response(200, text="<html>"),
    ):
        with make(
            "http://broker", "k", transport=httpx.MockTransport(lambda _, reply=reply: reply)
        ) as client:
            for call in (client.get, lambda job_id, client=client: list(client.watch(job_id))):
                with pytest.raises(ClientError, match=r"301|200"):
                    call("j")


def test_on_a_slow_line_the_client_requests_new_urls(served, make, tmp_path, monkeypatch):
    """Before the old ones expire."""
    monkeypatch.setattr(uploads, "PART_BYTES", 5 * 2**20)
    monkeypatch.setattr(uploads, "IN_PARTS_FROM", 12_000_000)
    video = tmp_path / "clip.mp4"
    video.write_bytes(b"x" * 12_500_000)
    clock = iter(range(0, 10**9, 1801))
    monkeypatch.setattr(clients, "_now", lambda: next(clock))
    with make(served.url, API_KEY) as client:
        assert client.upload(video).endswith("clip.mp4")


def test_a_line_that_is_cut_within_a_frame_leaves_nothing_behind(served, make):
    """The client drops half a frame. The new connection begins with a whole one."""
    with make(served.url, API_KEY) as client:
        job = client.submit(JOB)
        client.cancel(job.job_id)
        *_, over = client.watch(job.job_id)
    first, last = (
        Snapshot(seq=seq, job=one).model_dump_json() for seq, one in ((1, job), (9, over))
    )
    streams = [
        f"id: 1\nevent: snapshot\ndata: {first}\n\nid: 2\nevent: update\n",
        f"retry: 9\n\nid: 9\nevent: snapshot\ndata: {last}\n\n",
    ]

    def answer(request):
        return httpx.Response(
            200, headers={"content-type": "text/event-stream"}, text=streams.pop(0)
        )

    with make("http://broker", "k", transport=httpx.MockTransport(answer)) as client:
        assert [one.status for one in client.watch("j")] == ["pending", "cancelled"]
