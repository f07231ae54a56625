"""How a network is run on a device: as it is, or in a way that a timed trial on this card has shown
to be faster.

| name | what |
|---|---|
| `eager` | the network as it is |
| `split` | dense blocks without `torch.cat` (split.py) |
| `fused` | convolution, bias, activation and residual in one Triton kernel (fused.py) |
| `compiled` | torch.compile, of each repeated block, so that one compilation serves all |
| `graph` | the launches recorded once for a shape, and replayed (graph.py) |

A name may join several, as in `split+graph`. Only those that are asked for are tried: what no card
has shown to pay is off (docs/decisions/0026). A trial takes seconds, so its result is kept in a
file by card, torch and model.
"""

import copy
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
from torch import nn

from gpu_worker.host.accelerator import Accelerator
from gpu_worker.upscale.graph import Graphs
from gpu_worker.upscale.split import has_dense_blocks, split_dense_blocks

log = structlog.get_logger(__name__)

EAGER = "eager"
#: How much less time another strategy must take, and by how much its values, of 0 to 1, may differ:
#: a quarter of a level of 255.
WORTH, TOLERANCE = 0.95, 1 / 1024
#: Of one strategy; the first of them prepare it.
WARM_UPS, ROUNDS = 3, 5

#: Maps (n, 3, h, w) R'G'B' of 0 to 1, channels last, to the same, enlarged, on one device.
Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Trial:
    """What a strategy did in a trial.

    Attributes:
        seconds: the median of a run; None where it failed.
        difference: the largest one to eager's values.
    """

    name: str
    seconds: float | None
    difference: float = 0.0


def choose(trials: Sequence[Trial]) -> str:
    """Returns the name of the fastest strategy: eager, unless another is clearly faster and makes
    the same picture.
    """
    eager = next((one.seconds for one in trials if one.name == EAGER), None)
    faster = [
        (one.seconds, one.name)
        for one in trials
        if eager is not None
        and one.seconds is not None
        and one.seconds <= WORTH * eager
        and one.difference <= TOLERANCE
    ]
    return min(faster)[1] if faster else EAGER


def build(name: str, network: nn.Module, accelerator: Accelerator) -> Forward:
    """Returns a network's forward by a strategy.

    Raises:
        ValueError: there is no such strategy, or it has nothing to do with this network.
        ImportError: it needs Triton, which is not here.
    """
    forward: Forward = network
    for step in name.split("+"):
        match step:
            case "eager":
                pass
            case "split" if has_dense_blocks(network):
                forward = network = split_dense_blocks(network)
            case "fused":
                # Triton comes with torch's builds for GPUs alone.
                from gpu_worker.upscale.fused import fused

                forward = network = fused(network)
            case "compiled":
                forward = network = compiled(network)
            case "graph":
                forward = Graphs(network, accelerator)
            case _:
                raise ValueError(f"{step} is no strategy for this network")
    return forward


def compiled(network: nn.Module, backend: str = "inductor") -> nn.Module:
    """Returns a copy of a network with each repeated block of an RRDBNet compiled, or a compact one
    as a whole, for any size.
    """
    network = copy.deepcopy(network)
    blocks = [module for module in network.modules() if type(module).__name__ == "RRDB"]
    for module in blocks or [network]:
        module.compile(backend=backend, dynamic=True)
    return network


def tried(
    name: str, network: nn.Module, accelerator: Accelerator, pictures: torch.Tensor
) -> tuple[Trial, Forward]:
    """Times a strategy on some pictures; returns eager's forward where it fails."""
    try:
        forward = build(name, network, accelerator)
        expected = network(pictures)
        for _ in range(WARM_UPS):
            forward(pictures)
        difference = float((forward(pictures).float() - expected.float()).abs().max())
        seconds = statistics.median(_timed(forward, pictures, accelerator) for _ in range(ROUNDS))
    # Whatever a compiler or a driver raises: the strategy is not for this card.
    except Exception as error:  # noqa: BLE001
        log.warning("strategy_failed", strategy=name, error=str(error)[:500])
        return Trial(name, None), network
    return Trial(name, seconds, difference), forward


def _timed(forward: Forward, pictures: torch.Tensor, accelerator: Accelerator) -> float:
    accelerator.synchronize()
    began = time.perf_counter()
    forward(pictures)
    accelerator.synchronize()
    return time.perf_counter() - began


class Remembered:
    """Choices of earlier trials, in a file that other workers of this card may share."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str) -> str | None:
        """Returns a choice; None where there is none, or the file cannot be read."""
        choice = self._all().get(key)
        return choice if isinstance(choice, str) else None

    def put(self, key: str, choice: str) -> None:
        """Adds a choice; a file that cannot be written is no error."""
        text = json.dumps({**self._all(), key: choice}, indent=1, sort_keys=True)
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            new.write_text(text)
            new.replace(self._path)
        except OSError as error:
            log.warning("strategy_not_kept", error=str(error))

    def _all(self) -> Mapping[str, object]:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def fastest(
    names: Sequence[str],
    network: nn.Module,
    accelerator: Accelerator,
    pictures: torch.Tensor,
    remembered: Remembered,
    model: str,
) -> tuple[str, Forward]:
    """Returns the name and forward of the fastest of some strategies, by an earlier trial or by one
    now.

    Args:
        names: those that are tried beside eager.
        pictures: of the size that jobs have, in the network's type.
        model: its name.
    """
    facts = (accelerator.name(), torch.__version__, model, pictures.dtype, ",".join(names))
    key = "|".join(map(str, facts))
    known = remembered.get(key)
    if known == EAGER:
        return EAGER, network
    with torch.inference_mode():
        # A remembered one is tried too: that prepares it, and where it fails here, eager's forward
        # takes its place.
        names = (EAGER, *names) if known is None else (known,)
        results = [tried(name, network, accelerator, pictures) for name in names]
    trials = [trial for trial, _ in results]
    chosen = known or choose(trials)
    seconds = {trial.name: trial.seconds for trial in trials}
    log.info("strategy_chosen", model=model, strategy=chosen, seconds=seconds)
    if known is None:
        remembered.put(key, chosen)
    return chosen, next(forward for trial, forward in results if trial.name == chosen)
