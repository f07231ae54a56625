"""Connections: nothing that a client sends or leaves open without end costs memory, or anybody else
an answer.
"""

import contextlib
import selectors
import socket
import time

import httpx
import pytest

from broker import connection
from broker.bucket import open_bucket
from schemas.keys import object_key
from tests.broker.api.calls import JOB
from tests.broker.api.served import serve
from tests.broker.configured import API_KEY, configured
from tests.broker.process import serving
from tests.broker.provider import Provider

pytestmark = pytest.mark.abuse

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /healthz HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
MIB = 2**20


@pytest.fixture
def database_url(tmp_path):
    """It is the same whichever database there is."""
    return f"sqlite:///{tmp_path}/broker.db"


@pytest.fixture(scope="module")
def broker(object_store, tmp_path_factory):
    """`reelbroker serve` in a process of its own."""
    folder = tmp_path_factory.mktemp("connection")
    database = f"sqlite:///{folder}/broker.db"
    with serving(configured(object_store, REELBROKER_DATABASE_URL=database), folder) as broker:
        yield broker


@pytest.fixture
def impatient(settings, monkeypatch):
    """A broker that waits for headers half a second."""
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.5)
    with serve(settings(), Provider()) as served:
        yield socket_to(served)


def socket_to(served):
    """Returns what opens connections to a broker."""
    host, _, port = served.url.removeprefix("http://").partition(":")
    return lambda: socket.create_connection((host, int(port)), timeout=10)


def answer(client):
    """Returns all that comes until the other side hangs up."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(65_536):
            received += data
    return received


def flood(client, first, piece, most):
    """Sends a piece again and again until `most` bytes are sent or the other side has hung up;
    returns how many were.
    """
    sent = 0
    with contextlib.suppress(ConnectionError):
        client.sendall(first)
        while sent < most:
            client.sendall(piece)
            sent += len(piece)
    return sent


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        pytest.param(HEALTH, b"x-a: " + b"a" * 8000 + b"\r\n", id="many-headers"),
        pytest.param(HEALTH + b"x-a: ", b"a" * 65_536, id="one-header"),
        pytest.param(HEALTH + b"x", b"x" * 65_536, id="a-name"),
        pytest.param(b"GET /", b"a" * 65_536, id="a-path"),
        pytest.param(CHUNKED + b"1;", b"a" * 65_536, id="a-chunk-extension"),
        pytest.param(CHUNKED + b"0\r\n", b"x-a: " + b"a" * 8000 + b"\r\n", id="many-trailers"),
        pytest.param(CHUNKED + b"0\r\nx-a: ", b"a" * 65_536, id="one-trailer"),
        pytest.param(
            HEALTH + b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
            b"x-a: " + b"a" * 8000 + b"\r\n",
            id="headers-of-an-upgrade",
        ),
    ],
)
def test_what_has_no_end_is_cut_off(broker, first, piece):
    """After 64 KB and what was under way; memory stays where it was, and others are answered."""
    before = broker.memory()
    with broker.connect() as client:
        assert flood(client, first, piece, 100 * MIB) < 16 * MIB
    assert httpx.get(f"{broker.url}/healthz").status_code == 200
    assert broker.memory() - before < 8 * MIB


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (HEALTH + b"x-a: " + b"a" * 70_000 + b"\r\n\r\n", b"431"),
        (HEALTH + b"x-a: a\r\n" * 9_000 + b"\r\n", b"431"),
        (b"GET /healthz?" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"431"),
        (HEALTH + b"x-a: " + b"a" * 60_000 + b"\r\nConnection: close\r\n\r\n", b"200"),
        (b"GET\r\n\r\n", b"400"),
    ],
)
def test_headers_over_the_limit_are_answered_with_431(impatient, request_, status):
    """Also where they come in one piece; those below are taken."""
    with impatient() as client:
        client.sendall(request_)
        assert answer(client).split()[1] == status


def test_eight_hundred_halves_of_requests_are_gone_after_ten_seconds(broker):
    """Whatever they have sent so far; meanwhile others are answered as ever."""
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(broker.connect()) for _ in range(800)]
        for number, client in enumerate(clients):
            client.sendall((b"", b"GET ", HEALTH, HEALTH + b"x-a: ")[number % 4])
        asked = time.monotonic()
        assert httpx.get(f"{broker.url}/healthz").status_code == 200
        assert time.monotonic() - asked < 0.5
        assert len(still_open(clients, started + 8)) == len(clients)
        assert still_open(clients, started + 14) == []
        assert (clients[0].recv(100), clients[2].recv(100).split()[1]) == (b"", b"408")


def still_open(clients, until):
    """Returns the clients that nothing has come to at that moment."""
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client, selectors.EVENT_READ)
        while (left := until - time.monotonic()) > 0 and selector.get_map():
            for key, _ in selector.select(left):
                selector.unregister(key.fileobj)
        return [key.fileobj for key in selector.get_map().values()]


def test_a_header_that_dribbles_in_is_late(impatient):
    """Each byte that comes does not put the end off."""
    with impatient() as client:
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            client.sendall(HEALTH + b"x-a: ")
            while time.monotonic() - started < 5:
                client.sendall(b"a")
                time.sleep(0.02)
        assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("begun", "dribble"),
    [
        pytest.param(
            b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n",
            b"a",
            id="a-body-that-was-answered",
        ),
        pytest.param(
            b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n",
            b"aaaa",
            id="a-body-behind-its-answer",
        ),
        pytest.param(HEALTH + b"\r\n", b"\r\n", id="empty-lines"),
    ],
)
def test_no_connection_is_kept_by_what_comes_behind_an_answer(
    impatient, begun, dribble, monkeypatch
):
    """Neither by the rest of a body that nobody reads nor by lines that are no request."""
    with impatient() as client:
        client.sendall(begun)
        started = time.monotonic()
        assert client.recv(10_000).startswith(b"HTTP/1.1 ")
        client.settimeout(8)
        with contextlib.suppress(ConnectionError, TimeoutError):
            client.sendall(dribble)
            while time.monotonic() - started < 8 and client.recv(1000):
                client.sendall(dribble)
        assert time.monotonic() - started < 7


@pytest.mark.parametrize(
    ("limit", "piece", "status"),
    [
        pytest.param({"REELBROKER_BODY_SECONDS": "0.3"}, b"1\r\n \r\n", b"408", id="late"),
        pytest.param(
            {"REELBROKER_BODY_LIMIT_BYTES": "1024"},
            b"400\r\n" + b" " * 1024 + b"\r\n",
            b"413",
            id="large",
        ),
    ],
)
def test_a_body_that_is_refused_is_the_connections_end(settings, limit, piece, status):
    """At once: what is left of it is not waited for."""
    first = (
        b"POST /api/jobs/quote HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\n"
        % API_KEY.encode()
    )
    with serve(settings(**limit), Provider()) as served, socket_to(served)() as client:
        began = time.monotonic()
        client.sendall(first + b"Transfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < connection.HEADER_SECONDS:
                client.sendall(piece)
                time.sleep(0.1)
        assert time.monotonic() - began < connection.HEADER_SECONDS / 2
        with contextlib.suppress(ConnectionError):
            assert answer(client).split(b" ")[1] == status


def test_a_connection_is_used_again_and_again(impatient):
    """Requests one after the other, in pieces, and several at once: each has its answer, whatever
    the deadline.
    """
    with impatient() as client:
        for _ in range(3):
            client.sendall(HEALTH)
            time.sleep(0.3)
            client.sendall(b"\r\n")
            assert client.recv(10_000).startswith(b"HTTP/1.1 200")
        client.sendall((HEALTH + b"\r\n") * 3 + HEALTH + b"Connection: close\r\n\r\n")
        assert answer(client).count(b"HTTP/1.1 200") == 4


def test_a_request_behind_one_that_takes_long_is_not_late(settings, monkeypatch):
    """The broker itself reads no further meanwhile."""
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.3)
    made = settings()
    open_bucket(made).write(object_key(made.user_id, JOB["input_key"]), b"a video")
    with serve(made, Provider()) as served:
        url = served.client.post("/api/jobs", json=JOB).headers["location"]
        while (job := served.client.get(url)).json()["phase"] != "queued":
            time.sleep(0.05)
        etag = job.headers["etag"]
        waiting = f"GET {url} HTTP/1.1\r\nHost: a\r\nPrefer: wait=2\r\nIf-None-Match: {etag}\r\n"
        authorized = f"{waiting}Authorization: {served.headers['Authorization']}\r\n\r\n".encode()
        last = HEALTH + b"Connection: close\r\n\r\n"
        with socket_to(served)() as client:
            client.sendall(authorized + HEALTH + b"\r\n" + last[:9])
            time.sleep(1)
            client.sendall(last[9:])
            received = answer(client)
            assert received.startswith(b"HTTP/1.1 304")
            assert received.count(b"HTTP/1.1 200") == 2


def test_a_connection_too_many_is_turned_away(settings, tmp_path):
    """With a 503, before anything is read of it; others are answered again as soon as there is
    room.
    """
    made = settings()
    with serving(made, tmp_path, files=128) as broker, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(broker.connect()) for _ in range(70)]
        assert answer(clients[-1]).split()[1] == b"503"
        for client in clients:
            client.close()
        time.sleep(0.2)
        assert httpx.get(f"{broker.url}/readyz").status_code == 200
