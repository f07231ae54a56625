"""Transitions: pictures mixed by their weights; what is missing to 1 is black."""

from collections.abc import Sequence

import torch

from gpu_worker.media.frames import BLACK, Frame, bands


def mix(pictures: Sequence[tuple[Frame, float]]) -> Frame:
    """Returns the weighted sum of frames of one size, (frame, weight) each; the one frame itself
    where it has it all.

    Mixing is done in gamma-encoded Y, U and V, as editors and ffmpeg's xfade do.
    """
    if len(pictures) == 1 and pictures[0][1] >= 1.0:
        return pictures[0][0]
    planes = []
    for index, black in enumerate(BLACK):
        mixed = torch.empty_like(pictures[0][0].planes[index])
        for rows in bands(*mixed.shape):
            total = torch.full_like(mixed[rows], black, dtype=torch.float32)
            for frame, weight in pictures:
                total += (frame.planes[index][rows].float() - black) * weight
            mixed[rows] = total.add_(0.5).clamp_(0, 255)
        planes.append(mixed)
    return Frame(*planes)
