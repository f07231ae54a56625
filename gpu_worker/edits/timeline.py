"""Time: one map from output time to the moments of the sources, for picture and sound alike.

Trims, speeds and transitions are data in it, applied once. A clip is a row of spans, each of which
plays a stretch of its source at one speed; the timeline is a row of clips with a transition between
each two.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from gpu_worker.errors import InvalidParams
from gpu_worker.media.sound import LAYOUT, SAMPLE_RATE
from schemas.edits import Framing, Transition, TransitionType

#: A moment this close before a frame counts as that frame's: floats of 1/25 and 1/30 do not meet
#: exactly.
EPSILON_SECONDS = 1e-6
#: Sound that has drifted so far from its timestamps is set right, by silence or a cut.
HARD_SECONDS = 0.03
#: Sets times by counting samples: what `apad` makes where there is no sound at all has none.
COUNTED = "asetpts=N/SR/TB"
#: Sound that is shorter is resampled where its speed changes, or is silence.
BLIP_SECONDS, SILENT_SECONDS = 0.1, 0.02
CUT = Transition()


@dataclass(frozen=True)
class Span:
    """`start` to `end` of the source (seconds), played at `speed`."""

    start: float
    end: float
    speed: float = 1.0

    @property
    def output_seconds(self) -> float:
        return (self.end - self.start) / self.speed

    @property
    def is_silent(self) -> bool:
        """Whether it is too short for its sound: ffmpeg's resampler makes nothing of it."""
        return min(self.end - self.start, self.output_seconds) < SILENT_SECONDS


@dataclass(frozen=True)
class ClipTime:
    """What of one source plays when, from the clip's own beginning on. Spans are in order and do
    not overlap.
    """

    spans: tuple[Span, ...]

    @classmethod
    def of(cls, framing: Framing, duration_seconds: float, where: str = "params") -> "ClipTime":
        """Builds the time of a clip; what lies outside trim and source is left out.

        Raises:
            InvalidParams: nothing of the clip is left; names it by `where`.
        """
        start = framing.start_time
        end = min(framing.end_time or math.inf, duration_seconds)
        if start >= end:
            raise InvalidParams(
                f"{where}.start_time ({start:g} s) is not before the end of the video "
                f"({duration_seconds:.2f} s)."
            )
        spans: list[Span] = []
        at = start
        for segment in framing.segments:
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
    def span_starts(self) -> list[float]:
        """When each span begins, in seconds of the clip."""
        starts = [0.0]
        for span in self.spans[:-1]:
            starts.append(starts[-1] + span.output_seconds)
        return starts

    @property
    def output_seconds(self) -> float:
        """The length of the clip in the output."""
        return self.span_starts[-1] + self.spans[-1].output_seconds

    def span_at(self, clip_time: float) -> int:
        """Returns the index of the span that plays at that moment of the clip; past the end, the
        last.
        """
        return max(0, bisect.bisect_right(self.span_starts, clip_time + EPSILON_SECONDS) - 1)

    def source_time(self, clip_time: float) -> float:
        """Returns which moment of the source is shown; past the end, the end."""
        index = self.span_at(clip_time)
        span = self.spans[index]
        return min(
            span.end, span.start + max(0.0, clip_time - self.span_starts[index]) * span.speed
        )

    def sound_filter(self, source: str, seek: float, label: str) -> list[str]:
        """Returns ffmpeg's filters that put the sound of `source`, which begins at `seek` seconds,
        onto this time.

        Sound that is missing at the beginning, in between or at the end is silence, so that picture
        and sound have the same length; at another speed it keeps its pitch; more than two channels
        are mixed down.
        """
        # Only timestamps from 0 on, with gaps filled, make "cut from a to b seconds" mean the same
        # as for the picture.
        even = (
            f"aresample={SAMPLE_RATE}:async=1:min_hard_comp={HARD_SECONDS}:first_pts=0,"
            f"aformat=sample_fmts=fltp:channel_layouts={LAYOUT}"
        )
        count = len(self.spans)
        heard = [n for n, span in enumerate(self.spans) if not span.is_silent]
        copies = "".join(f"[{label}in{n}]" for n in heard)
        parts = [f"[{source}]{even},asplit={len(heard)}{copies}"] if heard else []
        for n, span in enumerate(self.spans):
            if span.is_silent:
                parts.append(_silence(span.output_seconds, f"{label}out{n}"))
                continue
            length = f"{span.output_seconds:.6f}"
            tempo = _tempo(span.speed, span.end - span.start)
            parts.append(
                f"[{label}in{n}]atrim={span.start - seek:.6f}:{span.end - seek:.6f},"
                f"{COUNTED}{tempo},apad=whole_dur={length},{COUNTED},atrim=0:{length}"
                f"[{label}out{n}]"
            )
        joined = "".join(f"[{label}out{n}]" for n in range(count))
        return [*parts, f"{joined}concat=n={count}:v=0:a=1[{label}]"]

    def silence_filter(self, label: str) -> list[str]:
        """Returns the filter for a clip without sound."""
        return [_silence(self.output_seconds, label)]


@dataclass(frozen=True)
class Shown:
    """A clip on screen: which, at which moment of its own, and how much of the picture it is (0 to
    1).
    """

    clip: int
    clip_time: float
    weight: float = 1.0


@dataclass(frozen=True)
class Timeline:
    """The clips of an output in their order.

    A `cut` and a `fade` leave their lengths as they are; a `dissolve` lets neighbours overlap, so
    that the output is shorter by its duration for each. What is missing to a weight of 1 is black.
    """

    clips: tuple[ClipTime, ...]
    transition: Transition = CUT

    def __post_init__(self) -> None:
        """Refuses clips that are too short for their transitions, by name."""
        if self.transition.type is TransitionType.CUT:
            return
        for index, clip in enumerate(self.clips):
            sides = (index > 0) + (index + 1 < len(self.clips))
            needed = sides * self.transition.duration
            if clip.output_seconds < needed - EPSILON_SECONDS:
                raise InvalidParams(
                    f"params.clips[{index}] lasts {clip.output_seconds:.2f} s, but its "
                    f"transitions need {needed:g} s."
                )

    @cached_property
    def clip_starts(self) -> list[float]:
        """When each clip begins, in seconds of the output."""
        starts = [0.0]
        for clip in self.clips[:-1]:
            starts.append(starts[-1] + clip.output_seconds - self._overlap)
        return starts

    @property
    def _overlap(self) -> float:
        return self.transition.duration if self.transition.type is TransitionType.DISSOLVE else 0.0

    @property
    def output_seconds(self) -> float:
        """The length of the output."""
        return self.clip_starts[-1] + self.clips[-1].output_seconds

    def frame_count(self, fps: Fraction) -> int:
        """Returns how many frames the output has at that rate: one at least, to within half a frame
        of its length.
        """
        return max(1, round(self.output_seconds * fps))

    def shown(self, output_time: float) -> list[Shown]:
        """Returns what is on screen: one clip, or two where they dissolve; a weight below 1 in all
        is towards black.
        """
        index = max(0, bisect.bisect_right(self.clip_starts, output_time + EPSILON_SECONDS) - 1)
        here = max(0.0, output_time - self.clip_starts[index])
        duration = self.transition.duration
        match self.transition.type:
            case TransitionType.CUT:
                return [Shown(index, here)]
            case TransitionType.FADE:
                left = self.clips[index].output_seconds - here
                rise = here / duration if index > 0 else 1.0
                fall = left / duration if index + 1 < len(self.clips) else 1.0
                return [Shown(index, here, min(1.0, rise, max(0.0, fall)))]
            case TransitionType.DISSOLVE:
                part = here / duration
                if index == 0 or part >= 1:
                    return [Shown(index, here)]
                before = output_time - self.clip_starts[index - 1]
                return [Shown(index - 1, before, 1 - part), Shown(index, here, part)]

    def sound_filter(self, sources: Sequence[tuple[str, float] | None], label: str) -> str:
        """Returns ffmpeg's filter graph for the sound of all clips, with the same transitions as
        the picture.

        Args:
            sources: for each clip its stream and the moment at which that begins; None for one
                without sound.
        """
        parts: list[str] = []
        for index, (clip, source) in enumerate(zip(self.clips, sources, strict=True)):
            name = f"c{index}"
            parts += (
                clip.silence_filter(name) if source is None else clip.sound_filter(*source, name)
            )
        parts += self._joined(label)
        return ";".join(parts)

    def _joined(self, label: str) -> list[str]:
        last = len(self.clips) - 1
        d = self.transition.duration
        if self.transition.type is TransitionType.DISSOLVE and last > 0:
            names = ["c0", *(f"x{n}" for n in range(1, last)), label]
            return [
                f"[{names[n - 1]}][c{n}]acrossfade=ns={round(d * SAMPLE_RATE)}:c1=tri:c2=tri"
                f"[{names[n]}]"
                for n in range(1, last + 1)
            ]
        if self.transition.type is not TransitionType.FADE or last == 0:
            names = [f"c{n}" for n in range(last + 1)]
            return [_concat(names, label)]
        faded = []
        for n, clip in enumerate(self.clips):
            rise = f"afade=t=in:d={d:g}:curve=tri" if n > 0 else ""
            fall = (
                f"afade=t=out:st={clip.output_seconds - d:.6f}:d={d:g}:curve=tri"
                if n < last
                else ""
            )
            faded.append(f"[c{n}]{','.join(filter(None, (rise, fall)))}[f{n}]")
        return [*faded, _concat([f"f{n}" for n in range(last + 1)], label)]


@dataclass(frozen=True)
class Part:
    """Number `number` (from 0) of `of` stretches of an output, which together have all frames."""

    number: int = 0
    of: int = 1

    @property
    def is_last(self) -> bool:
        return self.number == self.of - 1

    def frames(self, count: int) -> range:
        """Returns the frames of this part, of `count`; none is empty where there are enough."""
        return range(count * self.number // self.of, count * (self.number + 1) // self.of)


def _silence(seconds: float, label: str) -> str:
    return f"anullsrc=r={SAMPLE_RATE}:cl={LAYOUT},atrim=0:{seconds:.6f}[{label}]"


def frame_at(moment: float, fps: Fraction) -> int:
    """Returns the index of the frame that is on screen at a moment (seconds), at an even rate from
    0 on.
    """
    return math.floor((moment + EPSILON_SECONDS) * fps)


def is_shown(start: float, end: float, moment: float) -> bool:
    """True for a moment from `start` to before `end`, all in seconds."""
    return start - EPSILON_SECONDS <= moment < end - EPSILON_SECONDS


def fade_at(moment: float, start: float, end: float, seconds: float) -> float:
    """Returns how far something shown from `start` to `end` is faded in (0 to 1); too short for
    both fades, fully.
    """
    if seconds <= 0 or end - start < 2 * seconds:
        return 1.0
    return max(0.0, min(1.0, (moment - start) / seconds, (end - moment) / seconds))


def _concat(names: Sequence[str], label: str) -> str:
    return f"{''.join(f'[{name}]' for name in names)}concat=n={len(names)}:v=0:a=1[{label}]"


def _tempo(speed: float, seconds: float) -> str:
    """Returns the filter that plays so many seconds of sound at `speed` without changing the pitch.

    Rubber Band with a short window: a beep of 0.1 s stays within 12 ms of its place at 0.5 to 4
    times, and keeps the length exactly; ffmpeg's atempo moves it by 10 to 60 ms and drops the last
    tens of milliseconds. Rubber Band refuses what is shorter than its window: a blip, in which
    nobody hears a pitch, is resampled.
    """
    if math.isclose(speed, 1.0):
        return ""
    if seconds < BLIP_SECONDS:
        return f",asetrate={round(SAMPLE_RATE * speed)},aresample={SAMPLE_RATE}"
    # Nor does it take sound that ends too early.
    whole = f",apad=whole_dur={seconds:.6f},{COUNTED}"
    return f"{whole},rubberband=tempo={speed:.9f}:window=short:transients=smooth"
