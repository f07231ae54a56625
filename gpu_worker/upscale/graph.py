"""The launches of a network, recorded for a shape and replayed: one call in place of hundreds."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gpu_worker.host.accelerator import Accelerator

#: Each recorded shape keeps the memory of all of its activations.
KEPT_SHAPES = 2
#: A shape that comes so often is recorded: a zoom's come once or twice.
RECORDED_AFTER = 3


@dataclass(frozen=True)
class _Recorded:
    """A recorded run: what it reads, how it is run again, what it writes."""

    pictures: torch.Tensor
    replay: Callable[[], None]
    made: torch.Tensor


class Graphs:
    """A forward that replays recorded runs; shapes that are rare, or not recorded, run as they are.

    What is returned is overwritten by the next call of its shape. All reads of it are queued before
    that call, on the one stream of the worker.
    """

    def __init__(
        self, forward: Callable[[torch.Tensor], torch.Tensor], accelerator: Accelerator
    ) -> None:
        self._forward = forward
        self._accelerator = accelerator
        self._seen: dict[torch.Size, int] = {}
        self._recorded: dict[torch.Size, _Recorded] = {}

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Returns the network's result; it is overwritten by the next call."""
        recorded = self._recorded.get(pictures.shape)
        if recorded is None:
            recorded = self._record(pictures)
        if recorded is None:
            return self._forward(pictures)
        recorded.pictures.copy_(pictures)
        recorded.replay()
        return recorded.made

    def _record(self, pictures: torch.Tensor) -> _Recorded | None:
        """Records a run of a shape that comes often, while there is room for one."""
        times = self._seen[pictures.shape] = self._seen.get(pictures.shape, 0) + 1
        if times < RECORDED_AFTER or len(self._recorded) >= KEPT_SHAPES:
            return None
        # A copy of the same layout.
        own = torch.empty_like(pictures).copy_(pictures)
        replay, made = self._accelerator.recorded(lambda: self._forward(own))
        self._recorded[pictures.shape] = _Recorded(own, replay, made)
        return self._recorded[pictures.shape]
