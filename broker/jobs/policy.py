"""How often a job is tried, how long it may take, and when it is due: rules without I/O.

Age alone never fails a job. Evidence ends an attempt: the worker's or the provider's report, or a
lasting "no such job". These rules state what follows.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.edits import ExportMode, Framing, MultiClipParams, OutputParams, SlowMotion
from schemas.jobs import ErrorCode, JobRequest
from schemas.overlays import AnnotatedClip, AnnotateParams

#: How many attempts may fail with a code before the job fails; `max_attempts` bounds all codes
#: together. Any other code fails the job at once: the same input would fail the same way again.
TRIES: dict[ErrorCode, int] = {
    ErrorCode.WORKER_LOST: 10,
    ErrorCode.RESULT_LOST: 10,
    ErrorCode.STORAGE_UNAVAILABLE: 10,
    ErrorCode.PROVIDER_UNAVAILABLE: 10,
    ErrorCode.INTERNAL: 10,
    ErrorCode.OUT_OF_MEMORY: 2,
    ErrorCode.QUEUE_TIMEOUT: 2,
}
#: How often a provider may deliver one attempt: a provider that restarts the jobs of workers that
#: died does so without end. The worker refuses the next delivery.
MOST_DELIVERIES = 3
#: How long to wait before attempt 2, 3, … (seconds).
BACKOFF_SECONDS = (2.0, 10.0, 60.0)
#: The least share of its limit that a run stopped at the limit has used: clocks differ.
NEARLY = 0.95
#: The seconds between two looks at an attempt, until the attempt has that age.
CADENCE = ((10.0, 1.0), (60.0, 2.0), (600.0, 5.0), (float("inf"), 15.0))
#: How many jobs are reconciled in a second when very many are open.
RECONCILED_PER_SECOND = 50

#: For a video of unknown length: no camera or phone writes fewer bytes a second.
SLOWEST_BYTES_PER_SECOND = 40_000
LONGEST_SOURCE_SECONDS = 6 * 3600.0
#: Container start, model load and probing.
BASE_SECONDS = 600.0
FETCH_BYTES_PER_SECOND = 5_000_000
#: Seconds of work for a second of output: several times the time that two CPU cores took, or a T4
#: as reported (1.3 frames/s).
FAST_COST, SMOOTH_COST, QUALITY_COST = 8.0, 60.0, 120.0


def tries_again(failures: Sequence[ErrorCode], max_attempts: int) -> bool:
    """Whether another attempt follows attempts that failed with these codes, the newest last."""
    newest = failures[-1]
    return len(failures) < max_attempts and failures.count(newest) < TRIES.get(newest, 1)


def timeout_code(started: bool, ran_seconds: float, limit_seconds: int | None) -> ErrorCode:
    """Returns what "timed out" means for an attempt; providers use one name for three things.

    A job that no worker took expired in the queue. A job that ended before its limit was lost with
    its worker. (The providers' modules name the sources.)

    Args:
        started: a worker took the attempt.
        ran_seconds: how long the run took, at most.
        limit_seconds: how long the run was allowed to take; None where unknown.
    """
    if not started:
        return ErrorCode.QUEUE_TIMEOUT
    if limit_seconds is not None and ran_seconds < limit_seconds * NEARLY:
        return ErrorCode.WORKER_LOST
    return ErrorCode.EXECUTION_TIMEOUT


def backoff_seconds(failed: int) -> float:
    """Returns how long to wait after so many failed attempts."""
    return BACKOFF_SECONDS[min(failed, len(BACKOFF_SECONDS)) - 1]


@dataclass(frozen=True)
class Deadlines:
    """Seconds that an attempt may run, and that it may exist at the provider, run or not."""

    execution: int
    ttl: int


def deadlines(params: OutputParams, source_bytes: int, longest: int, queue: int) -> Deadlines:
    """Computes an attempt's deadlines: a brake for a run without end, not an estimate.

    Args:
        source_bytes: of all its videos together.
        longest: the limit of the settings.
        queue: how long the attempt may wait for a worker.
    """
    unknown = min(LONGEST_SOURCE_SECONDS, source_bytes / SLOWEST_BYTES_PER_SECOND)
    least = QUALITY_COST if params.export_mode is ExportMode.QUALITY else FAST_COST
    work = sum(_work_seconds(clip, unknown, least) for clip in _clips(params))
    execution = min(longest, int(BASE_SECONDS + source_bytes / FETCH_BYTES_PER_SECOND + work))
    return Deadlines(execution, execution + queue)


def output_seconds(params: OutputParams, source_seconds: float | None = None) -> float | None:
    """Returns the length of the output without its transitions.

    None where a clip goes to the unknown end of its source.
    """
    total = 0.0
    for clip in _clips(params):
        seconds = _clip_seconds(clip, source_seconds)
        if seconds is None:
            return None
        total += seconds
    return total


def longest_output(request: JobRequest, sizes: Mapping[str, int | None]) -> float:
    """Returns the most seconds that an output without a named end may have.

    Args:
        sizes: of the sources, by key; a missing or None size allows the longest source.
    """
    total = 0.0
    for clip in _clips(request.params):
        size = sizes.get(getattr(clip, "input_key", None) or request.input_key or "")
        source = LONGEST_SOURCE_SECONDS if size is None else size / SLOWEST_BYTES_PER_SECOND
        total += _clip_seconds(clip, min(source, LONGEST_SOURCE_SECONDS)) or 0.0
    return total


def wait_seconds(age_seconds: float, open_jobs: int = 0) -> float:
    """Returns how long to wait before the next look at an attempt of that age.

    Many open jobs lengthen the wait, so that all looks together stay within a bound. A jitter of
    20 % spreads jobs that were submitted together.
    """
    base = next(seconds for until, seconds in CADENCE if age_seconds < until)
    base = max(base, open_jobs / RECONCILED_PER_SECOND)
    return base * random.uniform(0.8, 1.2)  # noqa: S311


def _clips(params: OutputParams) -> Sequence[Framing | AnnotatedClip]:
    clips = params.clips if isinstance(params, MultiClipParams | AnnotateParams) else (params,)
    return [clip for clip in clips if isinstance(clip, Framing | AnnotatedClip)]


def _clip_seconds(clip: Framing | AnnotatedClip, source_seconds: float | None) -> float | None:
    """Returns the seconds of output that a clip makes; None where its end is unknown."""
    if isinstance(clip, AnnotatedClip):
        return clip.end_time - clip.start_time
    end = source_seconds if clip.end_time is None else clip.end_time
    if end is None:
        return None
    length = max(0.0, end - clip.start_time)
    for segment in clip.segments:
        last = end if segment.end is None else min(segment.end, end)
        inside = max(0.0, last - max(segment.start, clip.start_time))
        length += inside / segment.speed - inside
    return length


def _work_seconds(clip: Framing | AnnotatedClip, unknown: float, least: float) -> float:
    """Returns the seconds of work for a clip; each second of its output costs `least` or more."""
    seconds = _clip_seconds(clip, clip.start_time + unknown) or 0.0
    if isinstance(clip, Framing) and clip.slow_motion is SlowMotion.INTERPOLATE:
        is_slow = any(segment.speed < 1 for segment in clip.segments)
        return seconds * (max(least, SMOOTH_COST) if is_slow else least)
    return seconds * least
