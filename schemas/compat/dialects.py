"""Other spellings of an edit that clients in the field use, turned into the canonical ones.

edits.py asks here, once, while it validates; no other module has them.
"""

from typing import Any

from pydantic.alias_generators import to_snake
from pydantic_core import PydanticCustomError

_OUTPUT_SYNONYMS = {
    "fps": "target_fps",
    "target_width": "output_width",
    "target_height": "output_height",
}
FRAMING_SYNONYMS = {
    **_OUTPUT_SYNONYMS,
    "keyframes": "crop_keyframes",
    "source_start_time": "start_time",
    "source_end_time": "end_time",
}
SEGMENT_WORDS = {"segment_data", "segments_data"}
_SEGMENT_DATA_WORDS = {
    "trim_start",
    "trim_end",
    "trim_range",
    "segments",
    "boundaries",
    "user_splits",
    "segment_speeds",
}
#: The caller's own bookkeeping, sent along with a clip.
IGNORED_WORDS = {"clip_index", "working_clip_id", "file_name", "duration"}
FRAMING_WORDS = {*FRAMING_SYNONYMS, *SEGMENT_WORDS, *IGNORED_WORDS, "source_width", "source_height"}
OVERLAY_SYNONYMS = {"regions": "highlight_regions"}
REGION_WORDS = {
    "start_time",
    "end_time",
    "start_frame",
    "end_frame",
    "id",
    "video_width",
    "video_height",
}
REGION_WORDS |= {"radius_x", "radius_y", "opacity", "stroke_opacity", "fill_opacity"}
CLIPS_SYNONYMS = {**_OUTPUT_SYNONYMS, "clips_data": "clips"}


#: No name that is known has more characters; the expressions of `to_snake` take a second for a name
#: of 1 MB.
LONGEST_NAME = 64


def canonical(key: Any, known: Any) -> Any:
    """Returns the snake_case of a camelCase key that is known, and any other key as it is."""
    if not isinstance(key, str) or key in known or len(key) > LONGEST_NAME:
        return key
    name = to_snake(key)
    return name if name in known else key


def renamed(raw: dict[str, Any], synonyms: dict[str, str]) -> dict[str, Any]:
    """Renames synonyms; two words for one field are an error."""
    params = {canonical(key, synonyms): value for key, value in raw.items()}
    for word, name in synonyms.items():
        if word in params:
            refuse_both(word, name, params)
            params[name] = params.pop(word)
    return params


def from_segment_data(data: Any) -> dict[str, Any]:
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
    data = {canonical(key, _SEGMENT_DATA_WORDS): value for key, value in data.items()}
    if unknown := data.keys() - _SEGMENT_DATA_WORDS:
        raise PydanticCustomError(
            "segment_data", "segment_data has an unknown field: {name}", {"name": min(unknown)}
        )
    start, end = _trim(data)
    found = {
        "start_time": start,
        "end_time": end,
        "segments": data.get("segments") or _speeds_by_split(data),
    }
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
            raise PydanticCustomError(
                "segment_data", "trimRange must be {start, end} or [start, end]"
            )


def _speeds_by_split(data: dict[str, Any]) -> list[dict[str, Any]]:
    speeds = data.get("segment_speeds") or {}
    splits = data.get("boundaries") or data.get("user_splits") or []
    if not isinstance(speeds, dict) or not isinstance(splits, list):
        raise PydanticCustomError(
            "segment_data", "segmentSpeeds must be an object and boundaries a list"
        )
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


def refuse_both(word: str, canonical: str, params: dict[str, Any]) -> None:
    if canonical in params:
        raise PydanticCustomError(
            "synonym", "give {a} or {b}, not both", {"a": word, "b": canonical}
        )


def clips_from_sources(params: dict[str, Any]) -> dict[str, Any]:
    """Gives each clip its file from a list beside them (`source_keys`), by its `clipIndex` or its
    own position.
    """
    params = {canonical(key, {"source_keys"}): value for key, value in params.items()}
    keys = params.pop("source_keys", None)
    clips = params.get("clips")
    if keys is None or not isinstance(clips, list):
        return params
    try:
        params["clips"] = [
            {**clip, "input_key": keys[clip.get("clipIndex", clip.get("clip_index", position))]}
            for position, clip in enumerate(clips)
        ]
    except (AttributeError, IndexError, KeyError, TypeError):
        raise PydanticCustomError(
            "source_keys", "source_keys must have a key for each clip"
        ) from None
    return params


#: What a region's keyframe holds; in the static form these are fields of the region itself.
_KEYFRAME_WORDS = (
    "x",
    "y",
    "radius_x",
    "radius_y",
    "opacity",
    "stroke_opacity",
    "fill_opacity",
    "color",
)


def keyframed(region: dict[str, Any]) -> dict[str, Any]:
    """Turns the static form of a highlight into one with a keyframe; drops the editor's own
    `id`.
    """
    region = {key: value for key, value in region.items() if key != "id"}
    if "keyframes" in region:
        return region
    keyframe = {word: region.pop(word) for word in _KEYFRAME_WORDS if word in region}
    return {**region, "keyframes": [keyframe]} if keyframe else region
