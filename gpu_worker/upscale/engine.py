"""The seam between an edit and the pixels that it shows.

An engine makes the output picture from what lies in a box of the source picture. `edits.crop.crop` is one: it
resamples. Real-ESRGAN will be another; until it is here, asking for it is an error and never a silent resize.
"""

from typing import Protocol

from gpu_worker.errors import ModelUnavailable
from gpu_worker.frames import Box, Frame


class Engine(Protocol):
    """Turns the pixels in `box` of `frame` into a frame of `width` x `height`, on the frame's device."""

    def __call__(self, frame: Frame, box: Box, width: int, height: int) -> Frame: ...


def quality_engine() -> Engine:
    """Returns the engine of export mode QUALITY.

    Raises:
        ModelUnavailable: always, in this release.
    """
    raise ModelUnavailable("This worker has no Real-ESRGAN model; submit the job with export_mode FAST.")
