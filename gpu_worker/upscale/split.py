"""RRDBNet's dense blocks without `torch.cat`: each source is convolved once for all that read it.

In a dense block, convolution k reads x and the k - 1 growths before it, side by side. A convolution
is a sum over its sources, so one convolution of x makes x's share of all five, and one of each
growth makes the growth's share of those that follow. The operations are the same; there are no
copies, and the convolutions are 192, 160, 128, 96 and 64 channels wide in place of 32, 32, 32, 32
and 64, which keeps a GPU's matrix units busier.
"""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.functional import conv2d, leaky_relu

#: Of the growths (X. Wang et al., "ESRGAN", 2018, and the `basicsr` distribution).
SLOPE, RESIDUAL_SCALE = 0.2, 0.2


class SplitDenseBlock(nn.Module):
    """Computes what a `ResidualDenseBlock` of `basicsr` computes, on (n, 64, h, w)."""

    weight0: torch.Tensor
    bias: torch.Tensor

    def __init__(self, block: Any) -> None:
        super().__init__()
        convolutions = [getattr(block, f"conv{number}") for number in range(1, 6)]
        growth, features = convolutions[0].weight.shape[:2]
        self.growth = growth
        sources = [slice(0, features)]
        sources += [slice(features + growth * n, features + growth * (n + 1)) for n in range(4)]
        for number, source in enumerate(sources):
            # The first convolution that reads growth n is the one after it.
            shares = [one.weight[:, source] for one in convolutions[number:]]
            self.register_buffer(f"weight{number}", torch.cat(shares).contiguous())
        self.register_buffer("bias", torch.cat([one.bias for one in convolutions]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (n, 64, h, w) of the same type."""
        sums = conv2d(x, self.weight0, self.bias, padding=1)
        for number in range(1, 5):
            grown = leaky_relu(sums[:, : self.growth], SLOPE)
            sums = sums[:, self.growth :]
            sums = sums + conv2d(grown, getattr(self, f"weight{number}"), padding=1)
        return torch.add(x, sums, alpha=RESIDUAL_SCALE)


def split_dense_blocks(network: nn.Module) -> nn.Module:
    """Returns a copy of a network whose dense blocks are split; equal to 1e-6 in float32."""
    return with_dense_blocks(network, SplitDenseBlock)


def with_dense_blocks(network: nn.Module, made: type[nn.Module]) -> nn.Module:
    """Returns a copy of a network in which `made(block)` is in the place of each dense block."""
    network = copy.deepcopy(network)
    for block in list(network.modules()):
        for name, child in list(block.named_children()):
            if type(child).__name__ == "ResidualDenseBlock":
                setattr(block, name, made(child).requires_grad_(False))
    return network


def has_dense_blocks(network: nn.Module) -> bool:
    """True for an RRDBNet."""
    return any(type(module).__name__ == "ResidualDenseBlock" for module in network.modules())
