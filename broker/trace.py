"""Whose request a job comes from, as W3C Trace Context says it: `00-{trace id}-{span id}-{flags}`, a `traceparent`.

We make no spans of our own. What a caller sends is kept with the job and handed on to the worker as it came, so that every line
about the job, the broker's and the worker's, is found under the caller's trace id.
"""

import re
import secrets
from collections.abc import Sequence

import structlog

from broker.jobs.model import Job

#: Neither id is all zeros, and version ff is none; what later versions add behind the flags is not ours to read.
_VALID = re.compile(
    r"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?"
)


def received(headers: Sequence[str]) -> str:
    """Returns the request's traceparent, in version 00; a new one, not sampled, where none came, or not exactly one that is valid."""
    found = _VALID.fullmatch(headers[0]) if len(headers) == 1 else None
    if found is None or (found[2] is not None and headers[0].startswith("00")):
        return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"
    return f"00-{found[1]}"


def trace_id(traceparent: str | None) -> str | None:
    """Returns the id that all lines of one trace share; None for a job of before there were any."""
    return None if traceparent is None else traceparent.split("-")[1]


def bind_job(job: Job) -> None:
    """Has every line that this task logs from now on say which job and which trace it is about."""
    structlog.contextvars.bind_contextvars(job_id=job.id, trace_id=trace_id(job.traceparent))
