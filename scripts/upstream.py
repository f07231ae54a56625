"""Upstream's own way to run Real-ESRGAN, with the same weights: the peer of our engine."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from gpu_worker.upscale.architectures import bare_packages
from gpu_worker.upscale.weights import load_model

NOWHERE = Path("/nonexistent")


def upstream(name: str, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """Returns upstream's `enhance` with the same weights: BGR uint8 in and out."""
    model = load_model(name, NOWHERE)
    with bare_packages():
        from realesrgan.utils import RealESRGANer
    half = device.type != "cpu"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save({"params": model.network.state_dict()}, path)
        upsampler = RealESRGANer(
            scale=4,
            model_path=str(path),
            model=model.network,
            tile=0,
            tile_pad=10,
            pre_pad=0,
            half=half,
            device=device,
        )
    return lambda picture: np.asarray(upsampler.enhance(picture, outscale=4)[0])
