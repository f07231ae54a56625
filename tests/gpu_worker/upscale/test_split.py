"""Dense blocks split by source: the same block, the same network, on real weights."""

from pathlib import Path

import pytest
import torch

from gpu_worker.upscale.split import SplitDenseBlock, has_dense_blocks, split_dense_blocks
from gpu_worker.upscale.weights import load_model

pytestmark = pytest.mark.editing
NOWHERE = Path("/nonexistent")


def network_of(name):
    return load_model(name, NOWHERE).network


@pytest.mark.parametrize("name", ["x4plus-anime", "RealESRGAN_x4plus"])
def test_a_split_block_is_the_block(name, measured):
    """To 1e-6 of its largest value, in float32; the first and the last one of the trunk."""
    body = network_of(name).body
    x = torch.rand(2, 64, 12, 14, generator=torch.Generator().manual_seed(1)) - 0.5
    for block in (body[0].rdb1, body[len(body) - 1].rdb3):
        with torch.inference_mode():
            expected, made = block(x), SplitDenseBlock(block)(x)
        difference = float((made - expected).abs().max() / expected.abs().max())
        measured(f"{name}, a dense block split by source: {difference:.1e} off")
        assert difference < 1e-6


def test_a_split_network_is_the_network():
    """Far below a level of 255, and the original stays as it was."""
    network = network_of("x4plus-anime")
    x = torch.rand(1, 3, 16, 20, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, made = network(x), split_dense_blocks(network)(x)
        again = network(x)
    assert float((made - expected).abs().max()) < 2e-5
    assert torch.equal(again, expected)


@pytest.mark.parametrize(
    ("name", "dense"), [("x4plus-anime", True), ("realesr-animevideov3", False)]
)
def test_only_the_large_networks_have_dense_blocks(name, dense):
    """The compact ones are a plain row of convolutions."""
    assert has_dense_blocks(network_of(name)) is dense
