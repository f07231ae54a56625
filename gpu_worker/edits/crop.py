"""The animated crop: where it is at each moment, and how its pixels become the output's.

Everything is float to the end, so a slow pan moves by fractions of a pixel. The Y, U and V planes
are resampled as they are: a linear filter commutes with the linear colour matrix, so going through
RGB would only cost time and rounding.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise

import torch
from torch.nn.functional import grid_sample

from gpu_worker.edits.keyframes import bracket, mixed, seconds_of
from gpu_worker.errors import InvalidParams
from gpu_worker.media.facts import SourceFacts
from gpu_worker.media.frames import (
    BLACK,
    Box,
    Frame,
    FrameBatch,
    Region,
    alike,
    bands,
    chroma_size,
)
from gpu_worker.media.resample import CUBIC_RADIUS, Axes, Filter, resample_to_bytes, taps
from gpu_worker.media.transfer import batch_to_device
from gpu_worker.upscale.engine import CONTEXT
from schemas.edits import Framing, Interpolation, first_keyframe_outside, is_upright

#: So many frames are resampled at once on a device, and of large ones so many pixels.
DEVICE_BATCH, DEVICE_PIXELS = 8, 1 << 25
#: A decoder cuts out what a path needs where that is less than this share of the picture; with some
#: pixels more for what is rounded.
WINDOW_SHARE, WINDOW_SLACK = 0.9, 4


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

    def window(self, width: int, height: int) -> Region | None:
        """Returns the part of the picture that an output of that size needs over all times; None
        where that is nearly all of it.
        """
        boxes = [*self.boxes]
        if self.interpolation is Interpolation.CATMULL_ROM:
            # Each number stays between those of its keys, but at a pace of its own.
            boxes += [
                Box(*map(max, zip(astuple(begin), astuple(end), strict=True)))
                for begin, end in pairwise(self.boxes)
            ]
        # Moved into the picture each, they hold what is between them when that is moved.
        boxes = [box.inside(self.width, self.height) for box in boxes]
        left, top = min(box.x for box in boxes), min(box.y for box in boxes)
        right, bottom = (
            max(box.x + box.width for box in boxes),
            max(box.y + box.height for box in boxes),
        )
        scale = max(max(box.width / width, box.height / height) for box in boxes)
        margin = max(_reach(scale), CONTEXT) + WINDOW_SLACK
        hull = Box(left, top, right - left, bottom - top)
        region = Region.around(hull, margin, self.width, self.height)
        worth = region.width * region.height < WINDOW_SHARE * self.width * self.height
        return region if worth else None

    def _between(self, index: int, part: float) -> Box:
        first, p1, p2, last = self._around(index)
        if self.interpolation is Interpolation.LINEAR:
            return mixed(((1 - part, p1), (part, p2)))
        numbers = zip(*map(astuple, (first, p1, p2, last)), strict=True)
        return Box(*(spline(part, *four) for four in numbers))

    def _around(self, index: int) -> tuple[Box, Box, Box, Box]:
        """Returns the keys of a stretch, with the one before and the one after it."""
        p1, p2 = self.boxes[index], self.boxes[index + 1]
        first = self.boxes[index - 1] if index > 0 else mixed(((2, p1), (-1, p2)))
        last = self.boxes[index + 2] if index + 2 < len(self.boxes) else mixed(((2, p2), (-1, p1)))
        return first, p1, p2, last


def spline(part: float, before: float, begin: float, end: float, after: float) -> float:
    """Returns the value at `part` (0 to 1) of the way from `begin` to `end`, on a cubic Hermite
    spline with the tangents of the uniform Catmull-Rom spline, clamped.

    E. Catmull, R. Rom, "A class of local interpolating splines", 1974: the tangent at a key is half
    the way from its neighbour to the other. F. Fritsch, R. Carlson, "Monotone piecewise cubic
    interpolation", 1980: between two keys, the spline does not leave what they span where no
    tangent is steeper than three times a straight line to a neighbour, and where a turning point is
    flat. Without that, a zoom from 320 to 34 pixels swings below zero, which mirrors the picture.

    Args:
        before, after: the neighbouring keys. At an end, the missing one is the mirror image of the
            other (2·begin - end), so that a spline through two keys is the straight line.
    """
    t, way = part, end - begin
    leaving, arriving = _tangent(begin - before, way), _tangent(way, after - end)
    return (
        begin + way * t * t * (3 - 2 * t) + leaving * t * (1 - t) ** 2 - arriving * t * t * (1 - t)
    )


def _tangent(before: float, after: float) -> float:
    """Returns the tangent at a key, from the ways to it and from it."""
    if before * after <= 0:
        return 0.0
    steepest = 3 * min(abs(before), abs(after))
    return math.copysign(min(abs(before + after) / 2, steepest), before)


@dataclass(frozen=True)
class Resampler:
    """The engine that resamples, on a device."""

    device: torch.device

    @property
    def batch(self) -> int:
        """How many frames it wants at once."""
        return 1 if self.device.type == "cpu" else DEVICE_BATCH

    def __call__(
        self, frames: Sequence[Frame], boxes: Sequence[Box], width: int, height: int
    ) -> list[Frame]:
        """Returns each frame's box, which lies inside the frame, at `width` x `height`.

        A frame passes through as it is, wherever it is, where nothing is to be done.
        """
        picture = frames[0].width, frames[0].height
        whole = Box(0.0, 0.0, float(picture[0]), float(picture[1]))
        resized = picture != (width, height)
        touched = [number for number, box in enumerate(boxes) if resized or box != whole]
        made = list(frames)
        step = max(1, DEVICE_PIXELS // max(picture[0] * picture[1], width * height))
        for first in range(0, len(touched), step):
            some = touched[first : first + step]
            shown = _cropped(
                [frames[number] for number in some],
                [boxes[number] for number in some],
                (width, height),
                self.device,
            )
            for number, frame in zip(some, shown, strict=True):
                made[number] = frame
        return made

    def let_go(self) -> None:
        """Keeps nothing of a clip."""


def _cropped(
    frames: Sequence[Frame], boxes: Sequence[Box], size: tuple[int, int], device: torch.device
) -> list[Frame]:
    """Resamples a box of each frame; only what the filters reach goes to the device."""
    width, height = frames[0].width, frames[0].height
    scale = max(max(box.width / size[0], box.height / size[1]) for box in boxes)
    margin = _reach(scale)
    regions = alike([Region.around(b, margin, width, height) for b in boxes], width, height)
    cut = [frame.region(region) for frame, region in zip(frames, regions, strict=True)]
    filters = _filters([r.relative(b) for r, b in zip(regions, boxes, strict=True)], size, cut[0])
    batch, arrived = batch_to_device(cut, filters, device)
    luma, chroma = arrived
    planes = ((batch.y, luma), (batch.u, chroma), (batch.v, chroma))
    return FrameBatch(*(resample_to_bytes(plane, axes) for plane, axes in planes)).frames()


def _reach(scale: float) -> int:
    """Returns how many luma pixels around a box a filter reads that shrinks by `scale`."""
    # It reaches twice as far in chroma.
    return math.ceil(2 * CUBIC_RADIUS * max(1.0, scale))


def _filters(boxes: Sequence[Box], size: tuple[int, int], frame: Frame) -> list[Axes]:
    """Returns the filters that make `size` of boxes of frames of one size, for luma and chroma."""
    width, height = size
    half = chroma_size(width), chroma_size(height)
    rows, columns = frame.y.shape
    x = [(box.x, box.width / width) for box in boxes]
    y = [(box.y, box.height / height) for box in boxes]
    luma = (
        Filter.of([taps(left + 0.5 * step - 0.5, step, width) for left, step in x], columns),
        Filter.of([taps(top + 0.5 * step - 0.5, step, height) for top, step in y], rows),
    )
    # Chroma sits on even luma columns (hence the x of luma sample 0, halved) and between luma rows.
    rows, columns = frame.u.shape
    chroma = (
        Filter.of(
            [taps((left + 0.5 * step - 0.5) / 2, step, half[0]) for left, step in x], columns
        ),
        Filter.of([taps((top + step - 1.0) / 2, step, half[1]) for top, step in y], rows),
    )
    return [luma, chroma]


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


def _rotate_plane(
    plane: torch.Tensor, picture: tuple[int, int], degrees: float, black: int, scale: int
) -> torch.Tensor:
    """Samples one plane bicubically along the turned axes; `scale` is 2 for chroma."""
    turned = torch.empty_like(plane)
    # Relative to black, because zeros are what comes in from outside.
    relative = plane.float().sub_(black)[None, None]
    for rows in bands(plane.shape[0], 4 * plane.shape[1]):
        grid = _turned_grid(plane, rows, picture, degrees, scale)
        sampled = grid_sample(
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
    arange = functools.partial(torch.arange, dtype=torch.float64, device=plane.device)
    x = arange(width) * scale
    y = arange(rows.start, rows.stop) * scale + (scale - 1) / 2
    centre_x, centre_y = (picture[0] - 1) / 2, (picture[1] - 1) / 2
    grid_y, grid_x = torch.meshgrid(y - centre_y, x - centre_x, indexing="ij")
    angle = math.radians(degrees)
    source_x = grid_x * math.cos(angle) - grid_y * math.sin(angle) + centre_x
    source_y = grid_x * math.sin(angle) + grid_y * math.cos(angle) + centre_y
    u = source_x / scale
    v = (source_y - (scale - 1) / 2) / scale
    grid = torch.stack([(2 * u + 1) / width - 1, (2 * v + 1) / height - 1], dim=-1)
    return grid.float()
