"""Pixels between host and device: through pinned memory, queued behind the work that makes them, so
that nobody waits.

On a CPU nothing is copied.
"""

from collections.abc import Sequence

import torch

from gpu_worker.media.frames import Frame


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns the tensor on a device; itself where it is there already. The copy may still be under
    way.

    Args:
        device: without an index, any device of its type will do.
    """
    # torch holds "cuda" and "cuda:0" to be two devices, so the index is compared only where there
    # is one.
    if tensor.device.type == device.type and device.index in (None, tensor.device.index):
        return tensor
    if tensor.device.type != "cpu" or device.type == "cpu":
        return tensor.to(device)
    # A copy from ordinary memory would hold up both sides. torch keeps the pinned block until the
    # copy is done.
    return tensor.pin_memory().to(device, non_blocking=True)


def frame_to_device(frame: Frame, device: torch.device) -> Frame:
    """The same for a frame's planes."""
    return Frame(*(to_device(plane, device) for plane in frame.planes))


class Landing:
    """Frames on their way to the host."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self._frames = [
            Frame(*(plane.to("cpu", non_blocking=True) for plane in frame.planes))
            for frame in frames
        ]
        self._done: torch.cuda.Event | None = None
        if any(frame.y.is_cuda for frame in frames):
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def frames(self) -> list[Frame]:
        """Waits until they are there."""
        if self._done is not None:
            self._done.synchronize()
        return self._frames
