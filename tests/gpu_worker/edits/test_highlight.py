"""Highlights against an oracle in float64, written from the table in docs/effects.md."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from gpu_worker.edits.highlight import DEFAULT_FEATHER, DEFAULT_STRENGTH, Highlights
from gpu_worker.media.facts import SourceFacts
from gpu_worker.media.frames import Frame
from schemas.overlays import Effect, OverlayParams

pytestmark = pytest.mark.editing

WIDTH, HEIGHT = 161, 119
SOURCE = SourceFacts(WIDTH, HEIGHT, Fraction(25), 10.0, 0, "h264", None, "bt709", False)
LEGAL_MAX = (235, 240, 240)


@pytest.fixture
def frame():
    """Noise over a ramp, odd in both directions."""
    noise = np.random.default_rng(7)

    def plane(height, width, low, high):
        ramp = np.linspace(low, high, width)[None] + noise.uniform(-20, 20, (height, width))
        return torch.from_numpy(np.clip(ramp, 16, 235).astype(np.uint8))

    return Frame(plane(119, 161, 30, 230), plane(60, 81, 60, 200), plane(60, 81, 190, 70))


def region(start=0.0, end=10.0, **keyframe):
    base = {"x": 80.3, "y": 55.7, "radius_x": 30.5, "radius_y": 22.25}
    return {"start_time": start, "end_time": end, "keyframes": [base | keyframe]}


def highlights(effect, *regions, source=SOURCE, **params):
    asked = {"effect_type": effect, "highlight_regions": list(regions), **params}
    return Highlights.of(OverlayParams.model_validate(asked), source)


# ── the oracle ────────────────────────────────────────────────────────────────────────────────────


def distance(index, x, y, a, b):
    """Distance from the outline to first order, at each sample of a plane, in float64."""
    scale = 1 if index == 0 else 2
    height, width = (HEIGHT, WIDTH) if index == 0 else ((HEIGHT + 1) // 2, (WIDTH + 1) // 2)
    dx = (np.arange(width) * scale + 0.5 - x)[None]
    dy = (np.arange(height) * scale + (0.5 if scale == 1 else 1.0) - y)[:, None]
    nearness = np.hypot(dx / a, dy / b)
    return nearness * (nearness - 1) / np.maximum(np.hypot(dx / a**2, dy / b**2), 1e-12)


def smooth(d, edge):
    part = np.clip(0.5 - d / edge, 0, 1)
    return part * part * (3 - 2 * part)


def blurred(plane, sigma, block):
    """Averages of blocks, a Gaussian over them, bilinear back; edges repeat."""
    height, width = plane.shape
    padded = np.pad(plane, ((0, -height % block), (0, -width % block)), mode="edge")
    rows, columns = padded.shape[0] // block, padded.shape[1] // block
    small = padded.reshape(rows, block, columns, block).mean(axis=(1, 3))
    radius = int(np.ceil(3 * sigma / block))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) * block / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (1, 0):
        wide = np.pad(
            small, [(radius, radius) if a == axis else (0, 0) for a in (0, 1)], mode="edge"
        )
        small = np.apply_along_axis(lambda line: np.convolve(line, kernel, "valid"), axis, wide)

    def positions(count, length):
        at = np.clip((np.arange(count) + 0.5) / block - 0.5, 0, length - 1)
        low = np.minimum(np.floor(at).astype(int), length - 1)
        return low, np.minimum(low + 1, length - 1), at - low

    top, down, v = positions(height, rows)
    left, right, h = positions(width, columns)
    across = small[:, left] * (1 - h) + small[:, right] * h
    return across[top] * (1 - v)[:, None] + across[down] * v[:, None]


def oracle(frame, effect, ellipses, strength=None, stroke=2.0, feather=None):
    """Draws ellipses [{x, y, a, b, amount, stroke_opacity, fill_opacity, colour}] by the table."""
    strength = DEFAULT_STRENGTH[effect] if strength is None else strength
    feather = DEFAULT_FEATHER[effect] if feather is None else feather
    planes = []
    for index, black in enumerate((16, 128, 128)):
        p = frame.planes[index].numpy().astype(np.float64)
        d = [distance(index, e["x"], e["y"], e["a"], e["b"]) for e in ellipses]
        edges = [max(1.0, feather * min(e["a"], e["b"])) for e in ellipses]
        light = np.max(
            [e["amount"] * smooth(x, w) for e, x, w in zip(ellipses, d, edges, strict=True)], axis=0
        )
        outside = max(e["amount"] for e in ellipses) - light
        if effect in (Effect.DARK_OVERLAY, Effect.SPOTLIGHT):
            p = black + (p - black) * (1 - strength * outside)
        elif effect is Effect.BRIGHTNESS_BOOST:
            p = np.clip(black + (p - black) * (1 + strength * light), 16, LEGAL_MAX[index])
        elif effect is Effect.BLUR:
            scale = 1 if index == 0 else 2
            p = p + (blurred(p, HEIGHT * 0.01 / scale, 4 // scale) - p) * strength * outside
        for e, x in zip(ellipses, d, strict=True):
            p = p + (e["colour"][index] - p) * smooth(x, 1.0) * e["amount"] * e["fill_opacity"]
            cover = np.clip((stroke + 1) / 2 - np.abs(x), 0, 1)
            p = p + (e["colour"][index] - p) * cover * e["presence"] * e["stroke_opacity"]
        planes.append(np.clip(np.floor(p + 0.5), 0, 255))
    return planes


WHITE = (16 + 219 * 1.0, 128.0, 128.0)


def ellipse(x=80.3, y=55.7, a=30.5, b=22.25, amount=1.0, **more):
    base = {"stroke_opacity": 0.85, "fill_opacity": 0.0, "colour": WHITE, "presence": amount}
    return {"x": x, "y": y, "a": a, "b": b, "amount": amount} | base | more


def worst(frame, planes):
    """Returns the largest difference of any plane."""
    return max(np.abs(a.numpy() - b).max() for a, b in zip(frame.planes, planes, strict=True))


@pytest.mark.parametrize("effect", Effect)
def test_each_effect_is_as_the_table_says(frame, effect, measured):
    """To one level, in all planes, at a place between pixels."""
    drawn = highlights(effect, region()).draw(frame, 5.0)
    error = worst(drawn, oracle(frame, effect, [ellipse()]))
    measured(f"effect {effect}: at most {error:.0f} of 255 off the oracle")
    assert error <= 1


@pytest.mark.parametrize("effect", Effect)
def test_overlapping_highlights_light_each_other_up(frame, effect):
    """What is in either is inside; strokes lie over one another in their order."""
    second = region(x=100.0, y=70.0, radius_x=25.0, radius_y=25.0, opacity=0.5, color="#000000")
    drawn = highlights(effect, region(), second).draw(frame, 5.0)
    black = (16.0, 128.0, 128.0)
    asked = [ellipse(), ellipse(100.0, 70.0, 25.0, 25.0, 0.5, colour=black, presence=1.0)]
    assert worst(drawn, oracle(frame, effect, asked)) <= 1


def test_strength_feather_stroke_and_fill_are_the_clients(frame):
    """A hard edge, no stroke, half filled."""
    params = {"effect_strength": 0.9, "feather": 0.0, "stroke_width": 0.0}
    drawn = highlights("dark_overlay", region(fill_opacity=0.5), **params).draw(frame, 5.0)
    asked = ellipse(fill_opacity=0.5, stroke_opacity=0.0)
    assert worst(drawn, oracle(frame, Effect.DARK_OVERLAY, [asked], 0.9, 0.0, 0.0)) <= 1


@pytest.mark.parametrize(("moment", "amount"), [(2.0, 0.0), (2.125, 0.5), (2.25, 1.0), (3.9, 0.4)])
def test_a_region_fades_in_and_out(frame, moment, amount):
    """A quarter of a second at each end, in a straight line."""
    drawn = highlights("dark_overlay", region(2.0, 4.0)).draw(frame, moment)
    assert worst(drawn, oracle(frame, Effect.DARK_OVERLAY, [ellipse(amount=amount)])) <= 1


@pytest.mark.parametrize("moment", [1.99, 4.0, 9.0])
def test_frames_that_no_region_touches_pass_through(frame, moment):
    """The very same frame, not a copy."""
    assert highlights("blur", region(2.0, 4.0)).draw(frame, moment) is frame


def test_a_region_that_is_switched_off_is_not_drawn(frame):
    """Editors keep them."""
    assert highlights("blur", region() | {"enabled": False}).draw(frame, 5.0) is frame


def test_between_keyframes_the_ellipse_moves_in_a_straight_line(frame):
    """Place, size, opacity and colour; after the last one it rests until the region ends."""
    keys = [
        {
            "time": 2.0,
            "x": 40.0,
            "y": 40.0,
            "radius_x": 20.0,
            "radius_y": 10.0,
            "opacity": 1.0,
            "color": "#ffffff",
        },
        {
            "time": 4.0,
            "x": 80.0,
            "y": 60.0,
            "radius_x": 30.0,
            "radius_y": 30.0,
            "opacity": 0.5,
            "color": "#000000",
        },
    ]
    marked = highlights("spotlight", {"start_time": 0.0, "end_time": 10.0, "keyframes": keys})
    grey = (16 + 219 / 2, 128.0, 128.0)
    half = ellipse(60.0, 50.0, 25.0, 20.0, 0.75, colour=grey, presence=1.0)
    last = ellipse(80.0, 60.0, 30.0, 30.0, 0.5, colour=(16.0, 128.0, 128.0), presence=1.0)
    assert worst(marked.draw(frame, 3.0), oracle(frame, Effect.SPOTLIGHT, [half])) <= 1
    assert worst(marked.draw(frame, 9.0), oracle(frame, Effect.SPOTLIGHT, [last])) <= 1


def test_coordinates_of_a_preview_are_scaled(frame):
    """A region drawn on a preview of another size and shape, each axis by itself."""
    small = {"x": 40.15, "y": 27.85 * 3, "radius_x": 15.25, "radius_y": 11.125 * 3}
    asked = region() | {
        "keyframes": [small],
        "video_width": WIDTH / 2,
        "video_height": HEIGHT * 1.5,
    }
    drawn = highlights("dark_overlay", asked).draw(frame, 5.0)
    assert worst(drawn, oracle(frame, Effect.DARK_OVERLAY, [ellipse()])) <= 1


def test_the_documents_static_form_is_one_keyframe(frame):
    """By frame numbers, the last one included."""
    static = {
        "start_frame": 50,
        "end_frame": 52,
        "x": 80.3,
        "y": 55.7,
        "radius_x": 30.5,
        "radiusY": 22.25,
    }
    marked = highlights("dark_overlay", static)
    assert marked.draw(frame, 49 / 25) is frame
    assert marked.draw(frame, 53 / 25) is frame
    expected = oracle(frame, Effect.DARK_OVERLAY, [ellipse()])
    for number in (50, 51, 52):
        assert worst(marked.draw(frame, number / 25), expected) <= 1


@pytest.mark.parametrize(
    "where", [{"x": -10.0}, {"y": 130.0}, {"x": 5000.0}, {"radius_x": 900.0, "radius_y": 900.0}]
)
def test_an_ellipse_may_leave_the_picture(frame, where):
    """Partly, wholly, or around all of it."""
    drawn = highlights("dark_overlay", region(**where)).draw(frame, 5.0)
    short = {"radius_x": "a", "radius_y": "b"}
    asked = ellipse(**{short.get(name, name): value for name, value in where.items()})
    assert worst(drawn, oracle(frame, Effect.DARK_OVERLAY, [asked])) <= 1
