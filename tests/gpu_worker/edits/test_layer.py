"""A picture with transparency over frames: exact blending, fades, places."""

import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from gpu_worker.edits.layer import TimedLayer, layer_of
from gpu_worker.media.frames import Frame

pytestmark = pytest.mark.editing

SIZE = (64, 48)
ALWAYS = (0.0, 10.0, 0.0)


def grey(level=100, size=SIZE):
    width, height = size
    half = torch.full(((height + 1) // 2, (width + 1) // 2), 128, dtype=torch.uint8)
    return Frame(torch.full((height, width), level, dtype=torch.uint8), half, half.clone())


def patch(colour, size=(8, 6)):
    return Image.new("RGBA", size, colour)


def test_an_opaque_patch_replaces_what_is_below_it():
    """White is 235; around it nothing changes."""
    drawn = layer_of(patch("#ffffffff"), (10, 12), SIZE, ALWAYS).draw(grey(), 5.0)
    expected = np.full((48, 64), 100)
    expected[12:18, 10:18] = 235
    assert (drawn.y.numpy() == expected).all()
    assert (drawn.u.numpy() == 128).all()


@pytest.mark.parametrize("place", [(10, 12), (11, 13), (-3, -2), (60, 45), (-5, 20)])
def test_colour_is_blended_by_its_alpha(place):
    """Half-transparent red, at even and odd places and over each edge: exact to a level, in luma
    and colour.
    """
    drawn = layer_of(patch((255, 0, 0, 128)), place, SIZE, ALWAYS).draw(grey(), 5.0)
    alpha = np.zeros((48, 64))
    x, y = place
    alpha[max(0, y) : max(0, y + 6), max(0, x) : max(0, x + 8)] = 128 / 255
    red = np.array([16 + 46.559, 128 - 25.664, 128 + 112.0])
    luma = np.floor(100 * (1 - alpha) + red[0] * alpha + 0.5)
    assert np.abs(drawn.y.numpy() - luma).max() <= 1
    # Chroma: two rows, and 1-2-1 across around each even column; beyond an edge there is nothing of
    # the layer.
    rows = (alpha[0::2] + alpha[1::2]) / 2
    padded = np.pad(rows, ((0, 0), (1, 0)), mode="edge")
    share = (padded[:, 0:-1:2] + 2 * rows[:, 0::2] + rows[:, 1::2]) / 4
    assert np.abs(drawn.v.numpy() - (128 + (red[2] - 128) * share)).max() <= 1.01


@pytest.mark.parametrize(
    ("moment", "presence"), [(2.0, 0.0), (2.1, 0.4), (3.0, 1.0), (3.95, 0.2), (4.0, 0.0)]
)
def test_a_layer_fades_in_and_out(moment, presence):
    """In straight lines; outside its time the very same frame comes back."""
    frame = grey()
    drawn = layer_of(patch("#ffffffff"), (10, 12), SIZE, (2.0, 4.0, 0.25)).draw(frame, moment)
    assert drawn.y[14, 12].item() == pytest.approx(100 + 135 * presence, abs=0.51)
    assert (drawn is frame) == (presence == 0)


def test_opacity_is_the_layers_own():
    """As an editor's slider says."""
    drawn = layer_of(patch("#ffffffff"), (10, 12), SIZE, ALWAYS, opacity=0.2).draw(grey(), 5.0)
    assert drawn.y[14, 12].item() == 127


def test_what_lies_outside_is_no_layer():
    """Nothing to draw."""
    assert layer_of(patch("#ffffffff"), (64, 0), SIZE, ALWAYS) is None
    assert layer_of(patch("#ffffffff"), (0, -6), SIZE, ALWAYS) is None


def test_an_odd_frame_is_covered_to_its_last_row():
    """Luma and chroma have one sample more than half."""
    size = (63, 47)
    drawn = layer_of(patch("#ffffffff", size), (0, 0), size, ALWAYS).draw(grey(size=size), 5.0)
    assert (drawn.y.numpy() == 235).all()


def test_the_frame_that_was_given_stays_as_it_was():
    """It may be shown again."""
    frame = grey()
    layer_of(patch("#ffffffff"), (10, 12), SIZE, ALWAYS).draw(frame, 5.0)
    assert (frame.y.numpy() == 100).all()


def test_a_layer_is_held_only_while_it_is_shown():
    """It is made once, when its time begins, and let go of when it is over."""
    made = []

    def make():
        layer = layer_of(patch("#ffffffff"), (10, 12), SIZE, (2.0, 4.0, 0.0))
        made.append(weakref.ref(layer))
        return layer

    timed = TimedLayer(2.0, 4.0, 48, make)
    frame = grey()
    assert timed.draw(frame, 1.9) is frame
    assert made == []
    drawn = [timed.draw(frame, moment) for moment in (2.0, 3.0, 3.9)]
    assert [one.y[14, 12].item() for one in drawn] == [235, 235, 235]
    assert timed.draw(frame, 4.0) is frame
    assert [layer() for layer in made] == [None]
