"""Moments: integer milliseconds since the epoch inside, ISO 8601 outside."""

import time
from datetime import UTC, datetime

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def now_ms() -> int:
    """Returns the wall clock in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def iso(moment_ms: int) -> str:
    """Returns a moment as ISO 8601 in UTC, with milliseconds."""
    return datetime.fromtimestamp(moment_ms / 1000, UTC).isoformat(timespec="milliseconds")
