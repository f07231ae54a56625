"""What an edit is made of: params of any job type become clips, each with its time and its look, on
one timeline.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch

from gpu_worker.edits.caption import caption
from gpu_worker.edits.crop import CropPath, Resampler, rotate
from gpu_worker.edits.fonts import Fonts
from gpu_worker.edits.highlight import Highlights
from gpu_worker.edits.layer import Layer, TimedLayer, layer_of
from gpu_worker.edits.text import text_layers
from gpu_worker.edits.timeline import CUT, ClipTime, Timeline
from gpu_worker.media.facts import DEFAULT_LIMITS, SourceFacts
from gpu_worker.media.frames import Frame, Region
from gpu_worker.media.hardware import HardwareDecoder
from gpu_worker.media.transfer import all_to_device
from gpu_worker.upscale.distinct import Distinct
from gpu_worker.upscale.engine import CONTEXT, Engine
from schemas.edits import (
    Framing,
    FramingParams,
    MultiClipParams,
    OutputParams,
    SlowMotion,
    Transition,
    is_upright,
)
from schemas.overlays import AnnotatedClip, AnnotateParams, OverlayParams

CAPTION_FADE_SECONDS = 0.25


@dataclass(frozen=True)
class Source:
    """A video of the bucket, on this machine.

    Attributes:
        hardware: the GPU's decoder, where the GPU decodes it.
        max_pixels: of each of its frames, which may be larger than the first one.
    """

    path: Path
    facts: SourceFacts
    hardware: HardwareDecoder | None = None
    max_pixels: int = DEFAULT_LIMITS.pixels


@dataclass(frozen=True)
class Look:
    """What is done to each picture of a clip: turn, highlight, crop to size, write over. In that
    order.

    Attributes:
        window: the part of the source's pictures that arrives here; None for all of each.
    """

    size: tuple[int, int]
    path: CropPath | None
    engine: Engine
    device: torch.device
    rotation: float = 0.0
    highlights: Highlights | None = None
    layers: tuple[TimedLayer, ...] = ()
    window: Region | None = None

    def of(self, frames: Sequence[Frame], moments: Sequence[float]) -> list[Frame]:
        """Makes the output's pictures, on the device, of the source's at `moments`.

        What nothing touches passes through as it is. The engine takes them all at once.
        """
        drawn = self._drawn_on(frames, moments)
        if self.path is None:
            shown = [frame.cut(*self.size) for frame in drawn]
        else:
            boxes = [self.path.at(moment) for moment in moments]
            if self.window is not None:
                boxes = [self.window.relative(box) for box in boxes]
            shown = self.engine(drawn, boxes, *self.size)
        return self._written_on(shown, moments)

    def let_go(self) -> None:
        """Frees what was made for the clip; it has ended."""
        self.engine.let_go()
        for layer in self.layers:
            layer.let_go()

    def _drawn_on(self, frames: Sequence[Frame], moments: Sequence[float]) -> Sequence[Frame]:
        """Turns and highlights frames; an engine brings what it needs of the others to the
        device.
        """
        upright, highlights = is_upright(self.rotation), self.highlights
        if upright and not (highlights and any(map(highlights.are_shown, moments))):
            return frames
        drawn = [rotate(frame, self.rotation) for frame in all_to_device(frames, self.device)]
        if highlights is None:
            return drawn
        return [
            highlights.draw(frame, moment) for frame, moment in zip(drawn, moments, strict=True)
        ]

    def _written_on(self, frames: Sequence[Frame], moments: Sequence[float]) -> list[Frame]:
        if any(layer.is_shown(moment) for layer in self.layers for moment in moments):
            frames = all_to_device(frames, self.device)
        written = list(frames)
        # A layer that is not shown is asked too: it frees its pixels.
        for layer in self.layers:
            written = [layer.draw(f, moment) for f, moment in zip(written, moments, strict=True)]
        return written


@dataclass(frozen=True)
class Clip:
    """A part of a source as it goes into the output; `name` is its path in the params."""

    name: str
    source: Source
    time: ClipTime
    look: Look
    interpolate: bool = False


@dataclass(frozen=True)
class Composition:
    """The whole output, as data."""

    clips: tuple[Clip, ...]
    timeline: Timeline
    size: tuple[int, int]
    fps: Fraction
    sound: bool

    @property
    def batch(self) -> int:
        """How many frames an engine makes at once, at most."""
        return max(clip.look.engine.batch for clip in self.clips)


@dataclass(frozen=True)
class Kit:
    """What an edit is made with: engines, the device, the fonts, and the files by key.

    Attributes:
        engines: returns what enlarges a clip by a ratio, or None where resampling does.
    """

    engines: Callable[[OutputParams, float], Engine | None]
    sources: Mapping[str, Source]
    pngs: Mapping[str, bytes]
    fonts: Fonts
    device: torch.device


def compose(params: OutputParams, input_key: str | None, kit: Kit) -> Composition:
    """Reads the params of any job type.

    Raises:
        InvalidParams: the edit cannot be made of these sources; names the field.
        ModelUnavailable: it needs a model that is not here.
    """
    main = kit.sources.get(input_key or "")
    match params:
        case MultiClipParams():
            size = (params.output_width, params.output_height)
            clips = [
                _framed(
                    framing,
                    params,
                    kit.sources[framing.input_key or input_key or ""],
                    size,
                    kit,
                    f"params.clips[{i}]",
                )
                for i, framing in enumerate(params.clips)
            ]
            return _joined(clips, params, size, params.transition)
        case AnnotateParams():
            # schemas.jobs.Edited.
            assert main is not None  # noqa: S101
            size = _size(params.output_width, params.output_height, main.facts)
            clips = [
                _annotated(clip, params, main, size, kit, f"params.clips[{i}]")
                for i, clip in enumerate(params.clips)
            ]
            return _joined(clips, params, size, params.transition)
        case OverlayParams():
            assert main is not None  # noqa: S101
            size = _size(params.output_width, params.output_height, main.facts)
            end = main.facts.duration_seconds
            layers = text_layers(params.text_layers, size, end, kit.pngs, kit.fonts, kit.device)
            highlights = Highlights.of(params, main.facts)
            return _joined(
                [_framed(params, params, main, size, kit, "params", highlights, layers)],
                params,
                size,
            )
        case FramingParams():
            assert main is not None  # noqa: S101
            size = (params.output_width, params.output_height)
            return _joined([_framed(params, params, main, size, kit, "params")], params, size)
        case _:
            raise TypeError(f"no such edit: {type(params).__name__}")


def needed_pngs(params: OutputParams) -> list[str]:
    """Returns the keys of all pictures that are put over it."""
    layers = params.text_layers if isinstance(params, OverlayParams) else ()
    return list(dict.fromkeys(layer.png_key for layer in layers if layer.png_key is not None))


def needed_parts(params: OutputParams) -> list[tuple[float, float]] | None:
    """Returns the stretches (seconds) of the input that an edit shows, or None for all of it."""
    if isinstance(params, AnnotateParams):
        return [(clip.start_time, clip.end_time) for clip in params.clips]
    if isinstance(params, Framing) and params.end_time is not None:
        return [(params.start_time, params.end_time)]
    return None


def _framed(
    framing: Framing,
    params: OutputParams,
    source: Source,
    size: tuple[int, int],
    kit: Kit,
    name: str,
    highlights: Highlights | None = None,
    layers: tuple[TimedLayer, ...] = (),
) -> Clip:
    facts = source.facts
    untouched = (
        not framing.crop_keyframes
        and is_upright(framing.rotation)
        and size == _size(None, None, facts)
    )
    path = None if untouched else CropPath.of(framing, facts, size[0] / size[1], name)
    engine = None if path is None else kit.engines(params, path.largest_ratio(*size))
    # What is turned or highlighted is so as a whole.
    seen_whole = highlights is not None or not is_upright(framing.rotation)
    return Clip(
        name=name,
        source=source,
        time=ClipTime.of(framing, facts.duration_seconds, name),
        look=Look(
            size,
            path,
            Distinct(engine, CONTEXT) if engine else Resampler(kit.device),
            kit.device,
            framing.rotation,
            highlights,
            layers,
            None if path is None or seen_whole else path.window(*size),
        ),
        interpolate=framing.slow_motion is SlowMotion.INTERPOLATE,
    )


def _annotated(
    clip: AnnotatedClip,
    params: OutputParams,
    source: Source,
    size: tuple[int, int],
    kit: Kit,
    name: str,
) -> Clip:
    when = (clip.start_time, clip.end_time, CAPTION_FADE_SECONDS)

    def captioned() -> Layer | None:
        card = caption(clip, size, kit.fonts)
        if card is None:
            return None
        return layer_of(card, (0, size[1] - card.height), size, when, device=kit.device)

    layers = (TimedLayer(clip.start_time, clip.end_time, size[0] * size[1], captioned),)
    framing = Framing(start_time=clip.start_time, end_time=clip.end_time)
    return _framed(framing, params, source, size, kit, name, layers=layers)


def _joined(
    clips: Sequence[Clip],
    params: OutputParams,
    size: tuple[int, int],
    transition: Transition = CUT,
) -> Composition:
    return Composition(
        clips=tuple(clips),
        timeline=Timeline(tuple(clip.time for clip in clips), transition),
        size=size,
        fps=_rate(params.target_fps, [clip.source.facts.fps for clip in clips]),
        sound=params.include_audio and any(clip.source.facts.audio_codec for clip in clips),
    )


def _size(width: int | None, height: int | None, facts: SourceFacts) -> tuple[int, int]:
    """Returns the requested size; else the source's, without an odd last column or row, which H.264
    cannot have.
    """
    return (width or max(2, facts.width & ~1), height or max(2, facts.height & ~1))


def _rate(requested: float | None, rates: Sequence[Fraction]) -> Fraction:
    """Returns the requested rate, exactly where it is one of the 1001 family (29.97 means
    30000/1001).
    """
    if requested is None:
        return max(rates)
    ntsc = Fraction(round(requested) * 1000, 1001)
    if abs(float(ntsc) - requested) < 0.005:
        return ntsc
    return Fraction(requested).limit_denominator(1001)
