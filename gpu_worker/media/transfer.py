"""Pixels between host and device: many tensors in one copy, through pinned memory, so that nobody
waits.

On a CPU nothing is copied.
"""

import math
from collections.abc import Sequence

import torch

from gpu_worker.host.accelerator import Event, accelerator
from gpu_worker.media.frames import Frame, FrameBatch
from gpu_worker.media.resample import Axes, Filter

#: Each tensor of a copy begins at a multiple of that many bytes, as its type needs it.
ALIGNMENT = 16


def is_on(tensor: torch.Tensor, device: torch.device) -> bool:
    """True where the tensor is on the device; without an index, any device of its type will do."""
    # torch holds a device without an index to be another one than its first.
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns the tensor on a device; itself where it is there. The copy may still be under way."""
    if is_on(tensor, device):
        return tensor
    if tensor.device.type != "cpu" or device.type == "cpu":
        return tensor.to(device)
    return upload([[tensor]], device)[0][0]


def upload(groups: Sequence[Sequence[torch.Tensor]], device: torch.device) -> list[torch.Tensor]:
    """Brings host tensors to a device in one copy, which may still be under way.

    Args:
        groups: tensors of one shape and type each.

    Returns:
        For each group its tensors stacked along a new first axis.
    """
    if not groups:
        return []
    if device.type == "cpu":
        return [
            group[0][None] if len(group) == 1 else torch.stack(tuple(group)) for group in groups
        ]
    begins: list[int] = []
    size = 0
    for group in groups:
        begins.append(size)
        used = len(group) * group[0].numel() * group[0].element_size()
        size += math.ceil(used / ALIGNMENT) * ALIGNMENT
    buffer = accelerator(device).pinned(size)
    for begin, group in zip(begins, groups, strict=True):
        for place, tensor in zip(_views(buffer, begin, group), group, strict=True):
            place.copy_(tensor)
    there = buffer.to(device, non_blocking=True)
    return [_views(there, begin, group) for begin, group in zip(begins, groups, strict=True)]


def _views(buffer: torch.Tensor, begin: int, group: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the part of a buffer that holds a group, (len(group), *shape) of the group's type."""
    first = group[0]
    used = len(group) * first.numel() * first.element_size()
    return buffer[begin : begin + used].view(first.dtype).view(len(group), *first.shape)


def batch_to_device(
    frames: Sequence[Frame], filters: Sequence[Axes], device: torch.device
) -> tuple[FrameBatch, list[Axes]]:
    """Returns frames of one size, stacked, and filters, on a device; what is on the host is brought
    there in one copy.
    """
    tensors = _tensors_of(filters)
    if any(frame.y.device.type != "cpu" for frame in frames):
        batch, arrived = FrameBatch.of(all_to_device(frames, device)), upload(tensors, device)
    else:
        planes = list(zip(*(frame.planes for frame in frames), strict=True))
        y, u, v, *arrived = upload([*planes, *tensors], device)
        batch = FrameBatch(y, u, v)
    return batch, _filters_of(arrived)


def filters_to_device(filters: Sequence[Axes], device: torch.device) -> list[Axes]:
    """Returns filters on a device, brought there in one copy."""
    return _filters_of(upload(_tensors_of(filters), device))


def _tensors_of(filters: Sequence[Axes]) -> list[list[torch.Tensor]]:
    return [[part] for axes in filters for one in axes for part in (one.indices, one.weights)]


def _filters_of(arrived: Sequence[torch.Tensor]) -> list[Axes]:
    parts = [part[0] for part in arrived]
    return [
        (Filter(*parts[first : first + 2]), Filter(*parts[first + 2 : first + 4]))
        for first in range(0, len(parts), 4)
    ]


def all_to_device(frames: Sequence[Frame], device: torch.device) -> list[Frame]:
    """Returns frames on a device; those of them that are on the host in one copy."""
    absent = [frame for frame in frames if not is_on(frame.y, device)]
    if not absent or device.type == "cpu":
        return [_on(frame, device) for frame in frames]
    planes = upload([[plane] for frame in absent for plane in frame.planes], device)
    arrived = iter([Frame(y[0], u[0], v[0]) for y, u, v in zip(*[iter(planes)] * 3, strict=True)])
    return [frame if is_on(frame.y, device) else next(arrived) for frame in frames]


def _on(frame: Frame, device: torch.device) -> Frame:
    return Frame(*(to_device(plane, device) for plane in frame.planes))


class Landing:
    """Frames on their way to the host: all of a batch in one copy behind the work that makes them.

    Frames that are on the host already pass through.
    """

    def __init__(self, frames: Sequence[Frame]) -> None:
        self._frames = list(frames)
        self._done: Event | None = None
        made = {id(frame): frame for frame in frames if frame.y.device.type != "cpu"}
        if not made:
            return
        device = next(iter(made.values())).y.device
        parts = [plane.reshape(-1) for frame in made.values() for plane in frame.planes]
        flat = torch.cat(parts)
        landed = accelerator(device).pinned(flat.numel())
        landed.copy_(flat, non_blocking=True)
        self._done = accelerator(device).record()
        arrived = _split(landed, made)
        self._frames = [arrived.get(id(frame), frame) for frame in frames]

    def frames(self) -> list[Frame]:
        """Waits until they are there."""
        if self._done is not None:
            self._done.synchronize()
        return self._frames


def _split(flat: torch.Tensor, frames: dict[int, Frame]) -> dict[int, Frame]:
    """Returns views of a flat buffer that holds frames' planes one after the other."""
    arrived: dict[int, Frame] = {}
    begin = 0
    for key, frame in frames.items():
        planes = []
        for plane in frame.planes:
            planes.append(flat[begin : begin + plane.numel()].view(plane.shape))
            begin += plane.numel()
        arrived[key] = Frame(*planes)
    return arrived
