"""In which numbers a network runs, decided by trying: fp16 on a GPU, bf16 on a CPU where that is
faster, else fp32.
"""

import functools
import time

import torch
from torch import nn

#: How much faster bf16 has to be to be worth its rounding.
WORTH = 1.3


@functools.cache
def dtype_for(device: torch.device) -> torch.dtype:
    """Returns the type to compute in.

    On a GPU, fp16 keeps three bits more than bf16, and the activations of these networks are far
    within its range. A CPU without bf16 instructions emulates them, which costs more than it saves.
    """
    if device.type != "cpu":
        return torch.float16
    full, half = (_seconds(dtype) for dtype in (torch.float32, torch.bfloat16))
    return torch.bfloat16 if full / half >= WORTH else torch.float32


def in_layout(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Returns the network in a type and with channels last, which convolutions are fastest in."""
    # torch's stubs do not know that `to` takes a memory format.
    return network.to(  # type: ignore[call-overload,no-any-return]
        dtype=dtype, memory_format=torch.channels_last
    )


def _seconds(dtype: torch.dtype) -> float:
    """Returns the best of three of one layer of such a network, on a small picture."""
    layer = in_layout(nn.Conv2d(64, 64, 3, padding=1), dtype)
    picture = torch.zeros(1, 64, 96, 96, dtype=dtype).contiguous(memory_format=torch.channels_last)
    best = float("inf")
    with torch.inference_mode():
        # The first one warms up.
        for _ in range(4):
            began = time.perf_counter()
            layer(picture)
            best = min(best, time.perf_counter() - began)
    return best
