"""A composition becomes a file: decode ▸ edit ▸ encode, three stages side by side, in constant
memory.
"""

import bisect
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch

from gpu_worker.edits.compose import Clip, Composition
from gpu_worker.edits.timeline import EPSILON_SECONDS, Part, Shown, frame_at
from gpu_worker.edits.transition import mix
from gpu_worker.errors import InvalidMedia, OutOfMemory, OutputTooLong
from gpu_worker.host.accelerator import accelerator, is_out_of_memory
from gpu_worker.host.guard import Guard
from gpu_worker.host.limits import memory_bytes
from gpu_worker.media.decode import decode
from gpu_worker.media.encode import Quality, encode
from gpu_worker.media.frames import Frame, frame_bytes
from gpu_worker.media.join import Piece, join
from gpu_worker.media.sound import SOUND, Heard, Sound, sound_track
from gpu_worker.media.transfer import Landing
from gpu_worker.render.stages import DEPTH, Ahead, Behind

#: Sound is read from that long before it is needed, so that decoders have settled when it is.
SOUND_RUN_IN_SECONDS = 2.0
#: How far before a border motion interpolation begins: from 4 on, its pictures are the same.
RUN_IN_FRAMES = 4
#: Of frames between two stages: at most so many bytes, and no more than a share of the memory.
WAITING_BYTES, WAITING_SHARE = 512 << 20, 1 / 64


@dataclass
class Spent:
    """Where the time of an edit went, in seconds of wall clock."""

    decode: float = 0.0
    infer: float = 0.0
    encode: float = 0.0

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Adds what is spent inside."""
        began = time.monotonic()
        try:
            yield
        finally:
            setattr(self, what, getattr(self, what) + time.monotonic() - began)


@dataclass(frozen=True)
class OutputLimits:
    """How large a result may become."""

    seconds: float = 3600
    bytes: int = 8 << 30


def render(
    composition: Composition,
    path: Path,
    quality: Quality,
    guard: Guard,
    progress: Callable[[int, int], None],
    limits: OutputLimits = OutputLimits(),
) -> Spent:
    """Writes the composition to `path`, calling `progress(frames done, frames in all)` after each.

    Returns:
        What the edit waited for, and worked on.

    Raises:
        WorkerError: a source is damaged, memory or a limit is exceeded, or the guard has stopped
            it.
    """
    if composition.timeline.output_seconds > limits.seconds:
        raise OutputTooLong(
            f"The result would be {composition.timeline.output_seconds:.0f} seconds long; "
            f"{limits.seconds:g} are made."
        )
    sound = _sound(composition)
    picture_path, sound_path = path.with_suffix(".picture.mp4"), path.with_suffix(".m4a")
    with sound_track(sound, sound_path, guard) if sound else contextlib.nullcontext() as track:

        def report(done: int, count: int) -> None:
            if track is not None:
                track.check()
            progress(done, count)

        spent = render_part(composition, Part(), picture_path, quality, guard, report, limits)
        if track is not None:
            track.finish()
        count = composition.timeline.frame_count(composition.fps)
        heard = sound_path if track else None
        join([Piece(picture_path)], heard, path, composition.fps, count)
        picture_path.unlink()
    guard.check()
    return spent


def render_part(
    composition: Composition,
    part: Part,
    path: Path,
    quality: Quality,
    guard: Guard,
    progress: Callable[[int, int], None],
    limits: OutputLimits = OutputLimits(),
) -> Spent:
    """Writes the pictures of a part to `path`: the same ones as those of the whole."""
    fps = composition.fps
    frames = part.frames(composition.timeline.frame_count(fps))
    with (
        encode(path, composition.size, fps, quality, guard, limits.bytes) as encoder,
        Behind(encoder.write, _depth(composition.size, composition.batch)) as written,
        Stage(composition, guard, float(frames.start / fps)) as stage,
    ):
        moments = (float(index / fps) for index in frames)
        for done, picture in enumerate(stage.pictures(moments), start=1):
            guard.check()
            with stage.spent.on("encode"):
                written.put(picture)
            progress(done, len(frames))
        # What of a clip comes after a part is for the next part to read.
        if part.is_last:
            stage.finish()
        return stage.spent


class Stage:
    """Where clips are brought on when they begin, and taken off when they have ended.

    Args:
        since: the first moment of the output that is asked for, in seconds.
    """

    def __init__(self, composition: Composition, guard: Guard, since: float = 0.0) -> None:
        self._composition = composition
        self._guard = guard
        self._since = {one.clip: one.clip_time for one in composition.timeline.shown(since)}
        self._on: dict[int, Footage] = {}
        self.spent = Spent()

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        for footage in self._on.values():
            footage.close()

    def finish(self) -> None:
        """Takes all clips off; raises the errors of their ends."""
        self._keep(set())

    def pictures(self, output_times: Iterable[float]) -> Iterator[Frame]:
        """Yields the output's pictures at moments that never fall; on the host.

        While pictures are taken, the device works on those that follow.
        """
        landing: Landing | None = None
        for batch in self._batches(output_times):
            with torch.inference_mode():
                following = Landing(self._made(batch))
            yield from self._landed(landing)
            landing = following
        yield from self._landed(landing)

    def _batches(self, output_times: Iterable[float]) -> Iterator[list[list[Shown]]]:
        """Groups moments that show the same clips, as many as their engines want at once."""
        batch: list[list[Shown]] = []
        for output_time in output_times:
            shown = self._composition.timeline.shown(output_time)
            if batch and [one.clip for one in shown] != [one.clip for one in batch[0]]:
                yield batch
                batch = []
            batch.append(shown)
            clips = [self._composition.clips[one.clip] for one in shown]
            if len(batch) >= min(clip.look.engine.batch for clip in clips):
                yield batch
                batch = []
        if batch:
            yield batch

    def _made(self, batch: list[list[Shown]]) -> list[Frame]:
        """Makes one picture of each moment of a batch."""
        self._keep({one.clip for one in batch[0]})
        try:
            looks = [self._look(shown) for shown in zip(*batch, strict=True)]
            return [
                mix([(look[number], one.weight) for look, one in zip(looks, shown, strict=True)])
                for number, shown in enumerate(batch)
            ]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                "The GPU has too little memory for this video.", str(error)
            ) from error

    def _look(self, shown: Sequence[Shown]) -> list[Frame]:
        """Makes the pictures of one clip at several of its moments."""
        index = shown[0].clip
        clip = self._composition.clips[index]
        self._bring_on(index)
        # Its decoder starts while this clip's frames are made.
        self._bring_on(index + 1)
        with self._naming(clip), self.spent.on("decode"):
            frames = [self._on[index].at(one.clip_time) for one in shown]
        with self.spent.on("infer"):
            moments = [clip.time.source_time(one.clip_time) for one in shown]
            return _looks(clip, frames, moments)

    def _bring_on(self, index: int) -> None:
        """Opens a clip's decoder, where there is such a clip and its decoder is not open."""
        clips = self._composition.clips
        if index < len(clips) and index not in self._on:
            since = self._since.get(index, 0.0)
            footage = Footage(clips[index], self._composition.fps, self._guard, since)
            self._on[index] = footage
            with self._naming(clips[index]):
                footage.open()

    def _landed(self, landing: Landing | None) -> Iterator[Frame]:
        if landing is not None:
            with self.spent.on("infer"):
                frames = landing.frames()
            yield from frames

    def _keep(self, wanted: set[int]) -> None:
        # Clips come one after the other: a later one has been opened for what follows.
        for index in [one for one in self._on if not wanted or one < min(wanted)]:
            footage = self._on.pop(index)
            with contextlib.closing(footage), self._naming(self._composition.clips[index]):
                footage.finish()
            self._composition.clips[index].look.let_go()

    @contextlib.contextmanager
    def _naming(self, clip: Clip) -> Iterator[None]:
        """Names the damaged clip, where there are several."""
        try:
            yield
        except InvalidMedia as error:
            if len(self._composition.clips) == 1:
                raise
            raise InvalidMedia(f"{clip.name}: {error}", error.detail) from error


class Footage:
    """One clip's frames by its own time, going forward only; a decoder for each run of it.

    Args:
        since: the first moment of the clip that is asked for, in seconds.
    """

    def __init__(self, clip: Clip, output_fps: Fraction, guard: Guard, since: float = 0.0) -> None:
        self._clip = clip
        self._guard = guard
        self._runs = _runs_from(_runs(clip, output_fps), clip, since)
        self._next = 0
        self._run: _Run | None = None
        self._open = contextlib.ExitStack()
        self._reader: _Reader | None = None

    def open(self) -> None:
        """Starts the decoder of the first run."""
        self._reader = self._started(self._runs[0])

    def close(self) -> None:
        """Ends the decoder."""
        self._open.close()

    def at(self, clip_time: float) -> Frame:
        """Returns the frame that is on screen at that moment of the clip."""
        while (
            self._next < len(self._runs)
            and self._runs[self._next].begin <= clip_time + EPSILON_SECONDS
        ):
            # The first run's decoder may be open already.
            if self._next > 0:
                self.finish()
                self._reader = None
            self._run = self._runs[self._next]
            self._next += 1
        # The first run begins at the first moment, or before.
        assert self._run is not None  # noqa: S101
        if self._reader is None:
            self._reader = self._started(self._run)
        return self._reader.at(self._run.index(self._clip.time.source_time(clip_time)))

    def finish(self) -> None:
        """Reads on to the end of the clip, a few frames at most; raises InvalidMedia where the
        decoder complains.
        """
        if self._reader is not None and self._run is not None:
            self._reader.finish()

    def _started(self, run: "_Run") -> "_Reader":
        self.close()
        source, window = self._clip.source, self._clip.look.window
        size = source.facts.width, source.facts.height
        if window is not None:
            size = window.width, window.height
        frames = self._open.enter_context(
            decode(
                source.path,
                source.facts,
                run.first,
                run.count,
                self._guard,
                run.interpolated_fps,
                source.hardware,
                source.max_pixels,
                window,
            )
        )
        return _Reader(
            iter(
                self._open.enter_context(Ahead(frames, _depth(size, self._clip.look.engine.batch)))
            )
        )


def _looks(clip: Clip, frames: Sequence[Frame], moments: Sequence[float]) -> list[Frame]:
    """Makes a clip's pictures: all at once, or in halves where the device's memory is too small."""
    try:
        return clip.look.of(frames, moments)
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(frames) == 1:
            raise
    half = len(frames) // 2
    accelerator(clip.look.device).release()
    return [
        *_looks(clip, frames[:half], moments[:half]),
        *_looks(clip, frames[half:], moments[half:]),
    ]


def _depth(size: tuple[int, int], batch: int) -> int:
    """Returns how many frames of that size may wait between two stages: two batches, so that one
    can be made while the next arrives, as far as memory allows.
    """
    fitting = min(WAITING_BYTES, int(memory_bytes() * WAITING_SHARE)) // frame_bytes(*size)
    return max(1, min(max(DEPTH, 2 * batch), fitting))


@dataclass(frozen=True)
class _Run:
    """A stretch of a clip that one decoder reads: from source frame `first` on, or on a finer grid
    from there on.

    Attributes:
        begin: when in the clip it begins, in seconds.
        end: of the source, in seconds.
    """

    begin: float
    first: int
    end: float
    source_fps: Fraction
    interpolated_fps: Fraction | None

    @property
    def count(self) -> int:
        return self.index(self.end) + 1

    def index(self, moment: float) -> int:
        """Returns which of its frames is on screen at a moment of the source."""
        if self.interpolated_fps is None:
            return max(0, frame_at(moment, self.source_fps) - self.first)
        return max(0, frame_at(moment - float(self.first / self.source_fps), self.interpolated_fps))


def _runs(clip: Clip, output_fps: Fraction) -> list[_Run]:
    """Joins neighbouring spans, but for those whose slow motion is made smooth."""
    source_fps = clip.source.facts.fps
    runs: list[_Run] = []
    for span, begin in zip(clip.time.spans, clip.time.span_starts, strict=True):
        fine = output_fps / Fraction(span.speed).limit_denominator(10_000)
        interpolated = fine if clip.interpolate and span.speed < 1 and fine > source_fps else None
        if runs and interpolated is None and runs[-1].interpolated_fps is None:
            last = runs.pop()
            runs.append(_Run(last.begin, last.first, span.end, source_fps, None))
        else:
            runs.append(
                _Run(begin, frame_at(span.start, source_fps), span.end, source_fps, interpolated)
            )
    return runs


def _runs_from(runs: list[_Run], clip: Clip, clip_time: float) -> list[_Run]:
    """Returns the runs from a moment of the clip on; the first one begins at its frame.

    An interpolated one begins some frames earlier, since its pictures depend on their neighbours,
    and on the same grid.
    """
    last = max(0, bisect.bisect_right([run.begin for run in runs], clip_time + EPSILON_SECONDS) - 1)
    run = runs[last]
    first = frame_at(clip.time.source_time(clip_time), run.source_fps)
    if run.interpolated_fps is not None:
        step = (run.interpolated_fps / run.source_fps).denominator
        first = run.first + max(0, first - RUN_IN_FRAMES - run.first) // step * step
    return [replace(run, first=max(run.first, first)), *runs[last + 1 :]]


class _Reader:
    """Frames by index, going forward only; past the end of the file, its last frame."""

    def __init__(self, frames: Iterator[Frame]) -> None:
        self._frames = frames
        self._index = -1
        self._frame: Frame | None = None

    def at(self, index: int) -> Frame:
        """Returns the frame at `index`, which never falls from call to call."""
        while self._index < index:
            following = next(self._frames, None)
            if following is None:
                self._index = index
                break
            self._frame = following
            self._index += 1
        if self._frame is None:
            raise InvalidMedia("The video has no frame that can be read.")
        return self._frame

    def finish(self) -> None:
        for _ in self._frames:
            pass


def _sound(composition: Composition) -> Sound | None:
    if not composition.sound:
        return None
    heard: list[Heard] = []
    sources: list[tuple[str, float] | None] = []
    for clip in composition.clips:
        facts = clip.source.facts
        if facts.audio_codec is None:
            sources.append(None)
            continue
        start = max(0.0, clip.time.start - SOUND_RUN_IN_SECONDS)
        sources.append((f"{{{len(heard)}}}", start))
        heard.append(Heard(clip.source.path, facts.audio_track, start, clip.time.end))
    return Sound(tuple(heard), composition.timeline.sound_filter(sources, SOUND))
