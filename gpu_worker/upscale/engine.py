"""The seam between an edit and the pixels that it shows.

An engine makes output pictures from what lies in boxes of source pictures. `edits.crop.Resampler`
is one: it resamples. `upscale.upscaler.Upscaler` is another: it goes through a network first.
`upscale.distinct.Distinct` stands before an engine and leaves out repetitions.
"""

from collections.abc import Sequence
from typing import Protocol

from gpu_worker.media.frames import Box, Frame

#: Real pixels around a box that a network sees too, so that the box's edges are not the picture's.
CONTEXT = 4


class Engine(Protocol):
    """Turns the pixels in `boxes[i]` of `frames[i]` into a frame of `width` x `height`, on its own
    device.

    The frames have one size, and may be anywhere: what is not in a box need never be brought to the
    device.
    """

    @property
    def batch(self) -> int:
        """How many frames it wants at once."""
        ...

    def __call__(
        self, frames: Sequence[Frame], boxes: Sequence[Box], width: int, height: int
    ) -> list[Frame]: ...

    def let_go(self) -> None:
        """Frees what it keeps for a clip, which has ended."""
        ...
