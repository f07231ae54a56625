"""A layer: a picture with transparency, put over frames from one moment to another."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from gpu_worker.edits.timeline import fade_at, is_shown
from gpu_worker.media.frames import Frame, bands, planes_of_rgb
from gpu_worker.media.transfer import to_device

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Layer:
    """Shown from `start` to `end` (seconds of the source), fading in and out for `fade` seconds.

    Attributes:
        left, top: where its first sample is, in luma pixels; even.
        planes: for Y, U and V the colour times its alpha, and the alpha (0 to 1): float32, (h, w)
            each.
    """

    start: float
    end: float
    fade: float
    left: int
    top: int
    planes: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    def draw(self, frame: Frame, moment: float) -> Frame:
        """Returns the frame with the layer over it; itself where the layer is not shown."""
        if not is_shown(self.start, self.end, moment):
            return frame
        presence = fade_at(moment, self.start, self.end, self.fade)
        if presence == 0:
            return frame
        drawn = []
        for index, (colour, alpha) in enumerate(self.planes):
            scale = 1 if index == 0 else 2
            top, left = self.top // scale, self.left // scale
            plane = frame.planes[index].clone()
            area = plane[top : top + alpha.shape[0], left : left + alpha.shape[1]]
            for rows in bands(*alpha.shape):
                over = (
                    area[rows]
                    .float()
                    .mul_(1 - alpha[rows] * presence)
                    .add_(colour[rows], alpha=presence)
                )
                area[rows] = over.add_(0.5).clamp_(0, 255)
            drawn.append(plane)
        return Frame(*drawn)


class TimedLayer:
    """A layer that is made when it is first shown, and let go of when its time is over: a job may
    have hundreds.

    Args:
        start, end: seconds of the source.
        pixels: how many of its pixels are in the frame.
        make: returns the layer; None where nothing of it is in the frame.
    """

    def __init__(
        self, start: float, end: float, pixels: int, make: Callable[[], Layer | None]
    ) -> None:
        self.start, self.end, self.pixels = start, end, pixels
        self._make = make
        self._made: Layer | None = None

    def draw(self, frame: Frame, moment: float) -> Frame:
        """Returns the frame with the layer over it; itself where the layer is not shown."""
        if not self.is_shown(moment):
            self.let_go()
            return frame
        if self._made is None:
            self._made = self._make()
        return frame if self._made is None else self._made.draw(frame, moment)

    def is_shown(self, moment: float) -> bool:
        """True from its start to before its end."""
        return is_shown(self.start, self.end, moment)

    def let_go(self) -> None:
        """Frees its pixels; it is made again if it is drawn again."""
        self._made = None


def seen_part(
    picture: tuple[int, int], place: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Returns left, top, right and bottom of what a layer of a picture's size covers in frames of
    `size`; None: nothing.

    It is of an even size, as colour needs it.
    """
    x, y = place
    if x >= size[0] or y >= size[1] or x + picture[0] <= 0 or y + picture[1] <= 0:
        return None
    # With a clear column on each side: colour is averaged across three.
    left, top = max(0, x - 1) & ~1, max(0, y) & ~1
    right, bottom = min(size[0], x + picture[0] + 1), min(size[1], y + picture[1])
    return left, top, right + (right - left) % 2, bottom + (bottom - top) % 2


def layer_of(
    picture: Image.Image,
    place: tuple[int, int],
    size: tuple[int, int],
    when: tuple[float, float, float],
    opacity: float = 1.0,
    device: torch.device = CPU,
) -> Layer | None:
    """Makes a layer of an RGBA picture whose top-left corner is at `place`; None where nothing of
    it is in the frame.

    Args:
        size: of the frames; what lies outside is cut off.
        when: start, end and fade.
    """
    seen = seen_part(picture.size, place, size)
    if seen is None:
        return None
    left, top, right, bottom = seen
    canvas = Image.new("RGBA", (right - left, bottom - top))
    canvas.paste(picture, (place[0] - left, place[1] - top))
    planes = []
    for scale, plane in zip((1, 2, 2), _planes(canvas, opacity), strict=True):
        # An odd frame has no luma for the canvas' last column or row.
        rows, columns = -(-(size[1] - top) // scale), -(-(size[0] - left) // scale)
        colour, alpha = (
            torch.from_numpy(np.ascontiguousarray(part[:rows, :columns])) for part in plane
        )
        planes.append((to_device(colour, device), to_device(alpha, device)))
    return Layer(*when, left, top, tuple(planes))


def _planes(picture: Image.Image, opacity: float) -> list[np.ndarray]:
    """Returns, for Y, U and V, the colour times its alpha, and the alpha, (2, h, w) each, of an
    RGBA picture.

    Its size is even.
    """
    width, height = picture.size
    made = [np.empty((2, height // scale, width // scale), np.float32) for scale in (1, 2, 2)]
    for rows in bands(height, 4 * width):
        pixels = np.asarray(picture.crop((0, rows.start, width, rows.stop)), np.float32) / 255
        alpha = pixels[..., 3] * opacity
        for index, plane in enumerate(planes_of_rgb(*np.moveaxis(pixels[..., :3], -1, 0))):
            if index == 0:
                made[index][:, rows] = plane * alpha, alpha
            else:
                half = slice(rows.start // 2, rows.stop // 2)
                made[index][:, half] = _at_chroma(plane * alpha), _at_chroma(alpha)
    return made


def _at_chroma(plane: np.ndarray) -> np.ndarray:
    """Averages (h, w), both even, at the places of 4:2:0 chroma in MPEG-2 siting: 1-2-1 across, two
    rows down.
    """
    rows = (plane[0::2] + plane[1::2]) / 2
    before = np.concatenate([rows[:, :1], rows[:, 1:-1:2]], axis=1)
    return np.asarray((before + 2 * rows[:, 0::2] + rows[:, 1::2]) / 4)
