"""How often a job is tried, how long it may take, and when it is looked at: rules without I/O, in one place.

Nothing fails merely for being old. What ends an attempt is evidence: the worker's or the provider's word, or a lasting
"no such job". These rules say what follows from it.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from schemas.edits import ExportMode, Framing, MultiClipParams, OutputParams, SlowMotion
from schemas.jobs import ErrorCode, JobRequest
from schemas.overlays import AnnotateParams

#: How many attempts may fail with a code before the job does; `max_attempts` of all codes together bounds it further.
#: What is not named fails at once: the same media and the same params would fail the same way again.
TRIES: dict[ErrorCode, int] = {
    ErrorCode.WORKER_LOST: 10,
    ErrorCode.RESULT_LOST: 10,
    ErrorCode.STORAGE_UNAVAILABLE: 10,
    ErrorCode.PROVIDER_UNAVAILABLE: 10,
    ErrorCode.INTERNAL: 10,
    ErrorCode.OUT_OF_MEMORY: 2,
    ErrorCode.QUEUE_TIMEOUT: 2,
}
#: How long to wait before attempt 2, 3, … (seconds).
BACKOFF_SECONDS = (2.0, 10.0, 60.0)

#: Of its limit, what a run that was stopped for it has used at least: the provider's clock is not ours.
NEARLY = 0.95

#: How often an attempt is looked at (seconds) until it has that age.
CADENCE = ((10.0, 1.0), (60.0, 2.0), (600.0, 5.0), (float("inf"), 15.0))

#: How many looks a second are meant to be enough for all jobs together.
LOOKS_PER_SECOND = 50

#: For a video of unknown length: no camera or phone writes fewer bytes a second than this.
SLOWEST_BYTES_PER_SECOND = 40_000
LONGEST_SOURCE_SECONDS = 6 * 3600.0
#: Container start, model load, probing; never less.
BASE_SECONDS = 600.0
FETCH_BYTES_PER_SECOND = 5_000_000
#: Seconds of work for a second of output; several times what was measured on two cores, or told of a T4 (1.3 frames/s).
FAST_COST, SMOOTH_COST, QUALITY_COST = 8.0, 60.0, 120.0


def tries_again(failures: Sequence[ErrorCode], max_attempts: int) -> bool:
    """Whether a job is tried again after attempts that failed with these codes, the newest last."""
    newest = failures[-1]
    return len(failures) < max_attempts and failures.count(newest) < TRIES.get(newest, 1)


def timeout_code(started: bool, ran_seconds: float, limit_seconds: int | None) -> ErrorCode:
    """Returns what "timed out" means for an attempt; providers give three things that one name.

    A job that no worker took has expired in the queue, and one that ended before its limit was lost with its worker
    (providers/runpod.py has the source).

    Args:
        started: a worker has taken the attempt.
        ran_seconds: how long the run took, at most.
        limit_seconds: how long the run was allowed to take; None where that is not known.
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
    """How long an attempt may run once a worker has it, and how long it may exist at the provider at all; seconds."""

    execution: int
    ttl: int


def deadlines(params: OutputParams, source_bytes: int, longest: int, queue: int) -> Deadlines:
    """Computes an attempt's deadlines from what it has to make.

    They are brakes for a run that would go on for ever, paid by the second, and no estimate.

    Args:
        source_bytes: of all its videos together.
        longest: the limit of the settings.
        queue: how long it may wait for a worker.
    """
    unknown = min(LONGEST_SOURCE_SECONDS, source_bytes / SLOWEST_BYTES_PER_SECOND)
    work = sum(seconds * cost for seconds, cost in _parts(params, unknown))
    execution = min(longest, int(BASE_SECONDS + source_bytes / FETCH_BYTES_PER_SECOND + work))
    return Deadlines(execution, execution + queue)


def _parts(params: OutputParams, unknown: float) -> Iterable[tuple[float, float]]:
    """Yields (seconds of output, cost of each) for every clip."""
    plain = QUALITY_COST if params.export_mode is ExportMode.QUALITY else FAST_COST
    if isinstance(params, AnnotateParams):
        return [(clip.end_time - clip.start_time, plain) for clip in params.clips]
    clips = params.clips if isinstance(params, MultiClipParams) else (params,)
    return [_part(clip, unknown, plain) for clip in clips if isinstance(clip, Framing)]


def _part(clip: Framing, unknown: float, plain: float) -> tuple[float, float]:
    shown = (
        clip.end_time if clip.end_time is not None else clip.start_time + unknown
    ) - clip.start_time
    slowest = min([1.0, *(segment.speed for segment in clip.segments)])
    smooth = slowest < 1 and clip.slow_motion is SlowMotion.INTERPOLATE
    return shown / slowest, max(plain, SMOOTH_COST if smooth else 0.0)


def output_seconds(params: OutputParams, source_seconds: float | None = None) -> float | None:
    """Returns how long the result will be, transitions aside; None where a clip goes to its source's unknown end."""
    if isinstance(params, AnnotateParams):
        return sum(clip.end_time - clip.start_time for clip in params.clips)
    clips = params.clips if isinstance(params, MultiClipParams) else (params,)
    lengths = [_shown_seconds(clip, source_seconds) for clip in clips if isinstance(clip, Framing)]
    known = [length for length in lengths if length is not None]
    return sum(known) if len(known) == len(lengths) else None


def longest_output(asked: JobRequest, sizes: Mapping[str, int | None]) -> float:
    """Returns what the result of a job that names no end may have in seconds at most, by the bytes of its sources.

    Args:
        sizes: by key; one that is missing, or None, is as long as any may be.
    """
    params = asked.params
    clips = params.clips if isinstance(params, MultiClipParams) else (params,)
    total = 0.0
    for clip in clips:
        size = sizes.get(getattr(clip, "input_key", None) or asked.input_key or "")
        source = LONGEST_SOURCE_SECONDS if size is None else size / SLOWEST_BYTES_PER_SECOND
        shown = (
            _shown_seconds(clip, min(source, LONGEST_SOURCE_SECONDS))
            if isinstance(clip, Framing)
            else 0.0
        )
        total += shown or 0.0
    return total


def _shown_seconds(clip: Framing, source_seconds: float | None) -> float | None:
    end = clip.end_time if clip.end_time is not None else source_seconds
    if end is None:
        return None
    length = max(0.0, end - clip.start_time)
    for segment in clip.segments:
        last = end if segment.end is None else min(segment.end, end)
        inside = max(0.0, last - max(segment.start, clip.start_time))
        length += inside / segment.speed - inside
    return length


def wait_seconds(age_seconds: float, open_jobs: int = 0) -> float:
    """Returns when to look at an attempt of that age again: every second at first, soon rarer.

    With thousands of open jobs rarer still, so that all looks together stay within a bound. ±20 %, so that jobs do not
    march in step.
    """
    base = next(seconds for until, seconds in CADENCE if age_seconds < until)
    base = max(base, open_jobs / LOOKS_PER_SECOND)
    return base * random.uniform(0.8, 1.2)  # noqa: S311  # jitter, not a secret
