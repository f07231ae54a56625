"""`reelbroker serve` as a process of its own, with its settings as the environment."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx


def environment_of(settings):
    """Returns the settings as the environment that a process reads."""
    names = {name: field.validation_alias for name, field in type(settings).model_fields.items()}
    values = {
        alias: getattr(settings, name)
        for name, alias in names.items()
        if name in settings.model_fields_set
    }
    told = {
        name: getattr(value, "get_secret_value", lambda value=value: value)()
        for name, value in values.items()
    }
    return os.environ | {name: str(value) for name, value in told.items()}


def serve(listening, environment, log, files=None):
    """Starts a broker on a socket of ours, as sd_listen_fds(3) says; it may have so many files
    open.
    """
    handed = listening.fileno()
    limit = f"ulimit -n {files} && " if files else ""
    command = f"{limit}exec 3<&{handed} && LISTEN_FDS=1 LISTEN_PID=$$ "
    command += f'exec "{sys.executable}" -m broker.cli.main serve'
    return subprocess.Popen(
        ["bash", "-c", command], env=environment, pass_fds=[handed], stdout=log, stderr=log
    )


class Process:
    """A running broker: where it is, and what it takes."""

    def __init__(self, address, pid, log):
        self.address = address
        self.pid = pid
        self.log = log
        self.url = f"http://{address[0]}:{address[1]}"

    def memory(self):
        """Returns its resident memory in bytes."""
        return self._status("VmRSS")

    def most_memory(self):
        """Returns the most that it ever was."""
        return self._status("VmHWM")

    def _status(self, name):
        status = Path(f"/proc/{self.pid}/status").read_text()
        return (
            int(next(line for line in status.splitlines() if line.startswith(name)).split()[1])
            * 1024
        )

    def connect(self):
        """Opens a connection that says nothing yet."""
        return socket.create_connection(self.address, timeout=30)


@contextlib.contextmanager
def serving(settings, folder, files=None):
    """Runs a broker for the length of the `with`, once it answers."""
    path = folder / "serve.log"
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening, path.open("wb") as log:
        process = serve(listening, environment_of(settings), log, files)
        try:
            made = Process(listening.getsockname(), process.pid, path)
            assert httpx.get(f"{made.url}/healthz", timeout=30).status_code == 200
            yield made
        finally:
            process.kill()
            process.wait()
