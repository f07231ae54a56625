"""Runs networks with fused convolutions in Triton's interpreter, and prints how far off they are;
run by test_fused.py, because Triton reads TRITON_INTERPRET when it is imported.
"""

import copy
import json
import sys
from pathlib import Path

import torch

from gpu_worker.upscale.fused import FusedConvolution, FusedDenseBlock, fused
from gpu_worker.upscale.split import has_dense_blocks
from gpu_worker.upscale.weights import load_model


def difference(made, expected):
    return float((made.double() - expected.double()).abs().max() / expected.double().abs().max())


def in_double(module, x):
    """What rounding does not disturb."""
    return copy.deepcopy(module).double()(x.double())


def main():
    """Prints a JSON object: name to relative difference."""
    random = torch.Generator().manual_seed(1)
    off = {}
    for name in ("x4plus-anime", "RealESRGAN_x4plus", "realesr-animevideov3"):
        network = load_model(name, Path("/nonexistent")).network
        if has_dense_blocks(network):
            # An odd size, so that blocks of pixels end within a row.
            x = (torch.rand(2, 64, 9, 13, generator=random) - 0.5).contiguous(
                memory_format=torch.channels_last
            )
            block = network.body[0].rdb1
            off[f"{name} block"] = difference(FusedDenseBlock(block)(x), in_double(block, x))
        else:
            x = torch.rand(2, 3, 9, 13, generator=random).contiguous(
                memory_format=torch.channels_last
            )
            off[f"{name} network"] = difference(fused(network)(x), in_double(network, x))
    layer = torch.nn.Conv2d(96, 32, 3, padding=1)
    x = torch.rand(1, 96, 7, 40, generator=random).contiguous(memory_format=torch.channels_last)
    half, in_half = FusedConvolution(layer.half(), 0.2), x.half()
    expected = torch.nn.functional.leaky_relu(layer.float()(in_half.float()), 0.2)
    off["float16 layer"] = difference(half(in_half), expected)
    sys.stdout.write(json.dumps(off))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
