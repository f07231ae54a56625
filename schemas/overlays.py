"""What is drawn onto pictures: the params of overlay (highlights, text) and annotate (captions).

Highlight `x, y` is the centre of the ellipse, text `x, y` its anchor; both in pixels of a picture
of `video_width` x `video_height` where those are given, of the picture itself where not. Times are
seconds of the input file.
"""

from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, Strict, StrictBool, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from schemas.compat.dialects import OVERLAY_SYNONYMS, REGION_WORDS, canonical, keyframed, renamed
from schemas.edits import (
    MAX_CLIPS,
    MAX_KEYFRAMES,
    AtLeastOne,
    Edit,
    EvenPixels,
    FrameIndex,
    Framing,
    LowerCase,
    OutputParams,
    PositivePixels,
    Seconds,
    Share,
    Transition,
    not_after,
)
from schemas.keys import ObjectKey

MAX_REGIONS = 500
MAX_LAYERS = 200
#: How many pixels a text or PNG layer may have once it is drawn.
MAX_LAYER_PIXELS = 4096 * 4096
#: Of the font's size: no letter is narrower.
_NARROWEST = 0.1

#: `#rgb` or `#rrggbb`, kept as `#rrggbb`.
Colour = Annotated[
    str,
    StringConstraints(pattern=r"^#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$", to_lower=True),
    AfterValidator(lambda text: text if len(text) == 7 else "#" + "".join(2 * c for c in text[1:])),
]
Position = Annotated[float, Strict(), Field(ge=-65_536, le=65_536)]


class Effect(StrEnum):
    """What a highlight does; formulas and default strengths are in docs/effects.md."""

    DARK_OVERLAY = "dark_overlay"
    BRIGHTNESS_BOOST = "brightness_boost"
    BLUR = "blur"
    SPOTLIGHT = "spotlight"
    ORIGINAL = "original"


class OnPreview(Edit):
    """What was placed on a preview of `video_width` x `video_height`, where those are given."""

    video_width: PositivePixels | None = None
    video_height: PositivePixels | None = None

    def scale_to(self, width: float, height: float) -> tuple[float, float]:
        """Returns by how much x and y grow from the preview to a picture of `width` x `height`."""
        return (
            width / self.video_width if self.video_width else 1.0,
            height / self.video_height if self.video_height else 1.0,
        )


class HighlightKeyframe(Edit):
    """The ellipse at one moment. `opacity` is how much of the effect there is; 0 is none of it."""

    time: Seconds = 0.0
    x: Position
    y: Position
    radius_x: PositivePixels
    radius_y: PositivePixels
    opacity: Share = 1.0
    stroke_opacity: Share = 0.85
    fill_opacity: Share = 0.0
    color: Colour = "#ffffff"


class HighlightRegion(OnPreview):
    """A highlight from one moment to another, moving in straight lines between its keyframes,
    resting outside them.

    The static form of the source documents (`start_frame, end_frame, x, y, radius_x, …` and no
    keyframes) becomes a region with one keyframe.
    """

    start_time: Seconds | None = None
    end_time: Seconds | None = None
    start_frame: FrameIndex | None = None
    end_frame: FrameIndex | None = None
    enabled: StrictBool = True
    keyframes: Annotated[
        tuple[HighlightKeyframe, ...], Field(max_length=MAX_KEYFRAMES, fail_fast=True), AtLeastOne
    ]

    @model_validator(mode="before")
    @classmethod
    def _normalise_dialects(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        return keyframed({canonical(key, REGION_WORDS): value for key, value in raw.items()})

    @model_validator(mode="after")
    def _has_an_order(self) -> Self:
        by_time = self.start_time is not None and self.end_time is not None
        by_frame = self.start_frame is not None and self.end_frame is not None
        if by_time == by_frame:
            raise PydanticCustomError(
                "moment", "give start_time and end_time (seconds), or start_frame and end_frame"
            )
        if by_time and (self.end_time or 0) <= (self.start_time or 0):
            raise not_after("end_time", self.end_time or 0, "start_time", self.start_time or 0)
        if by_frame and (self.end_frame or 0) < (self.start_frame or 0):
            raise PydanticCustomError(
                "order", "end_frame must not be before start_frame", {"at": ["end_frame"]}
            )
        if any(later.time <= earlier.time for earlier, later in pairwise(self.keyframes)):
            raise PydanticCustomError(
                "keyframes", "keyframes must be in order of time", {"at": ["keyframes"]}
            )
        return self


class Anchor(StrEnum):
    """Which point of the layer `x, y` is."""

    TOP_LEFT = "top_left"
    TOP = "top"
    TOP_RIGHT = "top_right"
    LEFT = "left"
    CENTER = "center"
    RIGHT = "right"
    BOTTOM_LEFT = "bottom_left"
    BOTTOM = "bottom"
    BOTTOM_RIGHT = "bottom_right"


class TextLayer(OnPreview):
    """Text, or a PNG of the bucket, over the finished picture from one moment to another."""

    text: Annotated[str, StringConstraints(min_length=1, max_length=2000)] | None = None
    png_key: ObjectKey | None = None
    start_time: Seconds = 0.0
    end_time: Seconds | None = None
    x: Position = 0.0
    y: Position = 0.0
    anchor: Annotated[Anchor, LowerCase] = Anchor.TOP_LEFT
    opacity: Share = 1.0
    fade_seconds: Annotated[float, Strict(), Field(ge=0, le=10)] = 0.25
    font_size: Annotated[float, Strict(), Field(ge=4, le=1000)] = 48.0
    bold: StrictBool = False
    color: Colour = "#ffffff"
    outline_color: Colour = "#000000"
    outline_width: Annotated[float, Strict(), Field(ge=0, le=50)] = 0.0
    background_color: Colour | None = None
    background_opacity: Share = 0.6
    max_width: PositivePixels | None = None

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if (self.text is None) == (self.png_key is None):
            raise PydanticCustomError("layer", "give either text or png_key, and not both")
        if self.end_time is not None and self.end_time <= self.start_time:
            raise not_after("end_time", self.end_time, "start_time", self.start_time)
        return self

    @model_validator(mode="after")
    def _is_not_larger_than_any_layer(self) -> Self:
        """Refuses what is too large with any font; the worker measures the rest. A preview's scale
        is not known here.
        """
        least = _NARROWEST * len(self.text or "") * self.font_size**2
        if self.video_width is None and least > MAX_LAYER_PIXELS:
            raise PydanticCustomError(
                "layer_size",
                "so much text at that size has more than the {most} pixels that a layer may have",
                {"at": ["font_size"], "most": MAX_LAYER_PIXELS},
            )
        return self


class OverlayParams(Framing, OutputParams):
    """Highlights on the source's picture, then the crop, if any, then text; keeps the input's size
    by default.
    """

    output_width: EvenPixels | None = None
    output_height: EvenPixels | None = None
    highlight_regions: Annotated[
        tuple[HighlightRegion, ...], Field(max_length=MAX_REGIONS, fail_fast=True)
    ] = ()
    effect_type: Annotated[Effect, LowerCase] = Effect.BLUR
    effect_strength: Share | None = None
    feather: Share | None = None
    stroke_width: Annotated[float, Strict(), Field(ge=0, le=100)] | None = None
    fade_seconds: Annotated[float, Strict(), Field(ge=0, le=10)] = 0.25
    text_layers: Annotated[tuple[TextLayer, ...], Field(max_length=MAX_LAYERS, fail_fast=True)] = ()

    @model_validator(mode="before")
    @classmethod
    def _normalise_overlay(cls, raw: Any) -> Any:
        return renamed(raw, OVERLAY_SYNONYMS) if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _both_sides_or_none(self) -> Self:
        _refuse_half_a_size(self.output_width, self.output_height)
        return self


class AnnotatedClip(Edit):
    """A part of the game, cut exactly, with its caption."""

    start_time: Seconds
    end_time: Seconds
    name: Annotated[str, StringConstraints(strip_whitespace=True, max_length=200)] = ""
    notes: Annotated[str, StringConstraints(strip_whitespace=True, max_length=2000)] = ""
    rating: Annotated[int, Strict(), Field(ge=1, le=5)] | None = None
    tags: Annotated[
        tuple[
            Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=60)],
            ...,
        ],
        Field(max_length=20, fail_fast=True),
    ] = ()

    @model_validator(mode="after")
    def _ends_after_start(self) -> Self:
        if self.end_time <= self.start_time:
            raise not_after("end_time", self.end_time, "start_time", self.start_time)
        return self


class AnnotateParams(OutputParams):
    """Clips of one long video, captioned and joined; keeps the input's size by default."""

    output_width: EvenPixels | None = None
    output_height: EvenPixels | None = None
    clips: Annotated[
        tuple[AnnotatedClip, ...], Field(max_length=MAX_CLIPS, fail_fast=True), AtLeastOne
    ]
    transition: Transition = Transition()

    @model_validator(mode="after")
    def _both_sides_or_none(self) -> Self:
        _refuse_half_a_size(self.output_width, self.output_height)
        return self


def _refuse_half_a_size(width: int | None, height: int | None) -> None:
    if (width is None) != (height is None):
        missing = "output_width" if width is None else "output_height"
        raise PydanticCustomError(
            "size", "give both output_width and output_height, or neither", {"at": [missing]}
        )
