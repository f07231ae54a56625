"""Pictures in memory, and what becomes of them."""

import numpy as np
import torch

from gpu_worker.edits.crop import Resampler
from gpu_worker.media.frames import Frame, chroma_size

CPU = torch.device("cpu")


def noise(width, height, seed=1):
    """Returns a frame of noise."""
    generator = np.random.default_rng(seed)
    half = chroma_size(height), chroma_size(width)
    return Frame(
        *(
            torch.from_numpy(generator.integers(16, 236, shape, np.uint8))
            for shape in ((height, width), half, half)
        )
    )


def crop(frame, box, width, height):
    """Returns a box of one frame, resampled on the CPU."""
    return Resampler(CPU)([frame], [box], width, height)[0]


def same(one, other):
    """True where two lists of frames are equal, bit for bit."""
    return all(
        torch.equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x.planes, y.planes, strict=True)
    )


def decibels(a, b, peak=255.0):
    """Returns the peak signal-to-noise ratio of two tensors."""
    error = torch.mean((a.double() - b.double()) ** 2).item()
    return float("inf") if error == 0 else 10 * np.log10(peak**2 / error)
