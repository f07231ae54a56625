"""Overlay and annotate params as clients send them."""

import json

import pytest
from pydantic import ValidationError

from schemas.overlays import AnnotateParams, Effect, HighlightKeyframe, OverlayParams

KEY = {"time": 1, "x": 10, "y": 20, "radius_x": 5, "radius_y": 6}
REGION = {"start_time": 0, "end_time": 2, "keyframes": [KEY]}


def problems(model, params):
    """Returns the path that each finding is about, as the API shows it."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(params))
    return [
        "/".join(map(str, [*f["loc"], *f.get("ctx", {}).get("at", [])]))
        for f in caught.value.errors()
    ]


def test_the_documents_request_is_understood():
    """Static regions, `crop_keyframes: null`, an effect, a size: as source document 004 sends
    it.
    """
    params = OverlayParams.model_validate(
        {
            "highlight_regions": [
                {"start_frame": 0, "end_frame": 30, "x": 1.5, "y": 2, "radius_x": 3, "radius_y": 4}
                | {"opacity": 1.0, "color": "#ffffff"}
            ],
            "effect_type": "blur",
            "crop_keyframes": None,
            "output_width": 1080,
            "output_height": 1920,
        }
    )
    (region,) = params.highlight_regions
    assert (region.start_frame, region.end_frame) == (0, 30)
    assert region.keyframes == (HighlightKeyframe(x=1.5, y=2, radius_x=3, radius_y=4),)
    assert params.crop_keyframes == ()


def test_the_editors_request_is_understood():
    """camelCase, an id of its own, `radiusX`, capitals in colours and effects."""
    params = OverlayParams.model_validate(
        {
            "highlightRegions": [
                {
                    "id": "r1",
                    "startTime": 0,
                    "endTime": 2,
                    "videoWidth": 1920,
                    "videoHeight": 1080,
                    "enabled": False,
                }
                | {
                    "keyframes": [
                        {"time": 1, "x": 1, "y": 2, "radiusX": 3, "radiusY": 4, "color": "#FFAA00"}
                    ]
                }
            ],
            "effectType": "DARK_OVERLAY",
        }
    )
    (region,) = params.highlight_regions
    assert (region.video_width, region.enabled, region.keyframes[0].color) == (
        1920,
        False,
        "#ffaa00",
    )
    assert params.effect_type is Effect.DARK_OVERLAY


def test_nothing_asked_for_keeps_the_picture():
    """No size, no region, no text."""
    params = OverlayParams()
    assert (params.output_width, params.highlight_regions, params.text_layers) == (None, (), ())


def test_a_short_colour_is_a_colour():
    """#f80 is #ff8800."""
    assert HighlightKeyframe.model_validate(KEY | {"color": "#F80"}).color == "#ff8800"


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"highlight_regions": [REGION | {"end_time": 0}]}, "highlight_regions/0/end_time"),
        (
            {"highlight_regions": [REGION | {"start_frame": 1, "end_frame": 2}]},
            "highlight_regions/0",
        ),
        ({"highlight_regions": [{"start_time": 0, "keyframes": [KEY]}]}, "highlight_regions/0"),
        (
            {"highlight_regions": [{"start_time": 0, "end_time": 1}]},
            "highlight_regions/0/keyframes",
        ),
        (
            {"highlight_regions": [REGION | {"keyframes": [KEY, KEY]}]},
            "highlight_regions/0/keyframes",
        ),
        (
            {"highlight_regions": [REGION | {"keyframes": [KEY | {"color": "red"}]}]},
            "highlight_regions/0/keyframes/0/color",
        ),
        (
            {"highlight_regions": [REGION | {"keyframes": [KEY | {"radius_x": 0}]}]},
            "highlight_regions/0/keyframes/0/radius_x",
        ),
        ({"highlight_regions": [REGION | {"loud": 1}]}, "highlight_regions/0/loud"),
        ({"effect_type": "sparkle"}, "effect_type"),
        ({"output_width": 640}, "output_height"),
        ({"text_layers": [{}]}, "text_layers/0"),
        ({"text_layers": [{"text": "a", "png_key": "b"}]}, "text_layers/0"),
        ({"text_layers": [{"text": "W" * 2000, "font_size": 1000}]}, "text_layers/0/font_size"),
        ({"text_layers": [{"png_key": "../b"}]}, "text_layers/0/png_key"),
        (
            {"text_layers": [{"text": "a", "start_time": 2, "end_time": 1}]},
            "text_layers/0/end_time",
        ),
    ],
)
def test_what_is_wrong_is_named(params, path):
    """By its path in the params."""
    assert problems(OverlayParams, params) == [path]


def test_an_annotation_needs_no_words():
    """Only times; words are stripped."""
    params = AnnotateParams.model_validate(
        {"clips": [{"start_time": 1, "end_time": 2, "name": " Goal "}]}
    )
    assert (params.clips[0].name, params.clips[0].rating, params.clips[0].tags) == (
        "Goal",
        None,
        (),
    )


@pytest.mark.parametrize(
    ("clip", "path"),
    [
        ({"start_time": 1, "end_time": 1}, "clips/0/end_time"),
        ({"start_time": 1}, "clips/0/end_time"),
        ({"start_time": 1, "end_time": 2, "rating": 6}, "clips/0/rating"),
        ({"start_time": 1, "end_time": 2, "tags": [""]}, "clips/0/tags/0"),
    ],
)
def test_a_wrong_annotation_is_named(clip, path):
    """With its index."""
    assert problems(AnnotateParams, {"clips": [clip]}) == [path]


def test_an_annotation_without_clips_is_refused():
    """There would be nothing to show."""
    assert problems(AnnotateParams, {"clips": []}) == ["clips"]
    assert problems(AnnotateParams, {}) == ["clips"]
