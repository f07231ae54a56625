"""Mixing pictures by their weights."""

import pytest
import torch

from gpu_worker.edits.transition import mix
from gpu_worker.media.frames import Frame

pytestmark = pytest.mark.editing


def flat(y, u, v):
    half = (24, 32)
    return Frame(
        torch.full((48, 64), y, dtype=torch.uint8),
        torch.full(half, u, dtype=torch.uint8),
        torch.full(half, v, dtype=torch.uint8),
    )


def values(frame):
    return tuple(int(plane[3, 3]) for plane in frame.planes)


def test_a_picture_with_all_the_weight_passes_through():
    """The very same frame."""
    frame = flat(100, 90, 160)
    assert mix([(frame, 1.0)]) is frame


def test_a_dissolve_is_the_weighted_mean():
    """In each plane, rounded once."""
    assert values(mix([(flat(200, 100, 60), 0.25), (flat(40, 140, 200), 0.75)])) == (80, 130, 165)


def test_what_is_missing_is_black():
    """Half of a fade; at its end, black is 16 with neutral colour."""
    assert values(mix([(flat(216, 64, 192), 0.5)])) == (116, 96, 160)
    assert values(mix([(flat(216, 64, 192), 0.0)])) == (16, 128, 128)
