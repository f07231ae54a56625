"""A picture between decode and encode: three planes of 8-bit BT.709 limited-range YCbCr, 4:2:0,
MPEG-2 siting; and a box in it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch

T = TypeVar("T", bound=Any)


def chroma_size(luma: int) -> int:
    """Returns the chroma samples for that many luma samples along one axis."""
    return (luma + 1) // 2


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        y: (height, width) uint8, 16 black to 235 white.
        u, v: (ceil(height / 2), ceil(width / 2)) uint8, 128 neutral; horizontally on every even
            luma sample, vertically halfway between two.
    """

    y: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor

    @property
    def planes(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.y, self.u, self.v

    @property
    def width(self) -> int:
        return self.y.shape[1]

    @property
    def height(self) -> int:
        return self.y.shape[0]

    def cut(self, width: int, height: int) -> "Frame":
        """Returns the top-left part of that size; itself where it has that size already."""
        if (width, height) == (self.width, self.height):
            return self
        return self.region(Region(0, 0, width, height))

    def region(self, region: "Region") -> "Frame":
        """Returns a part of the picture, as views."""
        left, top = region.left, region.top
        right, bottom = left + region.width, top + region.height
        rows, columns = slice(top // 2, chroma_size(bottom)), slice(left // 2, chroma_size(right))
        return Frame(self.y[top:bottom, left:right], self.u[rows, columns], self.v[rows, columns])

    def __repr__(self) -> str:
        return f"Frame({self.width}x{self.height}, {self.y.device})"


@dataclass(frozen=True)
class FrameBatch:
    """Frames of one size, stacked.

    Attributes:
        y: (n, height, width) uint8.
        u, v: (n, ceil(height / 2), ceil(width / 2)) uint8.
    """

    y: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor

    @classmethod
    def of(cls, frames: Sequence[Frame]) -> "FrameBatch":
        """Stacks frames; views the planes of one that is alone."""
        if len(frames) == 1:
            return cls(*(plane[None] for plane in frames[0].planes))
        planes = zip(*(frame.planes for frame in frames), strict=True)
        return cls(*(torch.stack(plane) for plane in planes))

    def frames(self) -> list[Frame]:
        """Returns the frames one by one, as views."""
        return [Frame(*planes) for planes in zip(self.y, self.u, self.v, strict=True)]


#: The planes' values of black.
BLACK = (16, 128, 128)
#: R'G'B' of 0 to 1 to the planes' values, (offset, weights) each: ITU-R BT.709-6, items 3.2 to 3.4,
#: in limited range.
_KR, _KB = 0.2126, 0.0722
_KG = 1 - _KR - _KB
_U, _V = 112 / (1 - _KB), 112 / (1 - _KR)
RGB_TO_PLANES = (
    (16.0, (219 * _KR, 219 * _KG, 219 * _KB)),
    (128.0, (-_KR * _U, -_KG * _U, (1 - _KB) * _U)),
    (128.0, ((1 - _KR) * _V, -_KG * _V, -_KB * _V)),
)


def planes_of_rgb(red: T, green: T, blue: T) -> tuple[T, T, T]:
    """Returns Y, U and V (0 to 255, not rounded) of gamma-encoded R, G and B (0 to 1); numbers,
    arrays or tensors.
    """

    def plane(offset: float, weights: tuple[float, float, float]) -> T:
        return cast("T", offset + weights[0] * red + weights[1] * green + weights[2] * blue)

    y, u, v = (plane(*row) for row in RGB_TO_PLANES)
    return y, u, v


@dataclass(frozen=True)
class Box:
    """A crop in pixels of the upright picture; `x, y` is its top-left corner, and pixel i covers i
    to i + 1.
    """

    x: float
    y: float
    width: float
    height: float

    def inside(self, width: int, height: int) -> "Box":
        """Returns the box moved, and if need be shrunk, into a `width` x `height` picture."""
        w, h = min(self.width, width), min(self.height, height)
        return Box(min(max(self.x, 0.0), width - w), min(max(self.y, 0.0), height - h), w, h)


#: Of a size in pixels that was computed in several steps.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Region:
    """A part of a picture in whole luma pixels; `left` and `top` are even: chroma begins there."""

    left: int
    top: int
    width: int
    height: int

    @classmethod
    def around(cls, box: Box, margin: int, width: int, height: int) -> "Region":
        """Returns what a box covers and `margin` pixels around it, inside a `width` x `height`
        picture.

        Away from the edges, the region is as large for each place of a box of one size.
        """
        left = max(0, math.floor(box.x) - margin) & ~1
        top = max(0, math.floor(box.y) - margin) & ~1
        # Between keyframes of one size, a size is off by a rounding: no pixel is added for that.
        wide, high = (
            (math.ceil(length - ROUNDING) + 2 * margin + 3) & ~1
            for length in (box.width, box.height)
        )
        return cls(left, top, min(width - left, wide), min(height - top, high))

    def grown(self, wide: int, high: int, width: int, height: int) -> "Region":
        """Returns a region of at least `wide` x `high` that holds this one, in a `width` x `height`
        picture, as far as that goes; and of one size for all that are grown alike.
        """
        # What is left of the picture is even, so that a region at its far edge begins at an even
        # place.
        wide = width - (max(0, width - wide) & ~1)
        high = height - (max(0, height - high) & ~1)
        return Region(min(self.left, width - wide), min(self.top, height - high), wide, high)

    def relative(self, box: Box) -> Box:
        """Returns a box of the picture in pixels of the region."""
        return Box(box.x - self.left, box.y - self.top, box.width, box.height)


def alike(
    regions: Sequence[Region], width: int, height: int, side: Callable[[int], int] = int
) -> list[Region]:
    """Returns regions of one size that hold the given ones, in `width` x `height` pictures.

    Args:
        side: returns the length that a side gets, which is at least the largest region's.
    """
    wide = side(max(region.width for region in regions))
    high = side(max(region.height for region in regions))
    return [region.grown(wide, high, width, height) for region in regions]


#: How many samples of a plane a step works on at once where it needs several numbers for each of
#: them.
BAND_SAMPLES = 1 << 21


def bands(height: int, width: int) -> Iterator[slice]:
    """Yields the rows of a plane in stretches of about BAND_SAMPLES samples, each of a multiple of
    4 rows but for the last.
    """
    step = max(4, BAND_SAMPLES // width & ~3)
    for top in range(0, height, step):
        yield slice(top, min(height, top + step))


def frame_bytes(width: int, height: int) -> int:
    """Returns the size of a raw yuv420p picture."""
    return width * height + 2 * chroma_size(width) * chroma_size(height)


def frame_from_bytes(buffer: bytearray | np.ndarray, width: int, height: int) -> Frame:
    """Views one raw yuv420p picture as planes; the buffer must not be reused while the frame
    lives.
    """
    flat = torch.frombuffer(buffer, dtype=torch.uint8)
    chroma = chroma_size(width) * chroma_size(height)
    y, u, v = torch.split(flat, [width * height, chroma, chroma])
    half = (chroma_size(height), chroma_size(width))
    return Frame(y.view(height, width), u.view(half), v.view(half))
