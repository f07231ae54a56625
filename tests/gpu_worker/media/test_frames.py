"""Pictures in pieces."""

import pytest
import torch

from gpu_worker.edits.crop import crop, rotate
from gpu_worker.edits.highlight import Ellipse, Highlights, Region
from gpu_worker.edits.layer import layer_of
from gpu_worker.edits.transition import mix
from gpu_worker.media import frames, resample
from gpu_worker.media.frames import Box, Frame, bands
from schemas.overlays import Effect
from tests.gpu_worker.edits.test_layer import patch

SIZE = (321, 203)


def noise(seed):
    """A frame of an odd size."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((203, 321), (102, 161), (102, 161))
    return Frame(
        *(torch.randint(16, 235, shape, dtype=torch.uint8, generator=generator) for shape in shapes)
    )


def highlighted(frame, effect):
    """With six ellipses that overlap, more than are kept from the effect to the stroke."""
    ellipses = [
        Ellipse(60 + 30 * i, 100, 50, 70, 0.9 - 0.1 * i, 0.8, 0.3, 100, 90, 200) for i in range(6)
    ]
    regions = tuple(Region(0.0, 1.0, 0.0, (0.0,), (ellipse,)) for ellipse in ellipses)
    return Highlights(effect, 0.7, 0.2, 3.0, 4.0, regions).draw(frame, 0.5)


STEPS = {
    **{effect.value: lambda effect=effect: highlighted(noise(1), effect) for effect in Effect},
    "rotate": lambda: rotate(noise(1), 13),
    "mix": lambda: mix([(noise(1), 0.3), (noise(2), 0.7)]),
    "crop": lambda: crop(noise(1), Box(3.3, 1.7, 200.5, 150.1), 320, 240),
    "layer": lambda: layer_of(patch("#ff00ff80", (300, 180)), (5, 7), SIZE, (0, 1, 0)).draw(
        noise(1), 0.5
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
