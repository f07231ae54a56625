"""What an edit asks for: the params of framing, upscale and multi_clip; those of overlay and
annotate are in overlays.py.

snake_case is canonical and what we emit. The other spellings that clients in the field use are
accepted here and normalised here, once, with dialects.py; no other module has them. All
times are seconds from the start of the input file; a trim shifts nothing. Crop `x, y` is the
top-left corner, in pixels of the upright, square-pixel picture, and stays a float to the end.

An error of a whole model carries `at` in its context: the path, below the model, of the field that
it is about. Every sequence stops at its first item that is wrong: Pydantic would collect millions
of errors from 1 MB of `{}`.
"""

import math
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StrictBool,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from schemas.compat.dialects import (
    CLIPS_SYNONYMS,
    FRAMING_SYNONYMS,
    FRAMING_WORDS,
    IGNORED_WORDS,
    SEGMENT_WORDS,
    canonical,
    clips_from_sources,
    from_segment_data,
    refuse_both,
    renamed,
)
from schemas.keys import ObjectKey

MAX_SECONDS = 86_400.0
MAX_PIXELS_PER_SIDE = 7680
#: Of 16x16 pixels each: the frame size of level 6.2, the highest one (ITU-T H.264, table A-1).
MAX_MACROBLOCKS = 139_264
MAX_KEYFRAMES = 10_000
MAX_CLIPS = 200


def _even(value: int) -> int:
    if value % 2:
        raise PydanticCustomError(
            "even", "H.264 in yuv420p needs an even number of pixels, not {n}", {"n": value}
        )
    return value


def _below_a_day(value: float) -> float:
    if value > MAX_SECONDS:
        raise PydanticCustomError(
            "seconds",
            "times are in seconds, and {t} s is more than a day; was it milliseconds?",
            {"t": value},
        )
    return value


Seconds = Annotated[float, Strict(), Field(ge=0), AfterValidator(_below_a_day)]
Pixels = Annotated[float, Strict(), Field(ge=0, le=65_536)]
FrameIndex = Annotated[int, Strict(), Field(ge=0, le=10_000_000)]
PositivePixels = Annotated[float, Strict(), Field(gt=0, le=65_536)]
EvenPixels = Annotated[
    int,
    Strict(),
    Field(ge=16, le=MAX_PIXELS_PER_SIDE, json_schema_extra={"multipleOf": 2}),
    AfterValidator(_even),
]


def _some(items: tuple[Any, ...]) -> tuple[Any, ...]:
    # Not by min_length, which complains of an item too few for each item that is wrong.
    if not items:
        raise PydanticCustomError("too_short", "give at least one")
    return items


AtLeastOne = AfterValidator(_some)
Share = Annotated[float, Strict(), Field(ge=0, le=1)]
UpperCase = BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value)
LowerCase = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)


class Edit(BaseModel):
    """A frozen model that refuses unknown fields and takes camelCase for its own field names."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, serialize_by_alias=False
    )

    @model_validator(mode="before")
    @classmethod
    def _normalise_names(cls, raw: Any) -> Any:
        """Renames known camelCase keys; an unknown key keeps its spelling, so that the error names
        what was sent.
        """
        if not isinstance(raw, dict):
            return raw
        return {canonical(key, cls.model_fields): value for key, value in raw.items()}


class ExportMode(StrEnum):
    FAST = "FAST"  #: resample only
    QUALITY = "QUALITY"  #: Real-ESRGAN


class Interpolation(StrEnum):
    LINEAR = "linear"
    CATMULL_ROM = "catmull_rom"


class CropKeyframe(Edit):
    """Where the crop is at one moment, given by `time` (seconds) or by `frame` (counted at the
    probed rate).
    """

    time: Seconds | None = None
    frame: FrameIndex | None = None
    x: Pixels
    y: Pixels
    width: PositivePixels
    height: PositivePixels

    @model_validator(mode="after")
    def _one_moment(self) -> Self:
        if (self.time is None) == (self.frame is None):
            raise PydanticCustomError(
                "moment", "give either `time` (seconds) or `frame`, and not both"
            )
        return self


class SpeedSegment(Edit):
    """A part of the input that plays at another speed; `end` may be left out for "to the end"."""

    start: Seconds
    end: Seconds | None = None
    speed: Annotated[float, Strict(), Field(ge=0.25, le=4.0)] = 1.0

    @model_validator(mode="after")
    def _ends_after_start(self) -> Self:
        if self.end is not None and self.end <= self.start:
            raise not_after("end", self.end, "start", self.start)
        return self


class SlowMotion(StrEnum):
    REPEAT = "repeat"  #: a source frame stays on screen until the next one is due
    INTERPOLATE = (
        "interpolate"  #: frames between are made by motion interpolation; takes many times longer
    )


class OutputParams(Edit):
    """What every job type may say of its output."""

    target_fps: Annotated[float, Strict(), Field(ge=1, le=240)] | None = None
    export_mode: Annotated[ExportMode, UpperCase] = ExportMode.FAST
    include_audio: StrictBool = True

    @model_validator(mode="after")
    def _has_a_level_of_h264(self) -> Self:
        width, height = getattr(self, "output_width", None), getattr(self, "output_height", None)
        if width and height and math.ceil(width / 16) * math.ceil(height / 16) > MAX_MACROBLOCKS:
            raise PydanticCustomError(
                "size",
                "{width}x{height} is larger than the largest picture of H.264, which is about "
                "8192x4352",
                {"at": ["output_height"], "width": width, "height": height},
            )
        return self


class Framing(Edit):
    """One clip: its trim, speeds, rotation and animated crop. No keyframes: a centred crop at the
    output's ratio.

    `source_width, source_height` may be sent along by a client that knows its video; then keyframes
    outside the picture are refused at once, and not only when the worker has probed the file.
    """

    #: null means "none" too.
    crop_keyframes: Annotated[
        tuple[CropKeyframe, ...],
        Field(
            max_length=MAX_KEYFRAMES, fail_fast=True, json_schema_extra={"type": ["array", "null"]}
        ),
    ] = ()
    interpolation: Interpolation = Interpolation.LINEAR
    start_time: Seconds = 0.0
    end_time: Seconds | None = None
    rotation: Annotated[float, Strict(), Field(ge=-360, le=360)] = 0.0
    segments: Annotated[tuple[SpeedSegment, ...], Field(max_length=1000, fail_fast=True)] = ()
    slow_motion: Annotated[SlowMotion, LowerCase] = SlowMotion.REPEAT
    source_width: PositivePixels | None = None
    source_height: PositivePixels | None = None

    @model_validator(mode="before")
    @classmethod
    def _normalise_dialects(cls, raw: Any) -> Any:
        """Turns the clients' other words into the canonical ones; two words for one field are an
        error.
        """
        if not isinstance(raw, dict):
            return raw
        params = {canonical(key, FRAMING_WORDS): value for key, value in raw.items()}
        params = {key: value for key, value in params.items() if key not in IGNORED_WORDS}
        params = renamed(params, FRAMING_SYNONYMS)
        # How some say "none".
        if params.get("crop_keyframes", ()) is None:
            del params["crop_keyframes"]
        for word in SEGMENT_WORDS & params.keys():
            for name, value in from_segment_data(params.pop(word)).items():
                refuse_both(word, name, params)
                params[name] = value
        return params

    @model_validator(mode="after")
    def _times_in_order(self) -> Self:
        if self.end_time is not None and self.end_time <= self.start_time:
            raise not_after("end_time", self.end_time, "start_time", self.start_time)
        for before, after in pairwise(self.segments):
            if before.end is None or after.start < before.end:
                raise PydanticCustomError(
                    "segments",
                    "segments must be in order and must not overlap; see the one at {t} s",
                    {"at": ["segments"], "t": after.start},
                )
        return self

    @model_validator(mode="after")
    def _keyframes_in_order(self) -> Self:
        for clock in ("time", "frame"):
            moments = [getattr(key, clock) for key in self.crop_keyframes]
            given = [moment for moment in moments if moment is not None]
            if any(later <= earlier for earlier, later in pairwise(given)):
                raise PydanticCustomError(
                    "keyframes",
                    "crop_keyframes must be in order of {clock}",
                    {"at": ["crop_keyframes"], "clock": clock},
                )
            if given and len(given) < len(moments):
                raise PydanticCustomError(
                    "keyframes",
                    "crop_keyframes must all use `time` or all use `frame`",
                    {"at": ["crop_keyframes"]},
                )
        if self.source_width is not None and self.source_height is not None:
            outside = first_keyframe_outside(
                self.crop_keyframes, self.source_width, self.source_height
            )
            if outside is not None:
                raise PydanticCustomError(
                    "outside",
                    "crop_keyframes[{index}] reaches outside the {width:g}x{height:g} picture",
                    {
                        "at": ["crop_keyframes", outside],
                        "index": outside,
                        "width": self.source_width,
                        "height": self.source_height,
                    },
                )
        return self


class FramingParams(Framing, OutputParams):
    """An animated crop, resampled to the output size."""

    output_width: EvenPixels = 1080
    output_height: EvenPixels = 1920


class UpscaleParams(FramingParams):
    """As framing, through a model of the client's choice; by default the one that fits the size
    asked for.
    """

    export_mode: Annotated[ExportMode, UpperCase] = ExportMode.QUALITY
    model: (
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] | None
    ) = None
    scale: Literal[2, 4] | None = None


class TransitionType(StrEnum):
    CUT = "cut"
    FADE = "fade"  #: through black: `duration` down, then `duration` up
    DISSOLVE = "dissolve"  #: the clips overlap for `duration`


class Transition(Edit):
    """How one clip becomes the next, in picture and sound."""

    type: Annotated[TransitionType, LowerCase] = TransitionType.CUT
    duration: Annotated[float, Strict(), Field(gt=0, le=10)] = 0.5


class ClipFraming(Framing):
    """One clip of several; without `input_key` it is a part of the job's own input."""

    input_key: ObjectKey | None = None


class MultiClipParams(OutputParams):
    """Clips, each with its own framing, joined in their order. The default rate is the highest
    among the clips'.
    """

    output_width: EvenPixels = 1080
    output_height: EvenPixels = 1920
    clips: Annotated[
        tuple[ClipFraming, ...], Field(max_length=MAX_CLIPS, fail_fast=True), AtLeastOne
    ]
    transition: Transition = Transition()

    @model_validator(mode="before")
    @classmethod
    def _normalise_dialects(cls, raw: Any) -> Any:
        return clips_from_sources(renamed(raw, CLIPS_SYNONYMS)) if isinstance(raw, dict) else raw


def first_keyframe_outside(
    keyframes: tuple[CropKeyframe, ...], width: float, height: float, tolerance: float = 1.0
) -> int | None:
    """Returns the index of the first keyframe that leaves a `width` x `height` picture by more than
    `tolerance` pixels.

    One pixel is allowed because editors round a crop that touches the edge.
    """
    for index, key in enumerate(keyframes):
        if key.x + key.width > width + tolerance or key.y + key.height > height + tolerance:
            return index
    return None


def not_after(end_name: str, end: float, start_name: str, start: float) -> PydanticCustomError:
    return PydanticCustomError(
        "order",
        "{end_name} ({end} s) must be after {start_name} ({start} s)",
        {
            "at": [end_name],
            "end_name": end_name,
            "end": end,
            "start_name": start_name,
            "start": start,
        },
    )


def is_upright(rotation_degrees: float) -> bool:
    """True when a rotation is none at all: editors send 2.8e-17 and 360 for zero."""
    return math.isclose(math.remainder(rotation_degrees, 360.0), 0.0, abs_tol=1e-6)
