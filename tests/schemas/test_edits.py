"""Params as clients send them, and what the rest of the system sees."""

import json
import math

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from schemas.edits import (
    CropKeyframe,
    ExportMode,
    FramingParams,
    SpeedSegment,
    first_keyframe_outside,
    is_upright,
)

BOX = {"x": 1.5, "y": 2.5, "width": 30.0, "height": 40.0}


def problems(params):
    """Returns the first path that each finding is about, as the API shows it."""
    with pytest.raises(ValidationError) as caught:
        FramingParams.model_validate_json(json.dumps(params))
    return [
        "/".join(map(str, [*f["loc"], *f.get("ctx", {}).get("at", [])]))
        for f in caught.value.errors()
    ]


def test_nothing_given_means_a_vertical_fast_export_with_audio():
    """The defaults are those of the contract."""
    params = FramingParams()
    assert (params.output_width, params.output_height) == (1080, 1920)
    assert (params.export_mode, params.include_audio) == (ExportMode.FAST, True)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param({"crop_keyframes": [{"time": 0, **BOX}], "output_width": 720}, id="snake"),
        pytest.param({"cropKeyframes": [{"time": 0, **BOX}], "outputWidth": 720}, id="camel"),
        pytest.param(
            {"keyframes": [{"time": 0, **BOX}], "target_width": 720, "clip_index": 4},
            id="other-words",
        ),
    ],
)
def test_every_spelling_means_the_same(sent):
    """Clients of the source documents and of the reference product are understood."""
    params = FramingParams.model_validate(sent)
    assert params.crop_keyframes == (CropKeyframe(time=0, **BOX),)
    assert params.output_width == 720


@pytest.mark.parametrize(
    "dialect",
    [
        pytest.param(
            {"trim_start": 1, "trim_end": 5, "segments": [{"start": 2, "end": 3, "speed": 0.5}]},
            id="db",
        ),
        pytest.param(
            {
                "trimRange": {"start": 1, "end": 5},
                "segments": [{"start": 2, "end": 3, "speed": 0.5}],
            },
            id="dict",
        ),
        pytest.param(
            {"trimRange": [1, 5], "segments": [{"start": 2, "end": 3, "speed": 0.5}]}, id="list"
        ),
        pytest.param(
            {
                "boundaries": [0, 2, 3, 9],
                "segmentSpeeds": {"1": 0.5},
                "trimRange": [1, 5],
                "userSplits": [2, 3],
            },
            id="frontend",
        ),
        pytest.param(
            {"boundaries": [2, 3], "segmentSpeeds": {"1": 0.5}, "trimRange": [1, 5]},
            id="splits-only",
        ),
    ],
)
def test_every_dialect_of_segment_data_means_the_same(dialect):
    """Trim and speed come out alike, whoever wrote them."""
    params = FramingParams.model_validate({"segmentsData": dialect})
    assert (params.start_time, params.end_time) == (1, 5)
    assert params.segments == (SpeedSegment(start=2, end=3, speed=0.5),)


def test_the_last_split_plays_to_the_end():
    """A client that does not send the duration still gets its last segment."""
    params = FramingParams.model_validate(
        {"segment_data": {"userSplits": [2], "segmentSpeeds": {"1": 2.0}}}
    )
    assert params.segments == (SpeedSegment(start=2, end=None, speed=2.0),)


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        pytest.param({"blur": 1}, "blur", id="unknown-field"),
        pytest.param({"segment_data": {"speed": 1}}, "", id="unknown-field-in-dialect"),
        pytest.param({"start_time": math.nan}, "start_time", id="nan"),
        pytest.param({"start_time": -0.1}, "start_time", id="negative-time"),
        pytest.param({"start_time": "1s"}, "start_time", id="text-for-a-number"),
        pytest.param({"end_time": 90_000_000}, "end_time", id="milliseconds"),
        pytest.param({"start_time": 2, "end_time": 2}, "end_time", id="end-not-after-start"),
        pytest.param({"output_width": 1081}, "output_width", id="odd-size"),
        pytest.param({"output_height": 100_000}, "output_height", id="huge-size"),
        pytest.param({"target_fps": 0}, "target_fps", id="zero-rate"),
        pytest.param({"export_mode": "SLOW"}, "export_mode", id="unknown-mode"),
        pytest.param({"crop_keyframes": [BOX]}, "crop_keyframes/0", id="no-moment"),
        pytest.param(
            {"crop_keyframes": [{"time": 0, "frame": 0, **BOX}]},
            "crop_keyframes/0",
            id="two-moments",
        ),
        pytest.param(
            {"crop_keyframes": [{"time": 0, **BOX, "x": -1}]},
            "crop_keyframes/0/x",
            id="outside-left",
        ),
        pytest.param(
            {"crop_keyframes": [{"time": 0, **BOX, "width": 0}]},
            "crop_keyframes/0/width",
            id="empty-crop",
        ),
        pytest.param(
            {"crop_keyframes": [{"time": 1, **BOX}, {"time": 1, **BOX}]},
            "crop_keyframes",
            id="two-at-one-time",
        ),
        pytest.param(
            {"crop_keyframes": [{"time": 1, **BOX}, {"frame": 90, **BOX}]},
            "crop_keyframes",
            id="two-clocks",
        ),
        pytest.param(
            {"crop_keyframes": [{"time": 0, **BOX}], "sourceWidth": 20, "sourceHeight": 90},
            "crop_keyframes/0",
            id="outside-right",
        ),
        pytest.param(
            {"segments": [{"start": 0, "end": 3}, {"start": 2, "end": 4}]}, "segments", id="overlap"
        ),
        pytest.param(
            {"segments": [{"start": 3, "end": 1}]}, "segments/0/end", id="segment-backwards"
        ),
        pytest.param(
            {"segments": [{"start": 0, "end": 1, "speed": 9}]}, "segments/0/speed", id="too-fast"
        ),
        pytest.param({"fps": 30, "target_fps": 25}, "", id="said-twice"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(sent, path):
    """Each wrong field is named by its path."""
    assert problems(sent) == [path]


def test_a_crop_may_touch_the_edge_but_not_leave_the_picture():
    """One pixel is forgiven, since editors round."""
    inside = CropKeyframe(time=0, x=10, y=0, width=90.9, height=50)
    outside = CropKeyframe(time=1, x=12, y=0, width=90, height=50)
    assert first_keyframe_outside((inside, outside), 100, 50) == 1
    assert first_keyframe_outside((inside,), 100, 50) is None


@pytest.mark.parametrize(
    ("width", "height", "fits"), [(7680, 4320, True), (7680, 4642, False), (7680, 7680, False)]
)
def test_an_output_is_no_larger_than_the_largest_of_h264(width, height, fits):
    """No player has to play what is beyond level 6.2."""
    params = {"output_width": width, "output_height": height}
    if fits:
        assert FramingParams.model_validate(params).output_height == height
    else:
        assert problems(params) == ["output_height"]


@pytest.mark.parametrize("degrees", [0.0, 2.8e-17, 360.0, -360.0])
def test_a_rotation_by_nothing_is_upright(degrees):
    """Editors send rounding errors for zero."""
    assert is_upright(degrees)


@given(
    st.builds(
        FramingParams,
        output_width=st.integers(8, 3840).map(lambda n: 2 * n),
        start_time=st.floats(0, 100),
        end_time=st.none() | st.floats(101, 86400),
        rotation=st.floats(-360, 360),
        crop_keyframes=st.lists(st.floats(0, 1000), unique=True, max_size=5).map(
            lambda times: tuple(CropKeyframe(time=t, **BOX) for t in sorted(times))
        ),
    )
)
def test_what_we_emit_we_also_take(params):
    """Params survive the way through the database and RunPod unchanged."""
    assert FramingParams.model_validate_json(params.model_dump_json(exclude_none=True)) == params
