"""Pictures in pieces."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from gpu_worker.edits import highlight
from gpu_worker.edits.crop import rotate
from gpu_worker.edits.highlight import Ellipse, Highlights
from gpu_worker.edits.layer import layer_of
from gpu_worker.edits.transition import mix
from gpu_worker.media import frames, resample
from gpu_worker.media.frames import Box, Region, alike, bands
from schemas.overlays import Effect
from tests.gpu_worker.edits.test_layer import patch
from tests.gpu_worker.pictures import crop, noise

#: An odd one.
SIZE = (321, 203)


def highlighted(frame, effect):
    """With six ellipses that overlap, more than are kept from the effect to the stroke."""
    ellipses = [
        Ellipse(60 + 30 * i, 100, 50, 70, 0.9 - 0.1 * i, 0.8, 0.3, 100, 90, 200) for i in range(6)
    ]
    regions = tuple(highlight.Region(0.0, 1.0, 0.0, (0.0,), (ellipse,)) for ellipse in ellipses)
    return Highlights(effect, 0.7, 0.2, 3.0, 4.0, regions).draw(frame, 0.5)


STEPS = {
    **{
        effect.value: lambda effect=effect: highlighted(noise(*SIZE, 1), effect)
        for effect in Effect
    },
    "rotate": lambda: rotate(noise(*SIZE, 1), 13),
    "mix": lambda: mix([(noise(*SIZE, 1), 0.3), (noise(*SIZE, 2), 0.7)]),
    "crop": lambda: crop(noise(*SIZE, 1), Box(3.3, 1.7, 200.5, 150.1), 320, 240),
    "layer": lambda: layer_of(patch("#ff00ff80", (300, 180)), (5, 7), SIZE, (0, 1, 0)).draw(
        noise(*SIZE, 1), 0.5
    ),
}


@pytest.mark.editing
@pytest.mark.parametrize("step", STEPS)
def test_a_picture_is_the_same_in_bands(monkeypatch, step):
    """Each step makes the same picture, bit by bit, whether it works on the whole or on a few rows
    at a time.
    """
    whole = STEPS[step]()
    for module in (frames, resample):
        monkeypatch.setattr(module, "BAND_SAMPLES", 1 << 11)
    pieces = STEPS[step]()
    assert all(torch.equal(a, b) for a, b in zip(whole.planes, pieces.planes, strict=True))


@pytest.mark.parametrize(("height", "width"), [(203, 321), (1, 10**7), (4320, 8192), (4, 4)])
def test_bands_cover_a_plane_once(height, width):
    """In order, without a gap, each of a multiple of 4 rows but for the last."""
    rows = list(bands(height, width))
    assert [row for band in rows for row in range(band.start, band.stop)] == list(range(height))
    assert all((band.stop - band.start) % 4 == 0 for band in rows[:-1])


@settings(deadline=None)
@given(
    picture=st.tuples(st.integers(2, 90), st.integers(2, 90)),
    boxes=st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=5),
    margin=st.integers(0, 12),
)
def test_regions_of_a_batch_have_one_size_and_hold_their_boxes(picture, boxes, margin):
    """Any boxes, odd pictures too: inside the picture, from even places, with the margin where the
    picture has it.
    """
    width, height = picture
    places = [
        Box(x * (1 - w) * width, y * (1 - h) * height, w * width, h * height)
        for x, y, w, h in boxes
    ]
    around = [Region.around(box, margin, width, height) for box in places]
    regions = alike(around, width, height)
    assert len({(region.width, region.height) for region in regions}) == 1
    for box, region in zip(places, regions, strict=True):
        assert region.left % 2 == region.top % 2 == 0
        assert 0 <= region.left <= max(0, math.floor(box.x) - margin)
        assert 0 <= region.top <= max(0, math.floor(box.y) - margin)
        right, bottom = region.left + region.width, region.top + region.height
        assert min(width, math.ceil(box.x + box.width) + margin) <= right <= width
        assert min(height, math.ceil(box.y + box.height) + margin) <= bottom <= height
