"""A picture between decode and encode: three planes of 8-bit BT.709 limited-range YCbCr, 4:2:0, MPEG-2 siting; and a
box in it.
"""

from dataclasses import dataclass

import torch


def chroma_size(luma: int) -> int:
    """Returns the chroma samples for that many luma samples along one axis."""
    return (luma + 1) // 2


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        y: (height, width) uint8, 16 black to 235 white.
        u, v: (ceil(height / 2), ceil(width / 2)) uint8, 128 neutral; horizontally on every even luma sample,
            vertically halfway between two.
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

    def to(self, device: torch.device) -> "Frame":
        """Returns the frame on a device; itself where it is there already."""
        return Frame(self.y.to(device), self.u.to(device), self.v.to(device))

    def __repr__(self) -> str:
        return f"Frame({self.width}x{self.height}, {self.y.device})"


@dataclass(frozen=True)
class Box:
    """A crop in pixels of the upright picture; `x, y` is its top-left corner, and pixel i covers i to i + 1."""

    x: float
    y: float
    width: float
    height: float

    def inside(self, width: int, height: int) -> "Box":
        """Returns the box moved, and if need be shrunk, into a `width` x `height` picture."""
        w, h = min(self.width, width), min(self.height, height)
        return Box(min(max(self.x, 0.0), width - w), min(max(self.y, 0.0), height - h), w, h)


def frame_bytes(width: int, height: int) -> int:
    """Returns the size of a raw yuv420p picture."""
    return width * height + 2 * chroma_size(width) * chroma_size(height)


def frame_from_bytes(buffer: bytearray, width: int, height: int) -> Frame:
    """Views one raw yuv420p picture as planes; the buffer must not be reused while the frame lives."""
    flat = torch.frombuffer(buffer, dtype=torch.uint8)
    chroma = chroma_size(width) * chroma_size(height)
    y, u, v = torch.split(flat, [width * height, chroma, chroma])
    half = (chroma_size(height), chroma_size(width))
    return Frame(y.view(height, width), u.view(half), v.view(half))
