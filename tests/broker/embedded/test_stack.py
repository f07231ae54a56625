"""The supervisor's handling of one part, and of what a stack keeps from start to start."""

import asyncio
import json
import os
import signal
import socket
import sys
from itertools import pairwise

import pytest

from broker.embedded import stack as module
from broker.embedded.stack import Part, RunningPart, Stack, _load_identity
from broker.errors import StackError


@pytest.fixture
def part(tmp_path):
    """Builds a part that runs a line of Python, ready once it has written `ready`."""
    (tmp_path / "logs").mkdir()

    def build(code, **fields):
        async def is_ready():
            return (tmp_path / "ready").exists()

        def command():
            (tmp_path / "ready").unlink(missing_ok=True)
            return [sys.executable, "-c", code], {}

        return RunningPart(Part("part", command, is_ready, **fields), tmp_path)

    return build


READY = "import time; open('ready', 'w').close(); "


async def test_a_part_that_dies_is_restarted(part):
    """Again and again, each time as a new process."""
    running = part(READY + "time.sleep(60)")
    await running.start()
    running.watch()
    seen = set()
    async with asyncio.timeout(20):
        for _ in range(3):
            seen.add(pid := running.pid)
            os.kill(pid, signal.SIGKILL)
            while running.pid == pid:
                await asyncio.sleep(0.05)
    assert len(seen) == 3
    await running.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(running.pid, 0)


async def test_what_a_dead_part_left_behind_goes_with_it(part, tmp_path):
    """Children of a killed part are killed before it is restarted."""
    sleep = "[sys.executable, '-c', 'import time; time.sleep(60)']"
    fork = f"import subprocess, sys; c = subprocess.Popen({sleep}); "
    running = part(fork + "open('child', 'w').write(str(c.pid)); " + READY + "time.sleep(60)")
    await running.start()
    running.watch()
    child = int((tmp_path / "child").read_text())
    os.kill(running.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        while _is_alive(child):
            await asyncio.sleep(0.05)
    await running.stop()


def _is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


async def test_a_part_that_will_not_end_is_killed(part):
    """After its time to end by itself."""
    running = part(
        "import signal; signal.signal(15, signal.SIG_IGN); " + READY + "time.sleep(60)",
        stop_seconds=0.3,
    )
    await running.start()
    await asyncio.wait_for(running.stop(), 5)
    with pytest.raises(ProcessLookupError):
        os.kill(running.pid, 0)


async def test_a_part_that_cannot_start_is_an_error_with_the_end_of_its_log(part):
    """The error holds the part's name, its exit code and the end of its log."""
    running = part("import sys; print('first'); sys.exit('no such table: jobs')")
    with pytest.raises(StackError, match=r"part ended with code 1 before it was ready") as caught:
        await running.start()
    assert "no such table: jobs" in str(caught.value)
    await running.stop()


async def test_a_part_that_is_never_ready_is_given_up(part, monkeypatch):
    """Rather than waited for without end."""
    monkeypatch.setattr(module, "READY_SECONDS", 0.3)
    running = part("import time; time.sleep(60)")
    with pytest.raises(StackError, match="was not ready"):
        await running.start()
    await running.stop()


async def test_a_log_does_not_fill_the_disk(part, tmp_path, monkeypatch):
    """A part that complains in a loop is cut back."""
    monkeypatch.setattr(module, "LOG_LIMIT_BYTES", 100_000)
    monkeypatch.setattr(module, "LOG_CHECK_SECONDS", 0.1)
    running = part(READY + "\nwhile True: print('x' * 1000, flush=True); time.sleep(0.001)")
    await running.start()
    running.watch()
    sizes = []
    for _ in range(40):
        await asyncio.sleep(0.05)
        sizes.append((tmp_path / "logs" / "part.log").stat().st_size)
    await running.stop()
    assert any(after < before for before, after in pairwise(sizes))
    assert max(sizes) < 1_000_000


def test_ports_and_keys_are_kept_in_a_file_for_the_owner_only(tmp_path):
    """The second start finds the same."""
    path = tmp_path / "stack.json"
    first = _load_identity(path, None)
    assert _load_identity(path, None) == first
    assert path.stat().st_mode & 0o077 == 0
    assert len(set(first.ports.values())) == len(first.ports) == 13


@pytest.mark.abuse
async def test_what_a_stack_writes_is_the_owners_alone(tmp_path):
    """Folders, lock, keys, logs and the parts' files, also in a folder of an older release."""
    before = os.umask(0o022)
    try:
        (tmp_path / "old" / "logs").mkdir(parents=True)
        for folder in (tmp_path / "old", tmp_path / "new"):
            stack = Stack(folder)
            stack._open_folder()
            stack._lock.close()
            is_written = (folder / "written").exists
            command = [
                sys.executable,
                "-c",
                "open('written', 'w').close(); import time; time.sleep(60)",
            ]

            async def is_ready(is_written=is_written):
                return is_written()

            running = RunningPart(
                Part("part", lambda command=command: (command, {}), is_ready), folder
            )
            await running.start()
            await running.stop()
    finally:
        os.umask(before)
    below = [path for name in ("old", "new") for path in (tmp_path / name).rglob("*")]
    assert {path.name for path in below} >= {
        "logs",
        "store",
        "work",
        "lock",
        "stack.json",
        "part.log",
        "written",
    }
    assert [path for path in (*below, tmp_path / "new") if path.stat().st_mode & 0o077] == []


def test_a_port_that_is_taken_meanwhile_is_replaced(tmp_path):
    """The keys and the other ports stay."""
    path = tmp_path / "stack.json"
    first = _load_identity(path, None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first.ports["endpoint"]))
        taken.listen()
        second = _load_identity(path, None)
    changed = {name for name in first.ports if first.ports[name] != second.ports[name]}
    assert changed == {"endpoint"}
    assert second.api_key == first.api_key == json.loads(path.read_text())["api_key"]
