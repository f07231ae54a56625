"""An object store of a benchmark's own: SeaweedFS on loopback, with an empty bucket."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.embedded.object_store import PORT_NAMES, ObjectStore
from broker.embedded.ports import free_ports


@contextmanager
def running_store(folder: Path) -> Iterator[ObjectStore]:
    """Yields a store that keeps its files below a folder; exits where it does not come up."""
    store = ObjectStore(
        folder / "store",
        dict(zip(PORT_NAMES, free_ports(len(PORT_NAMES)), strict=True)),
        secrets.token_hex(10),
        secrets.token_urlsafe(30),
        "bench",
    )
    # In a session of its own: `weed` starts others.
    process = subprocess.Popen(
        store.command(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        umask=0o077,
    )
    try:
        deadline = time.monotonic() + 30
        while not store.prepare():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("the object store did not come up")
            time.sleep(0.1)
        yield store
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        store.sweep()
