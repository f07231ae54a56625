"""The seam between an edit and the pixels that it shows.

An engine makes output pictures from what lies in boxes of source pictures. `edits.crop.Resampler`
is one: it resamples. `upscale.upscaler.Upscaler` is the other: it goes through a network first.
"""

from collections.abc import Sequence
from typing import Protocol

from gpu_worker.media.frames import Box, Frame


class Engine(Protocol):
    """Turns the pixels in `boxes[i]` of `frames[i]` into a frame of `width` x `height`, on its own
    device.

    Frames may be anywhere: what is not in a box need never be brought to the device.
    """

    @property
    def batch(self) -> int:
        """How many frames it wants at once."""
        ...

    def __call__(
        self, frames: Sequence[Frame], boxes: Sequence[Box], width: int, height: int
    ) -> list[Frame]: ...
