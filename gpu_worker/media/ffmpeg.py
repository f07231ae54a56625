"""The bundled ffmpeg as a child process that is owned, drained and never left behind."""

import collections
import contextlib
import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import imageio_ffmpeg

from gpu_worker.errors import CpuTimeout, FfmpegFailed, OutOfMemory
from gpu_worker.host.guard import Guard, kill_group

STDERR_TAIL_LINES = 40
PIPE_BYTES = 1 << 20
#: Demuxers for files from strangers; playlists and scripts, which could open other files, are not
#: among them.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,avi,mpeg,flv,asf,gif,ogg,mxf,dv"
#: What a child finds in its environment, where the worker has it: how to start, and which GPU it
#: may use. Not the keys of the bucket and of RunPod: files from strangers are decoded there.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
PASSED_ON_PREFIXES = ("CUDA_", "NVIDIA_")
INPUT_OPTIONS = ("-protocol_whitelist", "file,pipe", "-format_whitelist", FORMATS)


def decoding_limit(max_pixels: int) -> str:
    """Returns the decoders' own limit of a frame's pixels; some more, since they count what they
    add to its edges.
    """
    return str(max_pixels + max_pixels // 4 + (1 << 16))


@dataclass(frozen=True)
class Ffmpeg:
    """A running ffmpeg. Its stderr is read by a thread, so that it never blocks on it."""

    process: subprocess.Popen[bytes]
    _stderr: collections.deque[str]
    _drain: threading.Thread
    _guard: Guard

    @property
    def stdin(self) -> IO[bytes]:
        # Opened below.
        assert self.process.stdin is not None  # noqa: S101
        return self.process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None  # noqa: S101
        return self.process.stdout

    @property
    def has_ended(self) -> bool:
        """True when it has closed its stderr, which happens at its end."""
        return not self._drain.is_alive()

    def finish(self) -> None:
        """Closes its input, waits for its end, and raises FfmpegFailed with its words if that was
        not a good one.
        """
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        code, cpu_seconds = _ended(self.process)
        self._drain.join()
        self._guard.check()
        # SIGXCPU makes it exit with 255, as do errors of its own: the CPU time decides.
        if code != 0 and cpu_seconds >= self._guard.cpu_seconds:
            raise CpuTimeout(
                f"The video needs more than {self._guard.cpu_seconds} seconds of computing."
            )
        if code == -signal.SIGKILL:
            raise OutOfMemory(
                "The machine has too little memory for this video.", "ffmpeg was killed"
            )
        if code != 0:
            raise FfmpegFailed(
                "The video could not be processed.",
                f"ffmpeg ended with {code}: {self.stderr_tail()}",
            )

    def stderr_tail(self) -> str:
        """Returns the end of what it printed."""
        return "\n".join(self._stderr)


@contextlib.contextmanager
def run_ffmpeg(
    arguments: Sequence[str], guard: Guard, *, writes: bool = False, reads: bool = False
) -> Iterator[Ffmpeg]:
    """Runs ffmpeg while entered; on the way out it is dead, whatever happened.

    Args:
        guard: kills it when the execution is stopped, and limits its CPU time.
        writes: we write to its stdin.
        reads: we read from its stdout.
    """
    guard.check()
    stdin = [] if writes else ["-nostdin"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *stdin, "-hide_banner", "-v", "error", *arguments]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if writes else subprocess.DEVNULL,
        stdout=subprocess.PIPE if reads else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        bufsize=0,
        process_group=0,
        env=_environment(),
    )
    # Ffmpeg's own -timelimit ends in a SIGKILL without a message.
    if sys.platform == "linux":
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(
                process.pid, resource.RLIMIT_CPU, (guard.cpu_seconds, guard.cpu_seconds + 5)
            )
    assert process.stderr is not None  # noqa: S101
    stderr_lines: collections.deque[str] = collections.deque(maxlen=STDERR_TAIL_LINES)
    drain = threading.Thread(target=_drain, args=(process.stderr, stderr_lines), daemon=True)
    drain.start()
    for pipe in (process.stdin, process.stdout):
        _widen(pipe)
    try:
        with guard.owns(process):
            yield Ffmpeg(process, stderr_lines, drain, guard)
    finally:
        if process.poll() is None:
            kill_group(process)
            process.wait()
        drain.join()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
    }


def _ended(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Waits for a process; returns its exit code and the CPU seconds that it used (0 where somebody
    has waited before).
    """
    if process.returncode is not None:
        return process.returncode, 0.0
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime


def _drain(stderr: IO[bytes], stderr_lines: collections.deque[str]) -> None:
    for line in stderr:
        stderr_lines.append(line.decode(errors="replace").rstrip())


def _widen(pipe: IO[bytes] | None) -> None:
    """Lets a whole megabyte wait in the pipe, so that both sides switch less; a refusal costs only
    speed.
    """
    if pipe is not None and sys.platform == "linux":
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
