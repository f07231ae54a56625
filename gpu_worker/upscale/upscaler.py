"""Real-ESRGAN as an engine: what lies in the crop goes through the network, and is resampled to the
output's size.

Crop first: pixels that nobody sees are neither computed nor brought to the device. Frames come and
go as uint8 planes; colour conversion, network and resampling run on the device. A frame that shows
exactly what the one before showed is not computed again.
"""

import contextlib
import functools
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gpu_worker.errors import OutOfMemory
from gpu_worker.media.frames import RGB_TO_PLANES, Box, Frame, chroma_size
from gpu_worker.media.resample import resample, taps
from gpu_worker.media.transfer import to_device
from gpu_worker.upscale.batches import Batches, CudaMemory, Memory
from gpu_worker.upscale.precision import dtype_for, in_layout
from gpu_worker.upscale.weights import Loaded

#: Real pixels around the crop that the network sees too, so that its edges are not the picture's.
CONTEXT = 4
#: A tile's side where a whole frame is too large, and what is computed around it and thrown away:
#: docs/models.md.
TILE, TILE_MARGIN, SMALLEST_TILE = 512, 48, 64
_OFFSETS = torch.tensor([offset for offset, _ in RGB_TO_PLANES])
_TO_PLANES = torch.tensor([weights for _, weights in RGB_TO_PLANES], dtype=torch.float64)
_TO_RGB: torch.Tensor = torch.linalg.inv(_TO_PLANES)


Planes = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class _Wanted:
    """What a frame has to show.

    Attributes:
        planes: the region that is computed, uint8.
        box: the crop, in pixels of the region.
    """

    planes: Planes
    box: Box
    width: int
    height: int

    @property
    def shape(self) -> tuple[int, int]:
        """Returns (height, width) of the region."""
        return self.planes[0].shape[0], self.planes[0].shape[1]

    def equals(self, other: "_Wanted") -> bool:
        """True where the result would be the same."""
        same_place = (self.box, self.width, self.height) == (other.box, other.width, other.height)
        return same_place and all(
            torch.equal(x, y) for x, y in zip(self.planes, other.planes, strict=True)
        )


class Upscaler:
    """One model, loaded and ready; an `Engine`.

    Args:
        dtype: None for what is fastest on the device.
        tile: None for whole frames as long as memory allows; else the side of a tile, in pixels of
            the source.
        memory: None for the device's own.
    """

    def __init__(
        self,
        model: Loaded,
        device: torch.device,
        dtype: torch.dtype | None = None,
        tile: int | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.name, self.factor, self.device = model.name, model.factor, device
        self.dtype = dtype or dtype_for(device)
        self.network = in_layout(model.network.to(device), self.dtype)
        self._tile = tile
        self._batches = Batches(memory or (CudaMemory(device) if device.type == "cuda" else None))
        self._last: tuple[_Wanted, Frame] | None = None

    @property
    def batch(self) -> int:
        """How many frames it wants at once: on a CPU one, whose activations just fit into the
        caches.
        """
        return self._batches.largest

    def __call__(
        self, frames: Sequence[Frame], boxes: Sequence[Box], width: int, height: int
    ) -> list[Frame]:
        """Makes outputs of `width` x `height` from what lies in each frame's box.

        Raises:
            OutOfMemory: not even small tiles fit.
        """
        wanted = [
            _wanted(frame, box, width, height) for frame, box in zip(frames, boxes, strict=True)
        ]
        new: list[_Wanted] = []
        # In `new`; -1 is what the last call ended with.
        places: list[int] = []
        last = self._last[0] if self._last else None
        for one in wanted:
            if last is None or not one.equals(last):
                new.append(one)
                last = one
            places.append(len(new) - 1)
        with _all_cores(self.device), torch.inference_mode():
            made = self._made(new)
        results = [
            made[place] if place >= 0 or self._last is None else self._last[1] for place in places
        ]
        if wanted:
            self._last = wanted[-1], results[-1]
        return results

    def _made(self, wanted: Sequence[_Wanted]) -> list[Frame]:
        """Computes neighbours of one shape together."""
        made: list[Frame] = []
        for shape, group in itertools.groupby(wanted, key=lambda one: one.shape):
            same = list(group)
            size = self._batches.size(shape, functools.partial(self._together, same[:1]))
            for start in range(0, len(same), size):
                made += self._together(same[start : start + size])
        return made

    def _together(self, wanted: Sequence[_Wanted]) -> list[Frame]:
        stacks = zip(*(one.planes for one in wanted), strict=True)
        y, u, v = (to_device(torch.stack(stack), self.device) for stack in stacks)
        rgb = torch.stack([rgb_of(planes) for planes in zip(y, u, v, strict=True)])
        pictures = self._enlarged(rgb.to(self.dtype))
        return [
            _frame(picture, one.box, self.factor, one.width, one.height)
            for picture, one in zip(pictures, wanted, strict=True)
        ]

    def enlarge(self, rgb: torch.Tensor) -> torch.Tensor:
        """Runs the network on (n, 3, h, w) R'G'B' of 0 to 1, on the device; returns the same,
        enlarged, in `dtype`.
        """
        with _all_cores(self.device), torch.inference_mode():
            return self._enlarged(rgb.to(self.device, self.dtype))

    def _enlarged(self, rgb: torch.Tensor) -> torch.Tensor:
        # x2plus sees every second pixel: an even number of them.
        height, width = rgb.shape[2:]
        rgb = nn.functional.pad(rgb, (0, width % 2, 0, height % 2), mode="replicate")
        picture = self._fitted(rgb.contiguous(memory_format=torch.channels_last))
        return picture[..., : height * self.factor, : width * self.factor]

    def _fitted(self, rgb: torch.Tensor) -> torch.Tensor:
        """All at once if they fit; else half as many, down to one; then one in tiles, ever smaller
        ones.
        """
        while True:
            try:
                return self.network(rgb) if self._tile is None else self._tiled(rgb, self._tile)
            except torch.OutOfMemoryError as error:
                # The error itself holds on to what the network had made so far.
                detail = str(error)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(rgb) > 1:
                self._batches.too_large(len(rgb))
                return torch.cat([self._fitted(half) for half in rgb.chunk(2)])
            self._tile = TILE if self._tile is None else self._tile // 2
            if self._tile < SMALLEST_TILE:
                raise OutOfMemory("The GPU has too little memory for this video.", detail)

    def _tiled(self, rgb: torch.Tensor, side: int) -> torch.Tensor:
        height, width = rgb.shape[2:]
        factor = self.factor
        picture = rgb.new_empty((rgb.shape[0], 3, height * factor, width * factor))
        for top in range(0, height, side):
            for left in range(0, width, side):
                bottom, right = min(top + side, height), min(left + side, width)
                above, before = max(0, top - TILE_MARGIN), max(0, left - TILE_MARGIN)
                seen = rgb[:, :, above : bottom + TILE_MARGIN, before : right + TILE_MARGIN]
                made = self.network(seen.contiguous(memory_format=torch.channels_last))
                picture[:, :, top * factor : bottom * factor, left * factor : right * factor] = (
                    made[
                        :,
                        :,
                        (top - above) * factor : (bottom - above) * factor,
                        (left - before) * factor : (right - before) * factor,
                    ]
                )
        return picture


def _wanted(frame: Frame, box: Box, width: int, height: int) -> _Wanted:
    """Cuts out the pixels to compute: the box and some context, from even places, where chroma
    begins.
    """
    left = max(0, math.floor(box.x) - CONTEXT) & ~1
    top = max(0, math.floor(box.y) - CONTEXT) & ~1
    # As wide for each place of a box of one size, so that the network sees one shape.
    right = min(frame.width, left + ((math.ceil(box.width) + 2 * CONTEXT + 3) & ~1))
    bottom = min(frame.height, top + ((math.ceil(box.height) + 2 * CONTEXT + 3) & ~1))
    planes = (
        frame.y[top:bottom, left:right],
        frame.u[top // 2 : chroma_size(bottom), left // 2 : chroma_size(right)],
        frame.v[top // 2 : chroma_size(bottom), left // 2 : chroma_size(right)],
    )
    return _Wanted(planes, Box(box.x - left, box.y - top, box.width, box.height), width, height)


def rgb_of(planes: Planes) -> torch.Tensor:
    """Returns (3, h, w) float32 R'G'B' of 0 to 1; colour is brought to every pixel bicubically,
    from where it sits.
    """
    y, u, v = planes
    height, width = y.shape
    # Chroma sample i is at luma column 2i, and between luma rows 2i and 2i + 1.
    columns, rows = taps(0.0, 0.5, width), taps(-0.25, 0.5, height)
    full = [y.float(), resample(u, columns, rows), resample(v, columns, rows)]
    flat = torch.stack(full).view(3, -1) - _OFFSETS.to(y.device)[:, None]
    return (_TO_RGB.float().to(y.device) @ flat).view(3, height, width).clamp_(0, 1)


def _frame(rgb: torch.Tensor, box: Box, factor: int, width: int, height: int) -> Frame:
    """Converts (3, h, w) R'G'B' to planes, and resamples them to the output's size, each at its own
    places.
    """
    channels, rows, columns = rgb.shape
    flat = rgb.float().clamp_(0, 1).reshape(channels, rows * columns)
    y, u, v = (_TO_PLANES.float().to(rgb.device) @ flat).view(channels, rows, columns)
    step_x, step_y = box.width * factor / width, box.height * factor / height
    left, top = box.x * factor, box.y * factor
    luma = resample(
        y,
        taps(left + 0.5 * step_x - 0.5, step_x, width),
        taps(top + 0.5 * step_y - 0.5, step_y, height),
    )
    across = taps(left + 0.5 * step_x - 0.5, 2 * step_x, chroma_size(width))
    down = taps(top + step_y - 0.5, 2 * step_y, chroma_size(height))
    planes = (luma, resample(u, across, down), resample(v, across, down))
    return Frame(
        *(
            plane.add_(float(offset) + 0.5).clamp_(0, 255).to(torch.uint8)
            for plane, offset in zip(planes, _OFFSETS, strict=True)
        )
    )


@contextlib.contextmanager
def _all_cores(device: torch.device) -> Iterator[None]:
    """Gives a network on the CPU all cores; beside it, the encoder has little to do."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
