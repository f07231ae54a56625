"""Whether the broker accepts new jobs: not while its disk is nearly full."""

import shutil
import time
from pathlib import Path

from broker.errors import Unavailable

_CHECKED_SECONDS = 2.0


class DiskSpace:
    """Whether the database has room to grow.

    Args:
        folder: the database's; None for a database elsewhere.
    """

    def __init__(self, folder: Path | None, least_bytes: int) -> None:
        self._folder = folder
        self._least = least_bytes
        self._checked_at = float("-inf")
        self._free = 0

    def check(self) -> None:
        """Raises Unavailable where the disk is nearly full."""
        if self._folder is None:
            return
        if time.monotonic() - self._checked_at > _CHECKED_SECONDS:
            self._checked_at = time.monotonic()
            self._free = shutil.disk_usage(self._folder).free
        if self._free < self._least:
            raise Unavailable(
                "disk_full", "The broker's disk is nearly full, so it takes no new jobs."
            )
