"""The trace of a job's request, as a W3C `traceparent`: `00-{trace id}-{span id}-{flags}`.

The broker creates no spans. It stores the caller's traceparent with the job and passes it on to the
worker, so that all log lines about the job have the caller's trace id.
"""

import re
import secrets
from collections.abc import Sequence

import structlog

from broker.jobs.model import Job

#: No id is all zeros, and version ff is invalid. Later versions may add fields after the flags.
_VALID = re.compile(
    r"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?"
)


def received(headers: Sequence[str]) -> str:
    """Returns the request's traceparent in version 00, or a new one that is not sampled."""
    found = _VALID.fullmatch(headers[0]) if len(headers) == 1 else None
    if found is None or (found[2] is not None and headers[0].startswith("00")):
        return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"
    return f"00-{found[1]}"


def trace_id(traceparent: str | None) -> str | None:
    """Returns the trace id of a traceparent; None for a job of an older broker without one."""
    return None if traceparent is None else traceparent.split("-")[1]


def bind_job(job: Job) -> None:
    """Adds the job's id and trace id to every line that this task logs from now on."""
    structlog.contextvars.bind_contextvars(job_id=job.id, trace_id=trace_id(job.traceparent))
