"""An output in parts: the pictures of the whole, whatever the border cuts through."""

import pytest
import torch

from gpu_worker.edits.timeline import Part
from gpu_worker.host.guard import Guard
from gpu_worker.render.render import Stage
from tests.gpu_worker.footage import make
from tests.gpu_worker.render.test_render import composition
from tests.gpu_worker.test_cases import CASES

pytestmark = pytest.mark.editing
SIZE = {"output_width": 96, "output_height": 54}
MOVING = {
    "crop_keyframes": [
        {"time": 0, "x": 0, "y": 0, "width": 160, "height": 90},
        {"time": 4, "x": 150, "y": 80, "width": 100, "height": 56},
    ]
}
OPEN = "keyint=25:open-gop=1:bframes=4:b-adapt=0:scenecut=0"
X265 = ("-c:v", "libx265", "-x265-params", f"log-level=none:{OPEN}")
TEXTS = [{"text": "Goal", "x": 4, "y": 4, "font_size": 20, "start_time": 1, "end_time": 3}]
TWO = [{"input_key": "a", "end_time": 2.5}, {"input_key": "a", "start_time": 1.3}]


def several(kind):
    return {"clips": TWO, "transition": {"type": kind, "duration": 1.0}, **SIZE}


EDITS = {
    "moving crop": ("framing", SIZE | MOVING),
    "trim": ("framing", SIZE | {"start_time": 0.37, "end_time": 3.61}),
    "25 to 30": ("framing", SIZE | {"target_fps": 30}),
    "29.97": ("framing", SIZE | {"target_fps": 29.97}),
    "speeds": (
        "framing",
        SIZE
        | {
            "segments": [
                {"start": 0.5, "end": 1.5, "speed": 0.5},
                {"start": 2, "end": 3, "speed": 2},
            ]
        },
    ),
    "smooth slow motion": (
        "framing",
        SIZE
        | {"slow_motion": "interpolate", "segments": [{"start": 0.5, "end": 2.5, "speed": 0.5}]},
    ),
    "smooth at another rate": (
        "framing",
        SIZE
        | {
            "slow_motion": "interpolate",
            "target_fps": 30,
            "segments": [{"start": 0.5, "end": 2.5, "speed": 0.5}],
        },
    ),
    "dissolve": ("multi_clip", several("dissolve")),
    "fade": ("multi_clip", several("fade")),
    "cut": ("multi_clip", several("cut")),
    "overlay": ("overlay", {"text_layers": TEXTS}),
}


def pictures(made, frames):
    with Stage(made, Guard(), float(frames.start / made.fps)) as stage:
        return list(stage.pictures(float(n / made.fps) for n in frames))


def differing(made, count_of_parts):
    """Returns the frames that are not those of the whole."""
    count = made.timeline.frame_count(made.fps)
    whole = pictures(made, range(count))
    parts = [Part(number, count_of_parts).frames(count) for number in range(count_of_parts)]
    split = [picture for frames in parts for picture in pictures(made, frames)]
    assert len(whole) == len(split) == count
    return [
        number
        for number, pair in enumerate(zip(whole, split, strict=True))
        if not all(map(torch.equal, *(frame.planes for frame in pair)))
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("of", [1, 2, 3, 8])
def test_parts_have_each_frame_once(count, of):
    """In order; and none is empty where there are enough."""
    parts = [Part(number, of).frames(count) for number in range(of)]
    assert [frame for frames in parts for frame in frames] == list(range(count))
    assert all(parts) or count < of
    assert [Part(number, of).is_last for number in range(of)] == [False] * (of - 1) + [True]


@pytest.mark.parametrize("job", EDITS)
def test_each_picture_is_the_one_of_the_whole(job):
    """Borders fall into speeds, transitions and texts."""
    job_type, params = EDITS[job]
    assert differing(composition(job_type, params, {"a": CASES / "plain.mp4"}), 5) == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", X265),
        ("a.mp4", ("-c:v", "libx264", "-x264-params", OPEN)),
        ("a.mp4", ("-c:v", "libx264", "-x264-params", "intra-refresh=1:keyint=12")),
        ("a.mp4", ("-vf", "select='lt(t,1)+not(mod(n,3))'", "-fps_mode", "vfr")),
        ("a.mkv", ("-vf", "select='lt(t,1)+not(mod(n,3))'", "-fps_mode", "vfr")),
    ],
)
def test_each_picture_whatever_the_file_is(tmp_path, name, options):
    """Open groups of pictures, and rates that vary."""
    path = make(tmp_path / name, "-i", CASES / "plain.mp4", *options)
    assert differing(composition("framing", SIZE | MOVING, {"a": path}), 4) == []


def test_pictures_that_are_held_for_long(tmp_path):
    """A border where nothing happens."""
    made = composition("framing", SIZE | {"target_fps": 10}, {"a": CASES / "hold.mp4"})
    assert differing(made, 6) == []
