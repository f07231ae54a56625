"""The seam between an edit and the pixels that it shows.

An engine makes the output picture from what lies in a box of the source picture. `edits.crop.crop` is one: it
resamples. `upscale.upscaler.Upscaler` is the other: it goes through a network first.
"""

from typing import Protocol

from gpu_worker.frames import Box, Frame


class Engine(Protocol):
    """Turns the pixels in `box` of `frame` into a frame of `width` x `height`, on the frame's device."""

    def __call__(self, frame: Frame, box: Box, width: int, height: int) -> Frame: ...
