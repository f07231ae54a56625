"""multi_clip and upscale params, and jobs whose clips bring their own files."""

import json

import pytest
from pydantic import ValidationError

from schemas.edits import ExportMode, MultiClipParams, TransitionType, UpscaleParams
from schemas.jobs import JobRequest, JobType

BOX = {"time": 0, "x": 0, "y": 0, "width": 10, "height": 20}


def test_clips_with_their_own_files_and_framing():
    """The canonical form."""
    params = MultiClipParams.model_validate(
        {
            "clips": [
                {"input_key": "a.mp4", "start_time": 1, "crop_keyframes": [BOX]},
                {"input_key": "b.mp4", "rotation": 2.5},
            ],
            "transition": {"type": "dissolve", "duration": 0.4},
        }
    )
    assert [clip.input_key for clip in params.clips] == ["a.mp4", "b.mp4"]
    assert (params.transition.type, params.transition.duration) == (TransitionType.DISSOLVE, 0.4)


def test_files_beside_the_clips_are_given_to_them():
    """`source_keys` and `clips_data` with `clipIndex`, trims and speeds in the editor's words."""
    params = MultiClipParams.model_validate(
        {
            "source_keys": ["a.mp4", "b.mp4"],
            "clips_data": [
                {
                    "clipIndex": 1,
                    "cropKeyframes": [BOX],
                    "segmentsData": {
                        "trimRange": {"start": 1, "end": 5},
                        "segments": [{"start": 2, "end": 3, "speed": 0.5}],
                    },
                },
                {
                    "clipIndex": 0,
                    "fileName": "a.mp4",
                    "duration": 5.0,
                    "sourceWidth": 1280,
                    "sourceHeight": 720,
                },
            ],
            "transition": {"type": "CUT", "duration": 0.5},
            "target_width": 720,
            "target_height": 1280,
            "fps": 30,
        }
    )
    first, second = params.clips
    assert (first.input_key, first.start_time, first.end_time) == ("b.mp4", 1, 5)
    assert first.segments[0].speed == 0.5
    assert (second.input_key, second.source_width) == ("a.mp4", 1280)
    assert (params.output_width, params.output_height, params.target_fps) == (720, 1280, 30)


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"clips": []}, "/params/clips"),
        (
            {"clips": [{"input_key": "a"}], "transition": {"type": "star_wipe"}},
            "/params/transition/type",
        ),
        (
            {"clips": [{"input_key": "a"}], "transition": {"duration": 0}},
            "/params/transition/duration",
        ),
        ({"clips": [{"input_key": "/a"}]}, "/params/clips/0/input_key"),
        (
            {"clips": [{"input_key": "a"}, {"input_key": "b", "start_time": 2, "end_time": 1}]},
            "/params/clips/1/end_time",
        ),
        ({"clips": [{"input_key": "a"}, {}]}, "/input_key"),
        ({"clips_data": [{}, {}], "source_keys": ["a"]}, "/params"),
    ],
)
def test_what_is_wrong_is_named(params, path):
    """By its path in the request; a clip without a file needs the job's own."""
    with pytest.raises(ValidationError) as caught:
        JobRequest.model_validate_json(json.dumps({"type": "multi_clip", "params": params}))
    paths = [
        "".join(f"/{part}" for part in [*f["loc"], *f.get("ctx", {}).get("at", [])])
        for f in caught.value.errors()
    ]
    assert paths == [path]


def test_a_clip_without_a_file_is_a_part_of_the_jobs_own():
    """As annotate's are."""
    request = JobRequest.model_validate(
        {"type": "multi_clip", "input_key": "a.mp4", "params": {"clips": [{}, {}]}}
    )
    assert request.input_key == "a.mp4"


def test_every_type_has_params_of_its_own():
    """And what is emitted is read again as the same."""
    for job_type in JobType:
        clips = (
            {"clips": [{"start_time": 0, "end_time": 1}]}
            if job_type in ("annotate", "multi_clip")
            else {}
        )
        request = JobRequest.model_validate(
            {"type": job_type, "input_key": "a.mp4", "params": clips}
        )
        assert type(request.params) is job_type.params_model
        assert JobRequest.model_validate_json(request.model_dump_json(exclude_none=True)) == request


def test_upscale_goes_through_a_model_unless_told():
    """That is what it is for; a path is no model's name."""
    assert UpscaleParams().export_mode is ExportMode.QUALITY
    assert UpscaleParams(model="realesr-general-x4v3", scale=4).model == "realesr-general-x4v3"
    with pytest.raises(ValidationError):
        UpscaleParams(model="../../etc/passwd")
