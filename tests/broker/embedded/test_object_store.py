"""The embedded store does what the project needs of R2, and keeps its objects."""

import os
import signal
import socket
import ssl
import stat
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from broker.bucket import open_bucket
from broker.embedded.object_store import PORT_NAMES, ObjectStore
from broker.embedded.ports import free_ports
from broker.settings import Settings


def view(store):
    """The broker's bucket on a store."""
    environment = {
        "RUNPOD_API_KEY": "k",
        "RUNPOD_ENDPOINT_URL": "http://127.0.0.1:9/v2/x",
        "REELBROKER_API_KEY": "k" * 16,
        "R2_ENDPOINT": store.url,
        "R2_ACCESS_KEY_ID": store.access_key,
        "R2_SECRET_ACCESS_KEY": store.secret_key,
        "R2_BUCKET_NAME": store.bucket,
    }
    return open_bucket(Settings(_env_file=None, **environment))


class Process:
    """One run of a store."""

    def __init__(self, store, log):
        self.process = subprocess.Popen(
            store.command(), stdout=log, stderr=log, start_new_session=True, umask=0o077
        )
        deadline = time.monotonic() + 30
        while not store.prepare():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.mark.parametrize("new_ports", [False, True], ids=["same-ports", "new-ports"])
def test_what_was_stored_survives_a_kill(tmp_path, new_ports):
    """Started again, also on other ports, the store has its objects."""
    ports = dict(zip(PORT_NAMES, free_ports(len(PORT_NAMES)), strict=True))
    store = ObjectStore(tmp_path, ports, "access", "secret" * 5, "reelbroker")
    with (tmp_path / "log").open("wb") as log:
        first = Process(store, log)
        view(store).write("u/a.json", b"kept")
        first.kill()
        store.sweep()
        if new_ports:
            store = replace(
                store, ports=dict(zip(PORT_NAMES, free_ports(len(PORT_NAMES)), strict=True))
            )
        second = Process(store, log)
        try:
            assert view(store).read("u/a.json") == b"kept"
        finally:
            second.kill()
            store.sweep()


def test_a_browser_may_upload_from_any_page(object_store):
    """The preflight of a presigned PUT is answered."""
    reply = httpx.options(
        f"{object_store.url}/{object_store.bucket}/u/a.mp4",
        headers={
            "Origin": "http://localhost:3000",
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "content-type",
        },
    )
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] in ("*", "http://localhost:3000")
    assert "PUT" in reply.headers["access-control-allow-methods"]


def test_what_is_not_there_is_none(object_store):
    """Not an error."""
    bucket = view(object_store)
    assert (bucket.size("u/none"), bucket.read("u/none")) == (None, None)


def test_preparing_twice_changes_nothing(object_store):
    """Each start of a stack prepares its store."""
    bucket = view(object_store)
    bucket.write("u/stays.json", b"x")
    assert object_store.prepare()
    assert bucket.size("u/stays.json") == 1


def listening(url):
    """The TCP ports that the process behind a URL listens on, from /proc."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {
        f"socket:[{row[9]}]": int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A"
    }
    ours = httpx.URL(url).port
    for process in Path("/proc").glob("[0-9]*"):
        try:
            held = {str(file.readlink()) for file in (process / "fd").iterdir()}
        except OSError:
            continue
        ports = {port for name, port in sockets.items() if name in held}
        if ours in ports:
            return ports
    raise AssertionError(f"nobody listens on {url}")


def first_bytes(port, tls=None):
    """Returns a port's answer to a gRPC call, in the clear or in TLS without a certificate."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        try:
            with plain if tls is None else tls.wrap_socket(plain) as channel:
                channel.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
                return channel.recv(64)
        except (ssl.SSLError, ConnectionError):
            return b""


def fetched(method, port, path):
    """Returns the answer to a request of another site's page, or None from a port without HTTP."""
    try:
        headers = {"Origin": "http://elsewhere.test"}
        return httpx.request(method, f"http://127.0.0.1:{port}{path}", headers=headers, timeout=5)
    except httpx.RemoteProtocolError:
        return None


@pytest.mark.abuse
def test_no_port_gives_out_or_deletes_an_object_without_a_key(object_store):
    """A GET and a DELETE of an object, on each port and by each of the object's names."""
    bucket, key = view(object_store), "u/private.mp4"
    bucket.write(key, b"a private film")
    deadline = time.monotonic() + 20
    while (ports := listening(object_store.url)) != set(object_store.ports.values()):
        # The admin part starts last.
        assert time.monotonic() < deadline
        time.sleep(0.1)
    paths = [
        f"/buckets/{object_store.bucket}/{key}",
        f"/{object_store.bucket}/{key}",
        "/1,01abcdef01",
        "/",
    ]
    paths += [
        f"/buckets/{object_store.bucket}/?recursive=true",
        "/dir/assign",
        "/dir/lookup?volumeId=1",
    ]
    answers = [
        fetched(method, port, path)
        for method in ("GET", "DELETE")
        for port in ports
        for path in paths
    ]
    replies = [reply for reply in answers if reply is not None]
    assert len(replies) == 2 * 5 * len(paths)
    assert not [reply for reply in replies if b"private film" in reply.content]
    listings = [reply for reply in replies if key not in reply.url.path]
    assert not [reply for reply in listings if b"private" in reply.content]
    assert {reply.status_code for reply in replies if reply.url.path != "/"} <= {
        400,
        401,
        403,
        404,
        405,
    }
    volume = [reply for reply in replies if "/1,01abcdef01" in str(reply.url)]
    assert [r.status_code for r in volume if r.url.port == object_store.ports["volume.port"]] == [
        401,
        401,
    ]
    assert bucket.read(key) == b"a private film"


@pytest.mark.abuse
def test_no_grpc_port_talks_to_a_client_without_a_certificate(object_store):
    """`weed shell` and others fail at the handshake, in the clear and through TLS."""
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    anybody.set_alpn_protocols(["h2"])
    for name in (name for name in PORT_NAMES if name.endswith(".grpc")):
        plain = first_bytes(object_store.ports[name])
        # Nothing, or a TLS alert; a gRPC server that talks begins with a SETTINGS frame.
        assert plain[:1] in (b"", b"\x15"), name
        assert first_bytes(object_store.ports[name], anybody) == b"", name


@pytest.mark.abuse
def test_files_and_sockets_of_the_store_are_the_owners_alone(object_store):
    """No other user of the machine may open a file with keys, the media, or a socket file."""
    view(object_store).write("u/private.mp4", b"x" * 100_000)
    sockets = [
        path
        for port in object_store.ports.values()
        for path in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock")
    ]
    secret = [object_store.folder / name for name in ("s3.json", "parts.key", "security.toml")]
    media = list((object_store.folder / "data").rglob("*.dat"))
    assert len(sockets) >= 5
    assert len(media) >= 1
    open_to_others = [path for path in (*sockets, *secret, *media) if path.stat().st_mode & 0o077]
    assert open_to_others == []
    assert stat.S_IMODE((object_store.folder / "data").stat().st_mode) == 0o700
