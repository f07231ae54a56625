"""`reelbroker serve` as systemd starts it: the listening socket outlives the broker, so a restart refuses nobody."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from broker.database import open_engine


@pytest.fixture
def database_url(tmp_path):
    return f"sqlite:///{tmp_path}/broker.db"


@pytest.fixture
def environment(settings):
    """The settings as the environment that a process reads."""
    made = settings()
    names = {name: field.validation_alias for name, field in type(made).model_fields.items()}
    values = {alias: getattr(made, name) for name, alias in names.items() if name in made.model_fields_set}
    told = {
        name: getattr(value, "get_secret_value", lambda value=value: value)()
        for name, value in values.items()
    }
    return os.environ | {name: str(value) for name, value in told.items()}


def serve(listening, environment, log):
    """Starts a broker on a socket of ours, as sd_listen_fds(3) says."""
    handed = listening.fileno()
    command = f'exec 3<&{handed} && LISTEN_FDS=1 LISTEN_PID=$$ exec "{sys.executable}" -m broker.cli serve'
    return subprocess.Popen(
        ["bash", "-c", command], env=environment, pass_fds=[handed], stdout=log, stderr=log
    )


def test_a_restart_refuses_nobody(environment, tmp_path):
    """Requests on a connection each, without trying again: those that come while no broker runs wait in the socket."""
    over, answers = threading.Event(), []
    with (
        socket.create_server(("127.0.0.1", 0), backlog=512) as listening,
        (tmp_path / "log").open("wb") as log,
    ):
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/healthz"

        def ask():
            while not over.is_set():
                answers.append(httpx.get(url, headers={"Connection": "close"}, timeout=30).status_code)

        process = serve(listening, environment, log)
        try:
            assert httpx.get(url, timeout=30).status_code == 200
            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            while len(answers) < len(threads):
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) in (0, -signal.SIGTERM)
            before = len(answers)
            process = serve(listening, environment, log)
            assert httpx.get(url, timeout=30).status_code == 200
            over.set()
            for thread in threads:
                thread.join()
        finally:
            process.kill()
            process.wait()
    assert 0 < before < len(answers)
    assert set(answers) == {200}


def test_a_broker_that_cannot_begin_says_why_in_a_line(environment, database_url):
    """Another one has its database: no traceback, and an exit code that a supervisor sees."""
    engine = open_engine(database_url)
    command = [sys.executable, "-m", "broker.cli", "serve"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    engine.dispose()
    assert ended.returncode == 1
    assert "in use by another process" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr
