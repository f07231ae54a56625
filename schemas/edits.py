"""What an edit asks for: one params model per job type, units in the names.

snake_case is canonical and what we emit. The other spellings that clients in the field use (camelCase, `keyframes`,
`fps`, the dialects of `segment_data`) are accepted here and normalised here, once; nothing further in knows of them.
All times are seconds from the start of the input file; a trim shifts nothing. Crop `x, y` is the top-left corner,
in pixels of the upright, square-pixel picture, and stays a float to the end.

An error of a whole model carries `at` in its context: the path, below the model, of the field that it is about.
"""

import math
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator
from pydantic.alias_generators import to_snake
from pydantic_core import PydanticCustomError

MAX_SECONDS = 86_400.0
MAX_PIXELS_PER_SIDE = 7680
MAX_KEYFRAMES = 10_000


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
PositivePixels = Annotated[float, Strict(), Field(gt=0, le=65_536)]
EvenPixels = Annotated[int, Strict(), Field(ge=16, le=MAX_PIXELS_PER_SIDE), AfterValidator(_even)]
UpperCase = BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value)


class Edit(BaseModel):
    """A frozen model that refuses unknown fields and takes camelCase for its own field names."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, serialize_by_alias=False)

    @model_validator(mode="before")
    @classmethod
    def _normalise_names(cls, raw: Any) -> Any:
        """Renames known camelCase keys; an unknown key keeps its spelling, so that the error names what was sent."""
        if not isinstance(raw, dict):
            return raw
        return {_canonical(key, cls.model_fields): value for key, value in raw.items()}


def _canonical(key: Any, known: Any) -> Any:
    return to_snake(key) if isinstance(key, str) and to_snake(key) in known else key


class ExportMode(StrEnum):
    FAST = "FAST"  #: resample only
    QUALITY = "QUALITY"  #: Real-ESRGAN


class Interpolation(StrEnum):
    LINEAR = "linear"
    CATMULL_ROM = "catmull_rom"


class CropKeyframe(Edit):
    """Where the crop is at one moment, given by `time` (seconds) or by `frame` (counted at the probed rate)."""

    time: Seconds | None = None
    frame: Annotated[int, Strict(), Field(ge=0, le=10_000_000)] | None = None
    x: Pixels
    y: Pixels
    width: PositivePixels
    height: PositivePixels

    @model_validator(mode="after")
    def _one_moment(self) -> Self:
        if (self.time is None) == (self.frame is None):
            raise PydanticCustomError("moment", "give either `time` (seconds) or `frame`, and not both")
        return self


class SpeedSegment(Edit):
    """A part of the input that plays at another speed; `end` may be left out for "to the end"."""

    start: Seconds
    end: Seconds | None = None
    speed: Annotated[float, Strict(), Field(ge=0.25, le=4.0)] = 1.0

    @model_validator(mode="after")
    def _ends_after_start(self) -> Self:
        if self.end is not None and self.end <= self.start:
            raise _not_after("end", self.end, "start", self.start)
        return self


class FramingParams(Edit):
    """An animated crop, resampled to the output size. No keyframes: a centred crop at the output's ratio.

    `source_width, source_height` may be sent along by a client that knows its video; then keyframes outside the
    picture are refused at once, and not only when the worker has probed the file.
    """

    output_width: EvenPixels = 1080
    output_height: EvenPixels = 1920
    target_fps: Annotated[float, Strict(), Field(ge=1, le=240)] | None = None
    export_mode: Annotated[ExportMode, UpperCase] = ExportMode.FAST
    include_audio: bool = True
    crop_keyframes: Annotated[tuple[CropKeyframe, ...], Field(max_length=MAX_KEYFRAMES)] = ()
    interpolation: Interpolation = Interpolation.LINEAR
    start_time: Seconds = 0.0
    end_time: Seconds | None = None
    rotation: Annotated[float, Strict(), Field(ge=-360, le=360)] = 0.0
    segments: Annotated[tuple[SpeedSegment, ...], Field(max_length=1000)] = ()
    source_width: PositivePixels | None = None
    source_height: PositivePixels | None = None

    @model_validator(mode="before")
    @classmethod
    def _normalise_dialects(cls, raw: Any) -> Any:
        """Turns the clients' other words into the canonical ones; two words for one field are an error."""
        if not isinstance(raw, dict):
            return raw
        params = {_canonical(key, _DIALECT_WORDS): value for key, value in raw.items()}
        params.pop("clip_index", None)  # the caller's own bookkeeping: a job has one clip
        for word, canonical in _SYNONYMS.items():
            if word in params:
                _refuse_both(word, canonical, params)
                params[canonical] = params.pop(word)
        for word in _SEGMENT_WORDS & params.keys():
            for canonical, value in _from_segment_data(params.pop(word)).items():
                _refuse_both(word, canonical, params)
                params[canonical] = value
        return params

    @model_validator(mode="after")
    def _times_in_order(self) -> Self:
        if self.end_time is not None and self.end_time <= self.start_time:
            raise _not_after("end_time", self.end_time, "start_time", self.start_time)
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
            outside = first_keyframe_outside(self.crop_keyframes, self.source_width, self.source_height)
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


def first_keyframe_outside(
    keyframes: tuple[CropKeyframe, ...], width: float, height: float, tolerance: float = 1.0
) -> int | None:
    """Returns the index of the first keyframe that leaves a `width` x `height` picture by more than `tolerance` pixels.

    One pixel is allowed because editors round a crop that touches the edge.
    """
    for index, key in enumerate(keyframes):
        if key.x + key.width > width + tolerance or key.y + key.height > height + tolerance:
            return index
    return None


_SYNONYMS = {
    "keyframes": "crop_keyframes",
    "fps": "target_fps",
    "target_width": "output_width",
    "target_height": "output_height",
    "source_start_time": "start_time",
    "source_end_time": "end_time",
}
_SEGMENT_WORDS = {"segment_data", "segments_data"}
_DIALECT_WORDS = {*_SYNONYMS, *_SEGMENT_WORDS, "clip_index", "source_width", "source_height"}


def _from_segment_data(data: Any) -> dict[str, Any]:
    """Reads any of the four dialects of `segment_data` as `start_time`, `end_time` and `segments`.

    - `{trim_start, trim_end, segments[{start, end, speed}]}`
    - `{trimRange: {start, end} | [start, end], segments[...]}`
    - `{boundaries: [0, splits..., duration], segmentSpeeds: {"0": 0.5}, trimRange}`
    - the same with `boundaries` (or `userSplits`) holding the splits alone
    """
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise PydanticCustomError("segment_data", "segment_data must be an object")
    data = {to_snake(key): value for key, value in data.items()}
    unknown = data.keys() - {
        "trim_start",
        "trim_end",
        "trim_range",
        "segments",
        "boundaries",
        "user_splits",
        "segment_speeds",
    }
    if unknown:
        raise PydanticCustomError(
            "segment_data", "segment_data has an unknown field: {name}", {"name": min(unknown)}
        )
    start, end = _trim(data)
    found = {"start_time": start, "end_time": end, "segments": data.get("segments") or _speeds_by_split(data)}
    return {name: value for name, value in found.items() if value}


def _trim(data: dict[str, Any]) -> tuple[Any, Any]:
    match data.get("trim_range"):
        case {"start": start, "end": end}:
            return start, end
        case [start, end]:
            return start, end
        case None:
            return data.get("trim_start"), data.get("trim_end")
        case _:
            raise PydanticCustomError("segment_data", "trimRange must be {start, end} or [start, end]")


def _speeds_by_split(data: dict[str, Any]) -> list[dict[str, Any]]:
    speeds = data.get("segment_speeds") or {}
    splits = data.get("boundaries") or data.get("user_splits") or []
    if not isinstance(speeds, dict) or not isinstance(splits, list):
        raise PydanticCustomError("segment_data", "segmentSpeeds must be an object and boundaries a list")
    starts = splits if splits and splits[0] == 0 else [0.0, *splits]
    try:
        ends = {str(index): end for index, end in enumerate(starts[1:])}
        return [
            {"start": starts[int(index)], "end": ends.get(index), "speed": speed}
            for index, speed in sorted(speeds.items(), key=lambda item: int(item[0]))
        ]
    except (ValueError, IndexError):
        raise PydanticCustomError(
            "segment_data", "segmentSpeeds must be keyed by the index of a segment"
        ) from None


def _refuse_both(word: str, canonical: str, params: dict[str, Any]) -> None:
    if canonical in params:
        raise PydanticCustomError("synonym", "give {a} or {b}, not both", {"a": word, "b": canonical})


def _not_after(end_name: str, end: float, start_name: str, start: float) -> PydanticCustomError:
    return PydanticCustomError(
        "order",
        "{end_name} ({end} s) must be after {start_name} ({start} s)",
        {"at": [end_name], "end_name": end_name, "end": end, "start_name": start_name, "start": start},
    )


def is_upright(rotation_degrees: float) -> bool:
    """True when a rotation is none at all: editors send 2.8e-17 and 360 for zero."""
    return math.isclose(math.remainder(rotation_degrees, 360.0), 0.0, abs_tol=1e-6)
