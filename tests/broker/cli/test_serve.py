"""`reelbroker serve` under systemd: the listening socket outlives the broker."""

import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from broker.store.engine import open_engine
from tests.broker.process import environment_of, serve


@pytest.fixture
def database_url(tmp_path):
    return f"sqlite:///{tmp_path}/broker.db"


@pytest.fixture
def environment(settings):
    """The settings as the environment that a process reads."""
    return environment_of(settings())


def test_a_restart_refuses_no_connection(environment, tmp_path):
    """Connections that arrive while no broker runs wait in the socket. No client retries."""
    over, answers = threading.Event(), []
    with (
        socket.create_server(("127.0.0.1", 0), backlog=512) as listening,
        (tmp_path / "log").open("wb") as log,
    ):
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/healthz"

        def send():
            while not over.is_set():
                answers.append(
                    httpx.get(url, headers={"Connection": "close"}, timeout=30).status_code
                )

        process = serve(listening, environment, log)
        try:
            assert httpx.get(url, timeout=30).status_code == 200
            threads = [threading.Thread(target=send) for _ in range(4)]
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
    """Another broker has the database: an exit code for a supervisor, and no traceback."""
    engine = open_engine(database_url)
    command = [sys.executable, "-m", "broker.cli.main", "serve"]
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    engine.dispose()
    assert ended.returncode == 1
    assert "in use by another process" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr
