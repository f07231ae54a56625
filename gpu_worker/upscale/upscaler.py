"""Real-ESRGAN as an engine: what lies in the crop goes through the network, and is resampled to the
output's size.

Crop first: pixels that nobody sees are neither computed nor brought to the device. Frames come and
go as uint8 planes; colour conversion, network and resampling run on the device. Nothing here waits
for the device.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import structlog
import torch
from torch import nn

from gpu_worker.errors import OutOfMemory
from gpu_worker.host.accelerator import accelerator, is_out_of_memory
from gpu_worker.host.limits import usable_cores
from gpu_worker.media.frames import (
    RGB_TO_PLANES,
    Box,
    Frame,
    FrameBatch,
    Region,
    alike,
    chroma_size,
)
from gpu_worker.media.resample import Axes, Filter, resample, resample_to_bytes, taps
from gpu_worker.media.transfer import batch_to_device, filters_to_device, to_device
from gpu_worker.upscale.batches import Batches
from gpu_worker.upscale.engine import CONTEXT
from gpu_worker.upscale.precision import dtype_for, in_layout
from gpu_worker.upscale.strategy import Forward
from gpu_worker.upscale.weights import Loaded

log = structlog.get_logger(__name__)

#: A tile's side where a whole frame is too large, and what is computed around it and thrown away:
#: docs/models.md.
TILE, TILE_MARGIN, SMALLEST_TILE = 512, 48, 64
#: The sides of a zoom's crops are rounded up by at most this share, so that shapes recur.
BUCKET_SHARE = 1 / 32
#: Neighbours in a zoom are computed in one shape while that costs at most so many times their own
#: pixels.
GROUP_COST = 1.14
#: So many shapes' filters stay on the device.
KEPT_SHAPES = 32
OFFSETS = tuple(offset for offset, _ in RGB_TO_PLANES)
_TO_PLANES = torch.tensor([weights for _, weights in RGB_TO_PLANES], dtype=torch.float64)
#: Of Y, U and V without their offsets.
TO_RGB: torch.Tensor = torch.linalg.inv(_TO_PLANES).float()


@dataclass
class _Fit:
    """What fits into the device's memory at one shape: that many pictures, or one in tiles."""

    count: int
    tile: int | None


@dataclass(frozen=True)
class _Wanted:
    """What a frame has to show: `box`, in pixels of the region that is computed."""

    cut: Frame
    box: Box


class Upscaler:
    """One model, loaded and ready; an `Engine`.

    Args:
        dtype: None for what is fastest on the device.
        tile: None for whole frames as long as memory allows; else the side of a tile, in pixels of
            the source.
    """

    def __init__(
        self,
        model: Loaded,
        device: torch.device,
        dtype: torch.dtype | None = None,
        tile: int | None = None,
    ) -> None:
        self.name, self.factor, self.device = model.name, model.factor, device
        self.dtype = dtype or dtype_for(device)
        self.network = in_layout(model.network.to(device), self.dtype)
        self._tile = tile
        self._batches = Batches(None if device.type == "cpu" else accelerator(device))
        self._fits: dict[tuple[int, int], _Fit] = {}
        self._forward: Forward = self.network
        self._to_rgb = to_device(TO_RGB, device)
        self._to_planes = to_device(_TO_PLANES.float(), device)
        self._chroma_filters = functools.lru_cache(KEPT_SHAPES)(
            functools.partial(chroma_filters, device=device)
        )

    @property
    def batch(self) -> int:
        """How many frames it wants at once: on a CPU one, whose activations just fit into the
        caches.
        """
        return self._batches.largest

    def run_by(self, forward: Forward) -> None:
        """Runs the network in another way, which computes the same."""
        self._forward = forward

    def let_go(self) -> None:
        """Forgets what did not fit: the next clip may find more memory."""
        self._fits.clear()

    def __call__(
        self, frames: Sequence[Frame], boxes: Sequence[Box], width: int, height: int
    ) -> list[Frame]:
        """Makes outputs of `width` x `height` from what lies in each frame's box.

        Raises:
            OutOfMemory: not even small tiles fit.
        """
        made: list[Frame] = []
        regions = [Region.around(box, CONTEXT, frames[0].width, frames[0].height) for box in boxes]
        with _all_cores(self.device), torch.inference_mode():
            for group in groups(regions, frames[0].width, frames[0].height):
                part = slice(len(made), len(made) + len(group))
                wanted = [
                    _Wanted(frame.region(region), region.relative(box))
                    for frame, box, region in zip(frames[part], boxes[part], group, strict=True)
                ]
                made += self._group(wanted, width, height)
        return made

    def _group(self, wanted: Sequence[_Wanted], width: int, height: int) -> list[Frame]:
        """Computes pictures of one shape: as many at once as fit; where one does not, in tiles."""
        rows, columns = shape = _shape(wanted[0].cut)
        fit = self._fits.setdefault(shape, _Fit(self._batches.largest, self._tile))
        made: list[Frame] = []
        while len(made) < len(wanted):
            count = min(fit.count, self._batches.size(rows * columns))
            some = wanted[len(made) : len(made) + count]
            try:
                self._batches.measured(
                    len(some) * rows * columns,
                    lambda: made.extend(self._together(some, width, height, fit.tile)),  # noqa: B023
                )
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error) and self._forward is self.network:
                    raise
                # The error itself holds on to what was made so far.
                detail = str(error)
            if self._forward is not self.network:
                # A compiler or a recording may fail at a shape, and recordings hold memory.
                log.warning("strategy_given_up", model=self.name, error=detail)
                self._forward = self.network
                continue
            if self.device.type != "cpu":
                accelerator(self.device).release()
            if len(some) > 1:
                fit.count = len(some) // 2
            else:
                fit.tile = TILE if fit.tile is None else fit.tile // 2
                if fit.tile < SMALLEST_TILE:
                    raise OutOfMemory("The GPU has too little memory for this video.", detail)
        return made

    def _together(
        self, wanted: Sequence[_Wanted], width: int, height: int, tile: int | None
    ) -> list[Frame]:
        filters = output_filters(
            [one.box for one in wanted], self.factor, width, height, wanted[0].cut
        )
        batch, arrived = batch_to_device([one.cut for one in wanted], filters, self.device)
        rgb = rgb_of(batch, self._chroma_filters(*batch.y.shape), self._to_rgb)
        pictures = self._enlarged(rgb.to(self.dtype), tile)
        return _planes_of(pictures, self._to_planes, arrived).frames()

    def enlarge(self, rgb: torch.Tensor) -> torch.Tensor:
        """Runs the network on (n, 3, h, w) R'G'B' of 0 to 1, on the device; returns the same,
        enlarged, in `dtype`.
        """
        with _all_cores(self.device), torch.inference_mode():
            return self._enlarged(rgb.to(self.device, self.dtype), self._tile)

    def _enlarged(self, rgb: torch.Tensor, tile: int | None) -> torch.Tensor:
        # x2plus sees every second pixel: an even number of them.
        height, width = rgb.shape[2:]
        rgb = nn.functional.pad(rgb, (0, width % 2, 0, height % 2), mode="replicate")
        rgb = rgb.contiguous(memory_format=torch.channels_last)
        picture = self._forward(rgb) if tile is None else self._tiled(rgb, tile)
        return picture[..., : height * self.factor, : width * self.factor]

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


def _shape(frame: Frame) -> tuple[int, int]:
    return frame.height, frame.width


def groups(regions: Sequence[Region], width: int, height: int) -> list[list[Region]]:
    """Splits what is to be computed of neighbouring frames into groups of one shape: crops of one
    size as they are, those of a zoom a little larger.

    Args:
        width, height: of the frames.
    """
    if len({(region.width, region.height) for region in regions}) == 1:
        return [alike(regions, width, height)]
    made = [[regions[0]]]
    for region in regions[1:]:
        together = [*made[-1], region]
        if _pixels(alike(together, width, height, bucket)) <= GROUP_COST * _pixels(together):
            made[-1] = together
        else:
            made.append([region])
    return [alike(members, width, height, bucket) for members in made]


def _pixels(regions: Sequence[Region]) -> int:
    return sum(region.width * region.height for region in regions)


def bucket(length: int) -> int:
    """Returns a length rounded up to one of a few: by at most BUCKET_SHARE, to an even one."""
    step = 1 << (max(2, int(length * BUCKET_SHARE)).bit_length() - 1)
    return -(-length // step) * step


def chroma_filters(count: int, height: int, width: int, device: torch.device) -> Axes:
    """Returns the filters that bring the colour of `count` pictures to every pixel, on a device."""
    # Chroma sample i is at luma column 2i, and between luma rows 2i and 2i + 1.
    columns = Filter.of([taps(0.0, 0.5, width)] * count, chroma_size(width))
    rows = Filter.of([taps(-0.25, 0.5, height)] * count, chroma_size(height))
    return filters_to_device([(columns, rows)], device)[0]


def rgb_of(batch: FrameBatch, chroma: Axes, to_rgb: torch.Tensor) -> torch.Tensor:
    """Returns (n, 3, h, w) float32 R'G'B' of 0 to 1; colour is brought to every pixel bicubically,
    from where it sits.

    Args:
        chroma: the filters of `chroma_filters`.
        to_rgb: (3, 3), of Y, U and V without their offsets.
    """
    y, u, v = (
        plane.sub(offset)
        for plane, offset in zip(
            (batch.y.float(), resample(batch.u, chroma), resample(batch.v, chroma)),
            OFFSETS,
            strict=True,
        )
    )
    full = torch.stack([y, u, v], dim=1)
    return (to_rgb @ full.flatten(2)).view(full.shape).clamp_(0, 1)


def output_filters(
    boxes: Sequence[Box], factor: int, width: int, height: int, cut: Frame
) -> list[Axes]:
    """Returns the filters that make a 4:2:0 output of boxes of enlarged pictures, which have colour
    at every pixel; for luma and chroma.

    Args:
        boxes: in pixels of pictures like `cut`, before they are enlarged by `factor`.
    """
    rows, columns = (length * factor for length in _shape(cut))
    half = chroma_size(width), chroma_size(height)
    x = [(box.x * factor, box.width * factor / width) for box in boxes]
    y = [(box.y * factor, box.height * factor / height) for box in boxes]
    luma = (
        Filter.of([taps(left + 0.5 * step - 0.5, step, width) for left, step in x], columns),
        Filter.of([taps(top + 0.5 * step - 0.5, step, height) for top, step in y], rows),
    )
    chroma = (
        Filter.of([taps(left + 0.5 * step - 0.5, 2 * step, half[0]) for left, step in x], columns),
        Filter.of([taps(top + step - 0.5, 2 * step, half[1]) for top, step in y], rows),
    )
    return [luma, chroma]


def _planes_of(rgb: torch.Tensor, to_planes: torch.Tensor, filters: Sequence[Axes]) -> FrameBatch:
    """Converts (n, 3, h, w) R'G'B' to planes, and resamples them to the output's size, each at its
    own places.
    """
    flat = rgb.float().clamp_(0, 1).flatten(2)
    planes = (to_planes @ flat).view(rgb.shape).unbind(1)
    luma, chroma = filters
    return FrameBatch(
        *(
            resample_to_bytes(plane, axes, offset)
            for plane, axes, offset in zip(planes, (luma, chroma, chroma), OFFSETS, strict=True)
        )
    )


@contextlib.contextmanager
def _all_cores(device: torch.device) -> Iterator[None]:
    """Gives a network on the CPU all cores; beside it, the encoder has little to do."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(usable_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)
