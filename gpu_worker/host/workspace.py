"""A folder for one execution's files, gone when it ends; and what crashed ones left, gone at the
next start.
"""

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "export-"


@contextlib.contextmanager
def workspace(work_dir: Path) -> Iterator[Path]:
    """Yields an empty folder, which nobody sweeps while it is entered."""
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX, dir=work_dir) as name,
        (Path(name) / "lock").open("w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(name)


def sweep_workspaces(work_dir: Path) -> int:
    """Removes the folders of workers that were killed; returns how many. The system lets go of a
    dead process's lock.
    """
    swept = 0
    for folder in work_dir.glob(f"{PREFIX}*"):
        try:
            with (folder / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # At work; or just being made, or removed, by another one.
        except OSError:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        swept += 1
    return swept
