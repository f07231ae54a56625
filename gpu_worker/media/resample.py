"""Resampling: separable bicubic at any offset and factor, widened when shrinking, so that it
averages instead of skipping.

Filters are computed on the host, for all pictures of a batch, and go to the device with the
pictures.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional

from gpu_worker.media.frames import BAND_SAMPLES

#: Keys' cubic with a = -1/2, the one that reproduces quadratics (R. Keys, "Cubic convolution
#: interpolation for digital image processing", IEEE Trans. ASSP 29(6), 1981).
CUBIC_A = -0.5
CUBIC_RADIUS = 2.0
#: So many samples are rounded at once: half a MiB, which is still in a core's cache after the
#: filter.
CACHED_SAMPLES = 1 << 17
#: So many axes' taps are kept: those of a crop that rests, or moves along the other axis, recur.
KEPT_TAPS = 64


@dataclass(frozen=True)
class Taps:
    """For each output sample along one axis, the source samples that make it.

    Attributes:
        indices: (n, k) int32, beyond the axis where the filter reaches over an edge.
        weights: (n, k) float32.
    """

    indices: np.ndarray
    weights: np.ndarray


@functools.lru_cache(KEPT_TAPS)
def taps(first: float, step: float, count: int) -> Taps:
    """Computes the filter for output samples at source positions `first + i * step`, unclamped."""
    scale = max(step, 1.0)
    reach = CUBIC_RADIUS * scale
    centres = first + step * np.arange(count)
    lowest = np.floor(centres - reach) + 1
    offsets = np.arange(math.ceil(2 * reach))
    weights = _cubic(np.abs((lowest - centres)[:, None] + offsets) / scale)
    weights /= weights.sum(axis=1, keepdims=True)
    # At whole steps and offsets most taps are nothing, and are left out.
    used = (np.abs(weights) > 1e-9).any(axis=0)
    indices = lowest.astype(np.int32)[:, None] + offsets[used].astype(np.int32)
    return Taps(indices, weights[:, used].astype(np.float32))


def _cubic(x: np.ndarray) -> np.ndarray:
    a = CUBIC_A
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < CUBIC_RADIUS, far, 0.0))


@dataclass(frozen=True)
class Filter:
    """The taps of one axis for a batch of n pictures.

    Attributes:
        indices: (n, count, k) int32 into the axes of all pictures, one after the other; edges
            repeat.
        weights: (n, count, k) float32.
    """

    indices: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def of(cls, axes: Sequence[Taps], length: int) -> "Filter":
        """Joins the taps of each picture's axis, which has `length` samples; on the host."""
        most = max(axis.indices.shape[1] for axis in axes)
        shape = (len(axes), len(axes[0].indices), most)
        indices, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        for number, axis in enumerate(axes):
            used = slice(axis.indices.shape[1])
            np.clip(axis.indices, 0, length - 1, out=indices[number, :, used])
            indices[number] += number * length
            weights[number, :, used] = axis.weights
        return cls(torch.from_numpy(indices), torch.from_numpy(weights))

    @property
    def count(self) -> int:
        """How many samples come out along the axis."""
        return self.indices.shape[1]

    def some(self, part: slice) -> "Filter":
        """Returns the filter of a part of the output samples."""
        return Filter(self.indices[:, part], self.weights[:, part])

    def apply(self, lines: torch.Tensor) -> torch.Tensor:
        """Filters along the first axis of each picture.

        Args:
            lines: (n, length, m) float32, contiguous.

        Returns:
            (n, count, m) float32.
        """
        # `embedding_bag` computes weighted sums of rows. Nothing else in torch does that as fast
        # on a CPU: docs/decisions/0007.
        made = functional.embedding_bag(
            self.indices.reshape(-1, self.indices.shape[2]),
            lines.view(-1, lines.shape[2]),
            per_sample_weights=self.weights.reshape(-1, self.weights.shape[2]),
            mode="sum",
        )
        return made.view(len(lines), self.count, lines.shape[2])


#: The filters of a plane: columns, rows.
Axes = tuple[Filter, Filter]


def resample(planes: torch.Tensor, axes: Axes, bias: float = 0.0) -> torch.Tensor:
    """Applies both filters to (n, h, w) planes of uint8 or float32, on their device.

    Returns:
        (n, rows, columns) float32, not rounded, with `bias` added.
    """
    columns, rows = axes
    parts = [rows.apply(wide) for _, wide in _across(planes, columns, bias)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _across(
    planes: torch.Tensor, columns: Filter, bias: float
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yields parts of the columns, and (n, h, part) float32 of them, with `bias` added."""
    # Turned while it is still small, and of one byte a sample. The weights of each sample add up to
    # 1, so that the bias comes out as it went in.
    source = planes.transpose(1, 2).contiguous().add(bias)
    # What lies between the two filters can be several times as large as the result.
    step = max(1, BAND_SAMPLES // planes.shape[1])
    for first in range(0, columns.count, step):
        part = slice(first, first + step)
        yield part, columns.some(part).apply(source).transpose(1, 2).contiguous()


def resample_to_bytes(planes: torch.Tensor, axes: Axes, bias: float = 0.0) -> torch.Tensor:
    """Applies both filters to (n, h, w) planes of uint8 or float32, on their device.

    Returns:
        (n, rows, columns) uint8: `bias` added, rounded, and limited to 0 to 255.
    """
    if planes.device.type != "cpu":
        return resample(planes, axes, bias + 0.5).clamp_(0, 255).to(torch.uint8)
    columns, rows = axes
    made = np.empty((len(planes), rows.count, columns.count), np.uint8)
    for part, wide in _across(planes, columns, bias + 0.5):
        step = max(1, CACHED_SAMPLES // (len(wide) * wide.shape[2]))
        for first in range(0, rows.count, step):
            band = slice(first, first + step)
            samples = rows.some(band).apply(wide).numpy()
            # One pass, where torch takes two.
            np.clip(samples, 0, 255, out=made[:, band, part], casting="unsafe")
    return torch.from_numpy(made)
