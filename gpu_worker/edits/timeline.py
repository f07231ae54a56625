"""Time: one map from output time to source time, for picture and sound alike.

A trim and speed segments are data in it, applied once. The output is a row of spans, each of which plays a stretch
of the source at one speed; within a span, source time is a straight line of output time.
"""

import bisect
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from gpu_worker.errors import InvalidParams
from schemas.edits import FramingParams

#: A moment this close before a frame counts as that frame's: floats of 1/25 and 1/30 do not meet exactly.
EPSILON_SECONDS = 1e-6


@dataclass(frozen=True)
class Span:
    """`start` to `end` of the source (seconds), played at `speed`."""

    start: float
    end: float
    speed: float = 1.0

    @property
    def output_seconds(self) -> float:
        return (self.end - self.start) / self.speed


@dataclass(frozen=True)
class Timeline:
    """What plays when. Spans are in order and do not overlap in the source."""

    spans: tuple[Span, ...]

    @classmethod
    def of(cls, params: FramingParams, duration_seconds: float) -> "Timeline":
        """Builds the timeline of a clip; what lies outside trim and clip is left out.

        Raises:
            InvalidParams: nothing of the clip is left.
        """
        start = params.start_time
        end = min(params.end_time or math.inf, duration_seconds)
        if start >= end:
            raise InvalidParams(
                f"params.start_time ({start:g} s) is not before the end of the clip ({duration_seconds:.2f} s)."
            )
        spans: list[Span] = []
        at = start
        for segment in params.segments:
            left = max(at, segment.start)
            right = min(end, segment.end if segment.end is not None else end)
            if left >= right:
                continue
            spans += [Span(at, left)] if left > at else []
            spans.append(Span(left, right, segment.speed))
            at = right
        spans += [Span(at, end)] if at < end else []
        return cls(tuple(spans))

    @property
    def start(self) -> float:
        """The first moment of the source that is shown."""
        return self.spans[0].start

    @property
    def end(self) -> float:
        """The moment of the source at which it ends."""
        return self.spans[-1].end

    @cached_property
    def _output_starts(self) -> list[float]:
        starts = [0.0]
        for span in self.spans[:-1]:
            starts.append(starts[-1] + span.output_seconds)
        return starts

    @property
    def output_seconds(self) -> float:
        """The length of the output."""
        return self._output_starts[-1] + self.spans[-1].output_seconds

    def frame_count(self, fps: Fraction) -> int:
        """Returns how many frames the output has at that rate: one at least, to within half a frame of its length."""
        return max(1, round(self.output_seconds * fps))

    def source_time(self, output_time: float) -> float:
        """Returns which moment of the source is shown; past the end, the end."""
        index = max(0, bisect.bisect_right(self._output_starts, output_time) - 1)
        span = self.spans[index]
        return min(span.end, span.start + (output_time - self._output_starts[index]) * span.speed)

    def source_frame(self, output_time: float, source_fps: Fraction) -> int:
        """Returns the index of the source frame that is on screen at that moment of the output."""
        return frame_at(self.source_time(output_time), source_fps)

    def audio_filter(self, source: str, label: str) -> str:
        """Returns ffmpeg's filter graph that puts the sound of stream `source` onto the same timeline as `label`.

        Sound that is missing at the beginning, in between or at the end is silence, so that picture and sound have
        the same length; at another speed it keeps its pitch; more than two channels are mixed down.
        """
        # Only timestamps from 0 on, with gaps filled, make "cut from a to b seconds" mean the same as for the picture.
        parts = [f"[{source}]aresample=async=1:first_pts=0,aformat=channel_layouts=stereo|mono[all]"]
        count = len(self.spans)
        copies = "".join(f"[in{n}]" for n in range(count))
        parts.append(f"[all]asplit={count}{copies}")
        for n, span in enumerate(self.spans):
            length = f"{span.output_seconds:.6f}"
            parts.append(
                f"[in{n}]atrim={span.start:.6f}:{span.end:.6f},asetpts=PTS-STARTPTS{_tempo(span.speed)}"
                f",apad=whole_dur={length},atrim=0:{length}[out{n}]"
            )
        joined = "".join(f"[out{n}]" for n in range(count))
        parts.append(f"{joined}concat=n={count}:v=0:a=1[{label}]")
        return ";".join(parts)


def frame_at(moment: float, fps: Fraction) -> int:
    """Returns the index of the frame that is on screen at a moment (seconds), at an even rate from 0 on."""
    return math.floor((moment + EPSILON_SECONDS) * fps)


def _tempo(speed: float) -> str:
    """Returns the filter that plays sound at `speed` without changing its pitch.

    Rubber Band with a short window: a beep of 0.1 s stays within 12 ms of its place at 0.5 to 4 times, and keeps the
    length exactly; ffmpeg's atempo moves it by 10 to 60 ms and drops the last tens of milliseconds.
    """
    return "" if math.isclose(speed, 1.0) else f",rubberband=tempo={speed:.9f}:window=short:transients=smooth"
