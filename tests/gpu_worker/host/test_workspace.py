"""Folders of executions: gone at their end, and those of killed workers at the next start."""

import signal
import subprocess
import sys
import time

from gpu_worker.host.workspace import sweep_workspaces, workspace

HOLD = """
import sys, time
from pathlib import Path
from gpu_worker.host.workspace import workspace
with workspace(Path(sys.argv[1])) as folder:
    (folder / "source").write_bytes(b"x" * 1000)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_workspace_is_gone_when_it_ends(tmp_path):
    """Also after an error."""
    try:
        with workspace(tmp_path) as folder:
            (folder / "a").write_bytes(b"1")
            raise KeyError
    except KeyError:
        assert list(tmp_path.iterdir()) == []


def test_what_a_killed_worker_left_is_swept_and_nothing_else(tmp_path):
    """Not what another one is at work in, nor what is not ours."""
    (tmp_path / "export-notes.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    with workspace(tmp_path) as mine:
        assert sweep_workspaces(tmp_path) == 0
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        deadline = time.monotonic() + 5
        while sweep_workspaces(tmp_path) == 0:
            assert time.monotonic() < deadline
        assert mine.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export-notes.txt", "other"]
