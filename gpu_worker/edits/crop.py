"""The animated crop: where it is at each moment, and how its pixels become the output's.

Everything is float to the end, so a slow pan moves by fractions of a pixel. The Y, U and V planes
are resampled as they are: a linear filter commutes with the linear colour matrix, so going through
RGB would only cost time and rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from gpu_worker.edits.keyframes import bracket, mixed, seconds_of
from gpu_worker.errors import InvalidParams
from gpu_worker.media.frames import BLACK, Box, Frame, bands, chroma_size
from gpu_worker.media.probe import SourceFacts
from gpu_worker.media.resample import resample, taps
from gpu_worker.media.transfer import frame_to_device
from schemas.edits import Framing, Interpolation, first_keyframe_outside, is_upright


@dataclass(frozen=True)
class CropPath:
    """Where the crop is at each moment of the source."""

    times: tuple[float, ...]
    boxes: tuple[Box, ...]
    interpolation: Interpolation
    width: int
    height: int

    @classmethod
    def of(
        cls, params: Framing, source: SourceFacts, ratio: float, where: str = "params"
    ) -> "CropPath":
        """Builds the path; without keyframes, the largest centred crop of `ratio` (width : height).

        Raises:
            InvalidParams: a keyframe leaves the picture by more than a pixel.
        """
        keys = params.crop_keyframes
        outside = first_keyframe_outside(keys, source.width, source.height)
        if outside is not None:
            raise InvalidParams(
                f"{where}.crop_keyframes[{outside}] reaches outside the "
                f"{source.width}x{source.height} picture."
            )
        times = tuple(seconds_of(key.time, key.frame, source.fps) for key in keys)
        boxes = tuple(Box(key.x, key.y, key.width, key.height) for key in keys)
        if not keys:
            times, boxes = (0.0,), (_centred(ratio, source),)
        return cls(times, boxes, params.interpolation, source.width, source.height)

    def at(self, moment: float) -> Box:
        """Returns the crop at a moment (seconds of the source); before the first and after the last
        key it rests.
        """
        index, part = bracket(self.times, moment)
        box = self._between(index, part) if part else self.boxes[index]
        return box.inside(self.width, self.height)

    def largest_ratio(self, width: int, height: int) -> float:
        """Returns by how much the smallest crop is enlarged for an output of that size, along the
        worse axis.
        """
        return max(max(width / box.width, height / box.height) for box in self.boxes)

    def _between(self, index: int, part: float) -> Box:
        p1, p2 = self.boxes[index], self.boxes[index + 1]
        if self.interpolation is Interpolation.LINEAR:
            return mixed(((1 - part, p1), (part, p2)))
        first = self.boxes[index - 1] if index > 0 else mixed(((2, p1), (-1, p2)))
        last = self.boxes[index + 2] if index + 2 < len(self.boxes) else mixed(((2, p2), (-1, p1)))
        return mixed(zip(catmull_rom(part), (first, p1, p2, last), strict=True))


def catmull_rom(part: float) -> tuple[float, float, float, float]:
    """Returns the weights of p0 … p3 at `part` (0 to 1) of the way from p1 to p2, on the uniform
    Catmull-Rom spline.

    E. Catmull, R. Rom, "A class of local interpolating splines", 1974, tension 1/2. At the ends the
    missing neighbour is the mirror image of the other one (2·p1 - p2), so that a spline through two
    keys is the straight line.
    """
    t, t2, t3 = part, part * part, part**3
    return (
        0.5 * (-t + 2 * t2 - t3),
        0.5 * (2 - 5 * t2 + 3 * t3),
        0.5 * (t + 4 * t2 - 3 * t3),
        0.5 * (-t2 + t3),
    )


@dataclass(frozen=True)
class Resampler:
    """The engine that resamples, on a device."""

    device: torch.device
    batch: int = 1

    def __call__(
        self, frames: Sequence[Frame], boxes: Sequence[Box], width: int, height: int
    ) -> list[Frame]:
        """Returns each frame's box at `width` x `height`."""
        return [
            crop(frame_to_device(frame, self.device), box, width, height)
            for frame, box in zip(frames, boxes, strict=True)
        ]


def crop(frame: Frame, box: Box, width: int, height: int) -> Frame:
    """Resamples what lies in `box` to `width` x `height`, on the frame's device.

    Args:
        frame: the whole picture, uint8 planes.
        box: in pixels of the picture, inside it.

    Returns:
        A frame of the new size, rounded to uint8; the same where nothing is to be done.
    """
    if box == Box(0.0, 0.0, float(frame.width), float(frame.height)) and (
        frame.width,
        frame.height,
    ) == (
        width,
        height,
    ):
        return frame
    x, y = box.width / width, box.height / height
    luma = resample(
        frame.y, taps(box.x + 0.5 * x - 0.5, x, width), taps(box.y + 0.5 * y - 0.5, y, height)
    )
    # Chroma sits on even luma columns (hence the x of luma sample 0, halved) and between luma rows.
    columns = taps((box.x + 0.5 * x - 0.5) / 2, x, chroma_size(width))
    rows = taps((box.y + y - 1.0) / 2, y, chroma_size(height))
    return Frame(
        *(
            _rounded(plane)
            for plane in (luma, resample(frame.u, columns, rows), resample(frame.v, columns, rows))
        )
    )


def rotate(frame: Frame, degrees: float) -> Frame:
    """Turns the picture about its centre, counter-clockwise, on the same canvas; what comes in from
    outside is black.
    """
    if is_upright(degrees):
        return frame
    y, u, v = (
        _rotate_plane(plane, (frame.width, frame.height), degrees, black, scale)
        for plane, black, scale in zip(frame.planes, BLACK, (1, 2, 2), strict=True)
    )
    return Frame(y, u, v)


def _centred(ratio: float, source: SourceFacts) -> Box:
    width = min(float(source.width), source.height * ratio)
    height = width / ratio
    return Box((source.width - width) / 2, (source.height - height) / 2, width, height)


def _rounded(plane: torch.Tensor) -> torch.Tensor:
    return plane.add_(0.5).clamp_(0, 255).to(torch.uint8)


def _rotate_plane(
    plane: torch.Tensor, picture: tuple[int, int], degrees: float, black: int, scale: int
) -> torch.Tensor:
    """Samples one plane bicubically along the turned axes; `scale` is 2 for chroma."""
    turned = torch.empty_like(plane)
    # Relative to black, because zeros are what comes in from outside.
    relative = plane.float().sub_(black)[None, None]
    for rows in bands(plane.shape[0], 4 * plane.shape[1]):
        grid = _turned_grid(plane, rows, picture, degrees, scale)
        sampled = functional.grid_sample(
            relative, grid[None], mode="bicubic", padding_mode="zeros", align_corners=False
        )
        turned[rows] = (sampled[0, 0] + black + 0.5).clamp_(0, 255)
    return turned


def _turned_grid(
    plane: torch.Tensor, rows: slice, picture: tuple[int, int], degrees: float, scale: int
) -> torch.Tensor:
    """Returns where in the plane the samples of some rows come from, (rows, width, 2), as
    `grid_sample` takes it.
    """
    height, width = plane.shape
    # Positions in luma pixels from the picture's centre, minding where chroma samples sit.
    x = torch.arange(width, dtype=torch.float64) * scale
    y = torch.arange(rows.start, rows.stop, dtype=torch.float64) * scale + (scale - 1) / 2
    centre_x, centre_y = (picture[0] - 1) / 2, (picture[1] - 1) / 2
    grid_y, grid_x = torch.meshgrid(y - centre_y, x - centre_x, indexing="ij")
    angle = math.radians(degrees)
    source_x = grid_x * math.cos(angle) - grid_y * math.sin(angle) + centre_x
    source_y = grid_x * math.sin(angle) + grid_y * math.cos(angle) + centre_y
    u = source_x / scale
    v = (source_y - (scale - 1) / 2) / scale
    grid = torch.stack([(2 * u + 1) / width - 1, (2 * v + 1) / height - 1], dim=-1)
    return grid.float().to(plane.device)
