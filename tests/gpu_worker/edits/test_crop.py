"""Where the crop is, and how its pixels come out: against an oracle in float64 numpy."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from gpu_worker.edits.crop import CropPath, rotate, spline
from gpu_worker.errors import InvalidParams
from gpu_worker.media.facts import SourceFacts
from gpu_worker.media.frames import Box, Frame, frame_bytes, frame_from_bytes
from schemas.edits import FramingParams
from tests.gpu_worker.pictures import crop, noise, same

pytestmark = pytest.mark.editing

SOURCE = SourceFacts(1280, 720, Fraction(25), 10.0, 0, "h264", None, "bt709", False)


def path(source=SOURCE, **params):
    return CropPath.of(
        params := FramingParams.model_validate(params),
        source,
        params.output_width / params.output_height,
    )


def key(time, x, y=0.0, width=400.0, height=700.0):
    return {"time": time, "x": x, "y": y, "width": width, "height": height}


def frame_of(y, u=None, v=None):
    """A frame of numpy planes, with neutral chroma by default."""
    half = ((y.shape[0] + 1) // 2, (y.shape[1] + 1) // 2)
    planes = [y, *(np.full(half, 128, np.uint8) if plane is None else plane for plane in (u, v))]
    return Frame(*(torch.from_numpy(plane) for plane in planes))


# ── where ─────────────────────────────────────────────────────────────────────────────────────────


def test_between_keyframes_the_crop_moves_in_a_straight_line():
    """Position and size alike; before and after it rests."""
    line = path(crop_keyframes=[key(1.0, 0), key(3.0, 100, 20, 200, 350)])
    assert line.at(0.0) == line.at(1.0) == Box(0, 0, 400, 700)
    assert line.at(1.5) == Box(25, 5, 350, 612.5)
    assert line.at(9.0) == Box(100, 20, 200, 350)


@given(st.floats(0, 1))
def test_the_spline_through_two_keys_is_the_line(part):
    """A preview with either interpolation looks the same."""
    keys = [key(0.0, 10, 3), key(1.0, 500, 17)]
    line = path(crop_keyframes=keys).at(part)
    spline = path(crop_keyframes=keys, interpolation="catmull_rom").at(part)
    assert [spline.x, spline.y, spline.width] == pytest.approx([line.x, line.y, line.width])


def test_the_spline_goes_through_its_keys_without_a_kink():
    """Same place, and the same speed from both sides, at an inner key."""
    keys = [key(0.0, 0), key(1.0, 300), key(2.0, 400), key(3.0, 800)]
    spline = path(crop_keyframes=keys, interpolation="catmull_rom")
    assert [spline.at(t).x for t in (0, 1, 2, 3)] == pytest.approx([0, 300, 400, 800])
    step = 1e-4
    before = (spline.at(1.0).x - spline.at(1.0 - step).x) / step
    after = (spline.at(1.0 + step).x - spline.at(1.0).x) / step
    assert before == pytest.approx(after, rel=1e-2)
    assert before == pytest.approx((400 - 0) / 2, rel=1e-2)


@given(
    st.floats(0, 1), st.lists(st.floats(-1e4, 1e4, allow_subnormal=False), min_size=4, max_size=4)
)
def test_a_spline_stays_between_its_keys(part, values):
    """Whatever comes before and after; and a crop that rests, rests."""
    before, begin, end, after = values
    value = spline(part, before, begin, end, after)
    slack = 1e-9 * max(map(abs, values))
    assert min(begin, end) - slack <= value <= max(begin, end) + slack
    assert spline(part, before, begin, begin, after) == begin


def test_a_fast_zoom_never_mirrors_the_picture():
    """Widths of 320, 34, 34 and 320: the unclamped spline falls to -1.7 between them."""
    keys = [key(n, 0, 0, width, width) for n, width in enumerate((320, 34, 34, 320))]
    zoom = path(crop_keyframes=keys, interpolation="catmull_rom")
    widths = [zoom.at(float(moment)).width for moment in np.linspace(0, 3, 301)]
    assert min(widths) == pytest.approx(34)
    assert max(widths) == pytest.approx(320)


def test_where_nothing_overshoots_the_spline_is_catmull_roms():
    """As Catmull and Rom have it, by their weights."""
    values = (0.0, 300.0, 400.0, 800.0)
    for t in np.linspace(0, 1, 21):
        weights = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3)
        weights = (*weights, -(t**2) + t**3)
        wanted = sum(w * v for w, v in zip(weights, values, strict=True)) / 2
        assert spline(float(t), *values) == pytest.approx(wanted)


@given(st.lists(st.floats(10, 700), min_size=3, max_size=6), st.floats(0, 5))
def test_a_crop_of_one_ratio_keeps_it(widths, moment):
    """Width and height move at the same pace."""
    keys = [key(n, 0, 0, width, width / 2) for n, width in enumerate(widths)]
    box = path(crop_keyframes=keys, interpolation="catmull_rom").at(moment)
    assert box.width / box.height == pytest.approx(2)


def test_a_spline_keeps_the_size_where_the_keys_have_one():
    """A pan that rests and turns back."""
    keys = [key(0.0, 0), key(1.0, 880), key(2.0, 880), key(3.0, 0)]
    pan = path(crop_keyframes=keys, interpolation="catmull_rom")
    for moment in np.linspace(0, 3, 61):
        box = pan.at(float(moment))
        assert 0 <= box.x <= 1280 - box.width
        assert box.width == pytest.approx(400)


def test_without_keyframes_the_crop_is_the_largest_in_the_middle():
    """9:16 of 1280x720 is 405 wide."""
    assert path().at(5.0) == Box(437.5, 0, 405, 720)


def test_a_keyframe_by_frame_number_is_at_that_frames_time():
    """Frame 50 of 25 a second is at 2 s."""
    by_frame = path(crop_keyframes=[{"frame": 50, "x": 1, "y": 2, "width": 3, "height": 4}])
    assert by_frame.times == (2.0,)


def test_a_keyframe_outside_the_picture_is_named():
    """With its index and the picture's size."""
    with pytest.raises(InvalidParams, match=r"crop_keyframes\[1\].*1280x720"):
        path(crop_keyframes=[key(0.0, 0), key(1.0, 900)])


# ── pixels ────────────────────────────────────────────────────────────────────────────────────────


def oracle(plane, first_x, step_x, width, first_y, step_y, height):
    """Resamples one plane in float64, sample by sample, from the definition."""

    def cubic(x):
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    def matrix(first, step, count, length):
        scale = max(step, 1.0)
        weights = np.zeros((count, length))
        for i in range(count):
            centre = first + i * step
            lowest, highest = int(np.floor(centre - 2 * scale)), int(np.ceil(centre + 2 * scale))
            taps = [(k, cubic((k - centre) / scale)) for k in range(lowest, highest + 1)]
            total = sum(w for _, w in taps)
            for k, w in taps:
                weights[i, min(max(k, 0), length - 1)] += w / total
        return weights

    rows = matrix(first_y, step_y, height, plane.shape[0])
    columns = matrix(first_x, step_x, width, plane.shape[1])
    return np.clip(np.floor(rows @ plane.astype(np.float64) @ columns.T + 0.5), 0, 255)


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    box=st.tuples(st.floats(0, 0.6), st.floats(0, 0.6), st.floats(0.1, 0.4), st.floats(0.1, 0.4)),
    out=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    seed=st.integers(0, 1000),
)
def test_every_plane_is_resampled_as_defined(size, box, out, seed):
    """Any box, growing or shrinking, odd sizes too: within one level of the oracle, chroma where
    chroma sits.
    """
    (width, height), (out_width, out_height) = size, (2 * out[0], 2 * out[1])
    noise = np.random.default_rng(seed)
    half = ((height + 1) // 2, (width + 1) // 2)
    y, u, v = (noise.integers(0, 256, shape, np.uint8) for shape in ((height, width), half, half))
    area = Box(box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    made = crop(frame_of(y, u, v), area, out_width, out_height)
    step_x, step_y = area.width / out_width, area.height / out_height
    x0, y0 = area.x + step_x / 2 - 0.5, area.y + step_y / 2 - 0.5
    expected_y = oracle(y, x0, step_x, out_width, y0, step_y, out_height)
    # Output chroma (j, i) sits at luma column 2i and row 2j + 1/2; there in the source, halved, is
    # its position.
    chroma_x, chroma_y = x0 / 2, (area.y + step_y - 0.5 - 0.5) / 2
    expected_u = oracle(u, chroma_x, step_x, out_width // 2, chroma_y, step_y, out_height // 2)
    expected_v = oracle(v, chroma_x, step_x, out_width // 2, chroma_y, step_y, out_height // 2)
    for plane, expected in zip(made.planes, (expected_y, expected_u, expected_v), strict=True):
        assert np.abs(plane.numpy() - expected).max() <= 1


def test_a_crop_of_the_whole_picture_at_its_own_size_changes_nothing():
    """Bit for bit."""
    noise = np.random.default_rng(1)
    frame = frame_of(
        *(noise.integers(0, 256, shape, np.uint8) for shape in ((48, 64), (24, 32), (24, 32)))
    )
    made = crop(frame, Box(0, 0, 64, 48), 64, 48)
    assert all(torch.equal(a, b) for a, b in zip(made.planes, frame.planes, strict=True))


@pytest.mark.parametrize("offset", [0.0, 0.1, 0.25, 0.5, 0.73])
def test_a_pan_moves_by_fractions_of_a_pixel(offset):
    """On a ramp, whose value tells the position, the error is under 0.05 pixels."""
    ramp = np.tile((16 + np.arange(200)).astype(np.uint8), (120, 1))
    made = crop(frame_of(ramp), Box(20 + offset, 10, 100, 100), 386, 386).y.numpy().astype(float)
    expected = 16 + 20 + offset + (np.arange(386) + 0.5) * 100 / 386 - 0.5
    assert abs((made - expected).mean()) < 0.05


@pytest.mark.parametrize(
    ("degrees", "turn"),
    [
        (90, lambda a: np.rot90(a, 1)),
        (180, lambda a: np.rot90(a, 2)),
        (-90, lambda a: np.rot90(a, -1)),
    ],
    ids=["90", "180", "-90"],
)
def test_a_positive_rotation_is_counter_clockwise(degrees, turn):
    """Quarter turns of a square picture are exact."""
    noise = np.random.default_rng(2).integers(16, 236, (40, 40), np.uint8)
    made = rotate(frame_of(noise), degrees).y.numpy()
    assert np.abs(made.astype(int) - turn(noise).astype(int)).max() <= 1


def test_a_rotation_keeps_the_canvas_and_fills_with_black():
    """The corners of a turned picture are black: 16, with neutral colour."""
    white = frame_of(np.full((60, 100), 235, np.uint8))
    made = rotate(white, 30)
    assert (made.width, made.height) == (100, 60)
    assert made.y[0, 0] == 16
    assert abs(int(made.y[30, 50]) - 235) <= 1
    assert set(made.u.unique().tolist()) == {128}


def test_no_rotation_touches_nothing():
    """A rounding error for zero leaves the very same frame."""
    frame = frame_of(np.zeros((4, 4), np.uint8))
    assert rotate(frame, 2.8e-17) is frame


def test_a_raw_picture_is_viewed_as_planes():
    """Odd sizes have one chroma sample more, as ffmpeg writes them."""
    raw = bytearray(range(5 * 3 + 2 * 3 * 2))
    assert len(raw) == frame_bytes(5, 3)
    frame = frame_from_bytes(raw, 5, 3)
    assert (frame.y[2, 4].item(), frame.u[0, 0].item(), frame.v[1, 2].item()) == (14, 15, 26)


# ── the window ────────────────────────────────────────────────────────────────────────────────────

NOISE = noise(161, 121)


def small_source():
    return SourceFacts(161, 121, Fraction(25), 10.0, 0, "h264", None, "bt709", False)


@settings(max_examples=60, deadline=None)
@given(
    keys=st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=4),
    moment=st.floats(-0.5, 4.5),
    interpolation=st.sampled_from(["linear", "catmull_rom"]),
    scale=st.sampled_from([0.3, 1.0, 3.0]),
)
def test_the_window_holds_all_that_a_crop_reads(keys, moment, interpolation, scale):
    """At any moment of any path, splines that overshoot and zooms too: the same picture, bit for
    bit, from the window as from the whole.
    """
    boxes = [
        {"time": n, "x": x * (120 - 80 * w), "y": y * (80 - 50 * h), "width": w * 80 + 8}
        | {"height": h * 50 + 8}
        for n, (x, y, w, h) in enumerate(keys)
    ]
    crops = path(source=small_source(), crop_keyframes=boxes, interpolation=interpolation)
    box = crops.at(moment)
    size = 2 * round(box.width * scale / 2 + 1), 2 * round(box.height * scale / 2 + 1)
    window = crops.window(*size)
    if window is None:
        return
    cut = NOISE.region(window)
    assert same([crop(cut, window.relative(box), *size)], [crop(NOISE, box, *size)])


def test_a_path_over_the_whole_picture_has_no_window():
    """A pan from edge to edge needs all of it; a crop that rests needs its part."""
    pan = path(crop_keyframes=[key(0.0, 0), key(3.0, 880)])
    rest = path(crop_keyframes=[key(0.0, 401, 3, 300, 600)])
    assert pan.window(1080, 1920) is None
    window = rest.window(1080, 1920)
    assert (window.left, window.top) == (392, 0)
    assert 300 < window.width < 330
    assert 600 < window.height < 630
