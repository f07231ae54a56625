"""Networks and weights: from the distributions that have the names, checked against ncnn's own
arithmetic.
"""

import importlib.metadata
import inspect
import sys
from pathlib import Path

import ncnn
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gpu_worker.errors import ModelUnavailable
from gpu_worker.upscale import weights
from gpu_worker.upscale.architectures import compact_class, dense_class, network_of
from gpu_worker.upscale.weights import RELEASES, load_model, ncnn_folder
from tests.gpu_worker.footage import psnr

pytestmark = pytest.mark.editing
NOWHERE = Path("/nonexistent")


@pytest.mark.parametrize(
    ("made", "module", "distribution"),
    [
        (compact_class, "realesrgan.archs.srvgg_arch", "realesrgan"),
        (dense_class, "basicsr.archs.rrdbnet_arch", "basicsr"),
    ],
)
def test_the_architectures_are_the_distributions_own(made, module, distribution):
    """The class is defined in a file that the named distribution has installed; no bare package
    stays behind.
    """
    found = made()
    assert found.__module__ == module
    source = Path(found.forward.__code__.co_filename)
    installed = {Path(file.locate()).resolve() for file in importlib.metadata.files(distribution)}
    assert source.resolve() in installed
    assert not [name for name in sys.modules if name.split(".")[0] in ("basicsr", "realesrgan")]
    assert inspect.isclass(found)


@pytest.mark.parametrize(
    ("name", "factor", "parameters"),
    [
        ("realesr-animevideov3", 4, 621_424),
        ("x4plus-anime", 4, 4_467_779),
        ("RealESRGAN_x4plus", 4, 16_697_987),
    ],
)
def test_the_wheels_weights_are_whole_networks(name, factor, parameters):
    """As many parameters as the papers' networks have."""
    model = load_model(name, NOWHERE)
    assert model.factor == factor
    assert sum(tensor.numel() for tensor in model.network.parameters()) == parameters


@pytest.mark.parametrize("name", ["realesr-animevideov3", "x4plus-anime", "RealESRGAN_x4plus"])
def test_the_networks_compute_what_ncnn_computes(name, measured):
    """The same file through ncnn itself and through ours: 80 dB and more at 8 bits."""
    rng = np.random.default_rng(5)
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(rng.random((1, 3, 12, 10), np.float32)), (48, 40), mode="bicubic"
    )
    picture = smooth.clamp(0, 1)[0].numpy().copy()
    base = str(ncnn_folder() / RELEASES[name].ncnn)
    net = ncnn.Net()
    net.opt.use_fp16_arithmetic = net.opt.use_fp16_packed = net.opt.use_fp16_storage = False
    net.opt.use_bf16_storage = False
    net.load_param(base + ".param")
    net.load_model(base + ".bin")
    extractor = net.create_extractor()
    # Kept: ncnn does not copy.
    given = ncnn.Mat(picture)
    extractor.input("data", given)
    _, out = extractor.extract("output")
    theirs = np.array(out)
    with torch.inference_mode():
        ours = load_model(name, NOWHERE).network(torch.from_numpy(picture)[None])[0].numpy()
    same = psnr(*(np.clip(one * 255, 0, 255).round().astype(np.uint8) for one in (ours, theirs)))
    error = 10 * np.log10(1 / np.mean((ours - theirs) ** 2))
    measured(f"{name} against ncnn: {error:.1f} dB")
    assert error >= 80
    assert same >= 70


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_model_of_ones_own_is_dropped_into_the_folder(tmp_path, suffix):
    """What network it is follows from its tensors; the name is the file's."""
    state = compact_class()(num_feat=8, num_conv=2, upscale=2, act_type="prelu").state_dict()
    if suffix == ".pth":
        torch.save({"params": state}, tmp_path / "mine.pth")
    else:
        save_file(state, tmp_path / "mine.safetensors")
    model = load_model("mine", tmp_path)
    assert (model.factor, model.name) == (2, "mine")
    with torch.inference_mode():
        assert model.network(torch.zeros(1, 3, 6, 4)).shape == (1, 3, 12, 8)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_dense_network_of_any_scale_is_known_by_its_tensors(scale):
    """x2plus looks at every second pixel."""
    made = dense_class()(3, 3, scale=scale, num_feat=8, num_block=2, num_grow_ch=4)
    network, factor = network_of(made.state_dict())
    assert factor == scale
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 8, 4)).shape == (1, 3, 8 * scale, 4 * scale)


def test_a_missing_model_says_what_to_put_where():
    """The file's name and the setting."""
    with pytest.raises(ModelUnavailable, match=r"realesr-general-x4v3\.pth.*REELBROKER_MODELS_DIR"):
        load_model("realesr-general-x4v3", NOWHERE)
    with pytest.raises(ModelUnavailable, match=r"put mine\.pth"):
        load_model("mine", NOWHERE)


def test_without_the_wheel_its_models_are_missing_too(monkeypatch):
    """Production images have the releases' files instead."""
    monkeypatch.setattr(weights, "ncnn_folder", lambda: None)
    with pytest.raises(ModelUnavailable, match=r"RealESRGAN_x4plus\.pth"):
        load_model("RealESRGAN_x4plus", NOWHERE)


def test_a_file_that_is_not_the_released_one_is_refused(tmp_path):
    """By its SHA-256; a release's name on something else is a mistake or worse."""
    torch.save({"params": {}}, tmp_path / "RealESRGAN_x2plus.pth")
    with pytest.raises(ModelUnavailable, match="SHA-256"):
        load_model("RealESRGAN_x2plus", tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"no weights", b"\x80\x04cos\nsystem\n(S'true'\ntR."],
    ids=["empty", "text", "a pickle that would run a command"],
)
def test_a_file_of_something_else_is_refused(tmp_path, content):
    """And nothing in it is run."""
    (tmp_path / "mine.pth").write_bytes(content)
    with pytest.raises(ModelUnavailable, match="cannot be loaded"):
        load_model("mine", tmp_path)


def test_tensors_of_another_network_are_refused(tmp_path):
    """Named in the log."""
    torch.save({"params": {"layer.weight": torch.zeros(3)}}, tmp_path / "mine.pth")
    with pytest.raises(ModelUnavailable) as caught:
        load_model("mine", tmp_path)
    assert "neither SRVGGNetCompact nor RRDBNet" in caught.value.detail
