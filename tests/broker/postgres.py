"""A PostgreSQL of its own for a test run: Debian's, in a folder of its own, without a password, on
loopback.
"""

import contextlib
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg

from broker.embedded.ports import free_ports

_COUNT = itertools.count()


def _binaries():
    """Returns the folder of the newest release that is installed."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name)
    )
    assert found, "PostgreSQL is not installed; scripts/test installs it"
    return found[-1]


@contextlib.contextmanager
def cluster():
    """Runs a server while entered; yields its address. It refuses to run as root, so another user
    runs it then.
    """
    folder = Path(tempfile.mkdtemp(prefix="reelbroker-postgres-"))
    (port,) = free_ports(1)
    user = None
    if os.getuid() == 0:
        user = "postgres"
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    run = {
        "user": user,
        "cwd": folder,
        "check": True,
        "capture_output": True,
        "env": {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
    }
    binaries, data = _binaries(), folder / "data"
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "reelbroker", "-A", "trust", "-E", "UTF8"], **run
    )
    # Tests need no power cut survived; only the speed of the disk would be measured.
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    options += " -c fsync=off -c max_connections=300"
    control = [binaries / "pg_ctl", "-D", data, "-w", "-l", folder / "log"]
    subprocess.run([*control, "-o", options, "start"], **run)
    try:
        yield f"postgresql://reelbroker@127.0.0.1:{port}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **run)
        shutil.rmtree(folder)


def new_database(address, template="template0"):
    """Creates a database and returns its URL."""
    name = f"t{os.getpid()}_{next(_COUNT)}"
    with psycopg.connect(f"{address}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    return f"{address}/{name}"
