"""A picture that shows exactly what the one before showed is not computed again."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gpu_worker.media.frames import Box, Frame, Region
from gpu_worker.upscale.engine import Engine


@dataclass(frozen=True)
class _Shown:
    """What a picture is made of."""

    frame: Frame
    box: Box
    size: tuple[int, int]
    margin: int

    def equals(self, other: "_Shown") -> bool:
        """True where the picture is the same. Pixels are compared on the host only: on a device,
        the comparison would have to be waited for.
        """
        if (self.box, self.size) != (other.box, other.size):
            return False
        if self.frame is other.frame:
            return True
        planes = [*self._seen(), *other._seen()]
        if any(plane.device.type != "cpu" for plane in planes):
            return False
        return all(torch.equal(a, b) for a, b in zip(planes[:3], planes[3:], strict=True))

    def _seen(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        width, height = self.frame.width, self.frame.height
        return self.frame.region(Region.around(self.box, self.margin, width, height)).planes


class Distinct:
    """An engine for one clip that hands each run of equal pictures to another engine once.

    Args:
        margin: so many pixels around a box change the picture.
    """

    def __init__(self, engine: Engine, margin: int) -> None:
        self._engine = engine
        self._margin = margin
        self._last: tuple[_Shown, Frame] | None = None

    @property
    def batch(self) -> int:
        """How many frames it wants at once."""
        return self._engine.batch

    def __call__(
        self, frames: Sequence[Frame], boxes: Sequence[Box], width: int, height: int
    ) -> list[Frame]:
        """Makes outputs of `width` x `height`; equal ones are one frame."""
        new: list[_Shown] = []
        # In `new`; -1 is what the last call ended with.
        places: list[int] = []
        last = self._last[0] if self._last else None
        for frame, box in zip(frames, boxes, strict=True):
            shown = _Shown(frame, box, (width, height), self._margin)
            if last is None or not shown.equals(last):
                new.append(shown)
                last = shown
            places.append(len(new) - 1)
        made = (
            self._engine([one.frame for one in new], [one.box for one in new], width, height)
            if new
            else []
        )
        results = [
            made[place] if place >= 0 or self._last is None else self._last[1] for place in places
        ]
        if last is not None:
            self._last = last, results[-1]
        return results

    def let_go(self) -> None:
        """Forgets the clip's last picture; it may be on a device, and the next clip's on the
        host.
        """
        self._last = None
        self._engine.let_go()
