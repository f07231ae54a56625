"""The embedded store does what R2 does, as far as we use it, and keeps what it was given."""

import os
import signal
import subprocess
import time
from dataclasses import replace

import httpx
import pytest

from broker.embedded.object_store import PORT_NAMES, ObjectStore
from broker.embedded.ports import free_ports
from broker.settings import Settings
from broker.storage import open_bucket


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
        self.process = subprocess.Popen(store.command(), stdout=log, stderr=log, start_new_session=True)
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
            store = replace(store, ports=dict(zip(PORT_NAMES, free_ports(len(PORT_NAMES)), strict=True)))
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


def test_the_keys_are_for_the_owner_only(object_store):
    """The file with the secret is not readable by others."""
    assert (object_store.folder / "s3.json").stat().st_mode & 0o077 == 0
