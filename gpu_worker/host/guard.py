"""What ends an execution early: a cancel, a time limit. It kills the ffmpegs at once, so that no
read waits for ever.
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator

from gpu_worker.errors import ExecutionTimeout, WorkerError


class Guard:
    """One execution's brake; safe to use from any thread.

    Args:
        cpu_seconds: how much CPU time each ffmpeg may use.
    """

    def __init__(self, cpu_seconds: int = 3600) -> None:
        self.cpu_seconds = cpu_seconds
        self._lock = threading.Lock()
        self._reason: WorkerError | None = None
        self._processes: set[subprocess.Popen[bytes]] = set()

    def stop(self, reason: WorkerError) -> None:
        """Ends the execution with `reason`; the first one stays."""
        with self._lock:
            self._reason = self._reason or reason
            for process in self._processes:
                kill_group(process)

    def check(self) -> None:
        """Raises the reason, if there is one."""
        if self._reason is not None:
            raise self._reason

    @property
    def stopped(self) -> bool:
        return self._reason is not None

    @contextlib.contextmanager
    def owns(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Kills the process group when stopped; also when it had been stopped before."""
        with self._lock:
            self._processes.add(process)
            if self._reason is not None:
                kill_group(process)
        try:
            yield
        finally:
            with self._lock:
                self._processes.discard(process)

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Stops what is done inside after that many seconds of wall clock."""
        reason = ExecutionTimeout(f"The export took longer than {seconds:g} seconds.")
        timer = threading.Timer(seconds, self.stop, [reason])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a process that leads its own group, and all that it started."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
