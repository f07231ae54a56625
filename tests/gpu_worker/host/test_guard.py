"""What ends an execution early: at once, once, and with its reason."""

import threading
import time

import pytest

from gpu_worker.errors import Cancelled, CpuTimeout, ExecutionTimeout
from gpu_worker.host.guard import Guard
from gpu_worker.media.ffmpeg import run_ffmpeg

#: Reads at the film's own pace: it writes nothing for a long time, as a hanging ffmpeg would.
WAITING = [
    "-re",
    "-f",
    "lavfi",
    "-i",
    "testsrc2=s=64x64:d=600,fps=1/300",
    "-f",
    "rawvideo",
    "pipe:1",
]
BUSY = ["-f", "lavfi", "-i", "testsrc2=s=1920x1080:d=600", "-c:v", "libx264", "-f", "null", "-"]


def test_a_read_that_would_wait_for_ever_ends(tmp_path):
    """The process group is killed while somebody reads from it; the reason is the one given
    first.
    """
    guard = Guard()
    threading.Timer(0.3, guard.stop, [Cancelled("Cancelled.")]).start()
    began = time.monotonic()
    with run_ffmpeg(WAITING, guard, reads=True) as ffmpeg:
        while ffmpeg.stdout.read(64 * 64 * 4):
            pass
        guard.stop(ExecutionTimeout("Too late."))
        with pytest.raises(Cancelled):
            ffmpeg.finish()
    assert time.monotonic() - began < 5


def test_an_execution_that_takes_too_long_is_stopped():
    """By the wall clock."""
    guard = Guard()
    with guard.within(0.3), run_ffmpeg(WAITING, guard, reads=True) as ffmpeg:
        while ffmpeg.stdout.read(64 * 64 * 4):
            pass
        with pytest.raises(ExecutionTimeout, match=r"longer than 0\.3 seconds"):
            ffmpeg.finish()


def test_one_that_is_done_in_time_is_not():
    """The limit is over with the work."""
    guard = Guard()
    with guard.within(0.1):
        pass
    time.sleep(0.2)
    guard.check()


def test_a_tool_that_computes_too_much_is_stopped():
    """By its own CPU time."""
    guard = Guard(cpu_seconds=1)
    with (
        run_ffmpeg(BUSY, guard) as ffmpeg,
        pytest.raises(CpuTimeout, match="1 seconds of computing"),
    ):
        ffmpeg.finish()


def test_nothing_is_started_any_more():
    """What comes after a stop does not begin."""
    guard = Guard()
    guard.stop(Cancelled("Cancelled."))
    with pytest.raises(Cancelled), run_ffmpeg(WAITING, guard, reads=True):
        pass
