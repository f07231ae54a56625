"""A layer: a picture with transparency, put over frames from one moment to another."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from gpu_worker.edits.timeline import EPSILON_SECONDS, fade_at
from gpu_worker.frames import Frame, planes_of_rgb


@dataclass(frozen=True)
class Layer:
    """Shown from `start` to `end` (seconds of the source), fading in and out for `fade` seconds.

    Attributes:
        left, top: where its first sample is, in luma pixels; even.
        planes: for Y, U and V the colour times its alpha, and the alpha (0 to 1): float32, (h, w) each.
    """

    start: float
    end: float
    fade: float
    left: int
    top: int
    planes: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    def draw(self, frame: Frame, moment: float) -> Frame:
        """Returns the frame with the layer over it; itself where the layer is not shown."""
        if not self.start - EPSILON_SECONDS <= moment < self.end - EPSILON_SECONDS:
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
            over = area.float().mul_(1 - alpha * presence).add_(colour, alpha=presence)
            area.copy_(over.add_(0.5).clamp_(0, 255))
            drawn.append(plane)
        return Frame(*drawn)


def layer_of(
    picture: Image.Image,
    place: tuple[int, int],
    size: tuple[int, int],
    when: tuple[float, float, float],
    opacity: float = 1.0,
    device: torch.device | None = None,
) -> Layer | None:
    """Makes a layer of an RGBA picture whose top-left corner is at `place`; None where nothing of it is in the frame.

    Args:
        size: of the frames; what lies outside is cut off.
        when: start, end and fade.
    """
    x, y = place
    if x >= size[0] or y >= size[1] or x + picture.width <= 0 or y + picture.height <= 0:
        return None
    # With a clear column on each side: colour is averaged across three.
    left, top = max(0, x - 1) & ~1, max(0, y) & ~1
    right, bottom = min(size[0], x + picture.width + 1), min(size[1], y + picture.height)
    canvas = Image.new("RGBA", (right - left + (right - left) % 2, bottom - top + (bottom - top) % 2))
    canvas.paste(picture, (x - left, y - top))
    pixels = np.asarray(canvas, np.float32) / 255
    alpha = pixels[..., 3] * opacity
    planes = []
    for index, plane in enumerate(planes_of_rgb(*np.moveaxis(pixels[..., :3], -1, 0))):
        colour, covered = plane * alpha, alpha
        if index > 0:
            colour, covered = _at_chroma(colour), _at_chroma(covered)
        # An odd frame has no luma for the canvas' last column or row.
        scale = 1 if index == 0 else 2
        rows = -(-(size[1] - top) // scale)
        columns = -(-(size[0] - left) // scale)
        planes.append(
            tuple(torch.from_numpy(part[:rows, :columns].copy()).to(device) for part in (colour, covered))
        )
    return Layer(*when, left, top, tuple(planes))  # type: ignore[arg-type]  # pairs, built just above


def _at_chroma(plane: np.ndarray) -> np.ndarray:
    """Averages (h, w), both even, at the places of 4:2:0 chroma in MPEG-2 siting: 1-2-1 across, two rows down."""
    rows = (plane[0::2] + plane[1::2]) / 2
    before = np.concatenate([rows[:, :1], rows[:, 1:-1:2]], axis=1)
    return np.asarray((before + 2 * rows[:, 0::2] + rows[:, 1::2]) / 4)
