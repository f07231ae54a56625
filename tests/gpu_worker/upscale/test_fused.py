"""The Triton kernel, in Triton's interpreter, on real weights."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="scripts/test-tools installs Triton")

pytestmark = pytest.mark.editing


@pytest.fixture(scope="module")
def off():
    """Relative differences by name."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu_worker.upscale.fused_run"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("what", "limit"),
    [
        ("x4plus-anime block", 1e-6),
        ("RealESRGAN_x4plus block", 1e-6),
        ("realesr-animevideov3 network", 2e-6),
        ("float16 layer", 1e-3),
    ],
)
def test_fused_convolutions_compute_the_same(off, measured, what, limit):
    """To a rounding: bias, activation and residual included, batches and odd sizes too."""
    measured(f"fused, {what}: {off[what]:.1e} off")
    assert off[what] < limit


def test_a_layer_of_another_width_is_refused():
    """The kernel has 32 or 64 outputs; other networks run as they are."""
    from gpu_worker.upscale.fused import FusedConvolution

    with pytest.raises(ValueError, match="48 channels"):
        FusedConvolution(torch.nn.Conv2d(64, 48, 3, padding=1))
