"""Broker or worker as they are, but they die at a commit or a call that a file names.

scripts/chaos.py starts it in place of the real command. A boundary is before or after a commit or a
call. The file in CHAOS_FILE names the boundary, counted from now, at which to die by kill -9; while
it is empty, or not there, nothing happens. Each boundary's name is appended to `CHAOS_FILE.trace`.
"""

import functools
import inspect
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FILE = Path(os.environ["CHAOS_FILE"])
TRACE = FILE.with_name(FILE.name + ".trace")
_LOCK = threading.Lock()


def boundary(name: str) -> None:
    """Counts one; dies at the one that was chosen."""
    with _LOCK:
        with TRACE.open("a") as trace:
            trace.write(f"{name}\n")
        armed = FILE.read_text() if FILE.exists() else ""
        if not armed:
            return
        left = int(armed) - 1
        FILE.write_text(str(left) if left > 0 else "")
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


def bound(owner: Any, names: Sequence[str]) -> None:
    """Puts a boundary before and after functions of a class or module."""
    for name in names:
        setattr(
            owner,
            name,
            _bounded(f"{getattr(owner, '__name__', owner)}.{name}", getattr(owner, name)),
        )


def _bounded(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(work):

        @functools.wraps(work)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            boundary(f"before {name}")
            result = await work(*args, **kwargs)
            boundary(f"after {name}")
            return result

        return awaited

    @functools.wraps(work)
    def called(*args: Any, **kwargs: Any) -> Any:
        boundary(f"before {name}")
        result = work(*args, **kwargs)
        boundary(f"after {name}")
        return result

    return called


def main(part: str) -> None:
    """Runs the part."""
    if part == "broker":
        from broker import bucket as storage
        from broker.cli import main as cli
        from broker.providers import runpod
        from broker.store import jobs as store

        bound(store.JobStore, ("add", "transition", "touch", "note", "hint"))
        bound(storage.Bucket, ("size", "read", "write"))
        bound(runpod.RunPod, ("_send",))
        if "MODAL_TOKEN_ID" in os.environ:
            from broker.providers import modal

            bound(modal.Modal, ("_within",))
        sys.argv = ["reelbroker", "serve"]
        cli.main()
        return
    from gpu_worker import bucket as worker_storage

    bound(worker_storage.Bucket, ("read", "write", "write_once", "fetch", "upload", "delete"))
    if part == "worker":
        from gpu_worker import handler

        bound(handler, ("send_result",))
        sys.argv = ["handler"]
        handler.main()
    else:
        runpy.run_module("modal._container_entrypoint", run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
