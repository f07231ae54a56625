"""Repetitions: the same pixels in the same place are computed once."""

import pytest

from gpu_worker.media.frames import Box, Frame
from gpu_worker.media.transfer import all_to_device
from gpu_worker.upscale.distinct import Distinct
from tests.gpu_worker.pictures import noise

BOX = Box(10.3, 8.6, 20.0, 16.0)
A, B = noise(64, 48, 1), noise(64, 48, 2)


class Counting:
    """An engine that answers with new frames, and counts how many."""

    batch = 8

    def __init__(self):
        self.made = 0

    def __call__(self, frames, boxes, width, height):
        self.made += len(frames)
        return [noise(8, 8, self.made + n) for n in range(len(frames))]

    def let_go(self):
        self.gone = True


@pytest.fixture
def counting():
    """The engine, and the one before it."""
    engine = Counting()
    return engine, Distinct(engine, 4)


def copy_of(frame, **changed):
    planes = {name: getattr(frame, name).clone() for name in "yuv"}
    for name, (row, column) in changed.items():
        planes[name][row, column] ^= 1
    return Frame(**planes)


@pytest.mark.parametrize(
    ("frame", "box", "repeats"),
    [
        (A, BOX, True),
        (copy_of(A), BOX, True),
        # Outside of the box and its margin.
        (copy_of(A, y=(47, 63)), BOX, True),
        (copy_of(A, y=(10, 12)), BOX, False),
        # In the margin.
        (copy_of(A, y=(5, 12)), BOX, False),
        (copy_of(A, v=(8, 9)), BOX, False),
        (A, Box(10.4, 8.6, 20.0, 16.0), False),
        (B, BOX, False),
    ],
)
def test_only_an_exact_repetition_is_left_out(counting, frame, box, repeats):
    """Each pixel that the picture depends on, and the crop to the last digit."""
    engine, distinct = counting
    first = distinct([A], [BOX], 40, 32)[0]
    again = distinct([frame], [box], 40, 32)[0]
    assert (again is first) is repeats
    assert engine.made == (1 if repeats else 2)


def test_repetitions_within_a_batch_are_computed_once(counting):
    """Also where they repeat what the batch before ended with."""
    engine, distinct = counting
    made = distinct([A, A, B, B], [BOX] * 4, 40, 32)
    assert made[0] is made[1]
    assert made[2] is made[3]
    again = distinct([B, A], [BOX] * 2, 40, 32)
    assert again[0] is made[3]
    assert engine.made == 3


def test_the_next_clip_begins_anew(counting):
    """Also with the same picture."""
    engine, distinct = counting
    first = distinct([A], [BOX], 40, 32)[0]
    distinct.let_go()
    assert engine.gone
    assert distinct([A], [BOX], 40, 32)[0] is not first


def test_pixels_on_a_device_are_not_compared(counting, pretend):
    """The host would have to wait. The very same frame is known without; a frame of the host after
    one of the device is another one.
    """
    engine, distinct = counting
    here = all_to_device([A], pretend.device)
    pretend.counts.clear()
    first = distinct(here, [BOX], 40, 32)[0]
    assert distinct(here, [BOX], 40, 32)[0] is first
    assert distinct([A], [BOX], 40, 32)[0] is not first
    assert distinct(all_to_device([A], pretend.device), [BOX], 40, 32)[0] is not first
    assert pretend.counts["syncs"] == 0
    assert engine.made == 3
