"""A 3x3 convolution with bias, activation and residual in one kernel, in Triton.

cuDNN writes a convolution's sums, and bias, activation and residual each read and write them again.
Here each tensor is written once. The kernel reads and writes slices of one channels-last tensor, so
that a dense block's growths lie side by side without a copy; cuDNN copies such slices first.

Triton comes with torch's builds for GPUs. On a CPU the kernel runs in Triton's interpreter, for
tests: set TRITON_INTERPRET=1 before this module is imported.
"""

import copy
from typing import Any

import torch
import triton
import triton.language as tl
from torch import nn

from gpu_worker.upscale.split import RESIDUAL_SCALE, SLOPE, with_dense_blocks

#: Pixels and source channels of a step. An output has 32 or 64 channels, which are one step each.
PIXELS, CHANNELS = 128, 32


@triton.jit  # type: ignore[untyped-decorator]
def _convolve(  # type: ignore[no-untyped-def]
    source,
    weights,
    biases,
    slopes,
    residual,
    out,
    height,
    width,
    count,
    channels,
    source_stride,
    residual_stride,
    out_stride,
    scale,
    HAS_RESIDUAL: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """Computes M pixels of N channels each. Pixels lie `stride` elements apart."""
    pixels = (tl.program_id(0) * M + tl.arange(0, M)).to(tl.int64)
    outputs = tl.arange(0, N)
    x = pixels % width
    y = (pixels // width) % height
    sums = tl.zeros((M, N), dtype=tl.float32)
    for tap in range(9):
        dy = tap // 3 - 1
        dx = tap % 3 - 1
        inside = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        inside = inside & (pixels < count)
        places = (pixels + dy * width + dx) * source_stride
        for first in range(0, channels, K):
            inputs = first + tl.arange(0, K)
            some = tl.load(
                source + places[:, None] + inputs[None, :], mask=inside[:, None], other=0.0
            )
            filters = tl.load(weights + (tap * channels + inputs)[:, None] * N + outputs[None, :])
            sums = tl.dot(some, filters, sums)
    sums += tl.load(biases + outputs)[None, :].to(tl.float32)
    slope = tl.load(slopes + outputs)[None, :].to(tl.float32)
    sums = tl.where(sums >= 0, sums, sums * slope)
    there = (pixels < count)[:, None]
    if HAS_RESIDUAL:
        before = tl.load(
            residual + (pixels * residual_stride)[:, None] + outputs[None, :], mask=there, other=0.0
        )
        sums = sums * scale + before.to(tl.float32)
    tl.store(out + (pixels * out_stride)[:, None] + outputs[None, :], sums, mask=there)


class FusedConvolution(nn.Module):
    """A 3x3 convolution with padding 1 and its activation, as one kernel.

    Args:
        slope: per output channel, or one for all, of what is below 0; 1 for no activation.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    slope: torch.Tensor

    def __init__(self, convolution: nn.Conv2d, slope: torch.Tensor | float = 1.0) -> None:
        super().__init__()
        outputs, inputs = convolution.weight.shape[:2]
        if outputs not in (32, 64) or inputs % CHANNELS:
            raise ValueError(f"a convolution of {inputs} to {outputs} channels")
        weight = convolution.weight.detach()
        self.register_buffer("weight", weight.permute(2, 3, 1, 0).contiguous())
        bias = convolution.bias
        self.register_buffer("bias", weight.new_zeros(outputs) if bias is None else bias.detach())
        self.register_buffer("slope", weight.new_ones(outputs) * slope)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (n, outputs, h, w), channels last, of (n, inputs, h, w), channels last."""
        source = x.permute(0, 2, 3, 1)
        out = source.new_empty((*source.shape[:3], self.weight.shape[3]))
        self.into(out, source)
        return out.permute(0, 3, 1, 2)

    def into(
        self,
        out: torch.Tensor,
        source: torch.Tensor,
        residual: torch.Tensor | None = None,
        scale: float = 1.0,
    ) -> None:
        """Writes to `out` (n, h, w, outputs); with a residual, `scale` times the result and it.

        All are channels of channels-last tensors without gaps between pixels' rows.
        """
        batch, height, width = source.shape[:3]
        count = batch * height * width
        before = out if residual is None else residual
        _convolve[(triton.cdiv(count, PIXELS),)](
            source,
            self.weight,
            self.bias,
            self.slope,
            before,
            out,
            height,
            width,
            count,
            self.weight.shape[2],
            source.stride(2),
            before.stride(2),
            out.stride(2),
            scale,
            HAS_RESIDUAL=residual is not None,
            M=PIXELS,
            N=self.weight.shape[3],
            K=CHANNELS,
        )


class FusedDenseBlock(nn.Module):
    """Computes what a `ResidualDenseBlock` of `basicsr` computes, on (n, 64, h, w)."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        growths = [
            FusedConvolution(getattr(block, f"conv{number}"), SLOPE) for number in range(1, 5)
        ]
        self.last = FusedConvolution(block.conv5)
        # A list of modules, which torch's types take for modules that cannot be called.
        self.growths: Any = nn.ModuleList(growths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (n, 64, h, w), channels last, of the same."""
        source = x.permute(0, 2, 3, 1)
        features, channels = source.shape[3], self.last.weight.shape[2]
        together = source.new_empty((*source.shape[:3], channels))
        together[..., :features] = source
        known = features
        for growth in self.growths:
            wide = growth.weight.shape[3]
            growth.into(together[..., known : known + wide], together[..., :known])
            known += wide
        out = torch.empty_like(source, memory_format=torch.contiguous_format)
        self.last.into(out, together, together[..., :features], RESIDUAL_SCALE)
        return out.permute(0, 3, 1, 2)


def fused(network: nn.Module) -> nn.Module:
    """Returns a copy of a network with fused convolutions: of its dense blocks, or of a compact
    one's body.
    """
    if not hasattr(network, "body") or not isinstance(network.body, nn.ModuleList):
        return with_dense_blocks(network, FusedDenseBlock)
    network = copy.deepcopy(network)
    body: Any = network.body
    for place in range(len(body) - 1):
        one, following = body[place], body[place + 1]
        if isinstance(following, nn.PReLU) and one.weight.shape[1] % CHANNELS == 0:
            body[place] = FusedConvolution(one, following.weight.detach())
            body[place + 1] = nn.Identity()
    return network
