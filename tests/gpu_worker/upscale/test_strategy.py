"""Ways to run a network: the fastest that a trial has shown to make the same picture."""

from pathlib import Path

import pytest
import torch

from gpu_worker.media.frames import Box
from gpu_worker.upscale.graph import KEPT_SHAPES, RECORDED_AFTER, Graphs
from gpu_worker.upscale.models import Models
from gpu_worker.upscale.strategy import (
    EAGER,
    Remembered,
    Trial,
    build,
    choose,
    compiled,
    fastest,
    tried,
)
from gpu_worker.upscale.upscaler import Upscaler
from gpu_worker.upscale.weights import load_model
from tests.gpu_worker.pictures import noise
from tests.gpu_worker.pretend import OnDevice

pytestmark = pytest.mark.editing
NOWHERE = Path("/nonexistent")


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ([], EAGER),
        ([Trial(EAGER, 1.0)], EAGER),
        ([Trial(EAGER, 1.0), Trial("split", 0.8)], "split"),
        ([Trial(EAGER, 1.0), Trial("split", 0.96)], EAGER),
        ([Trial(EAGER, 1.0), Trial("split", 0.8), Trial("graph", 0.7)], "graph"),
        ([Trial(EAGER, 1.0), Trial("split", 0.5, 0.01), Trial("graph", 0.9)], "graph"),
        ([Trial(EAGER, 1.0), Trial("split", None)], EAGER),
        ([Trial(EAGER, None), Trial("split", 0.5)], EAGER),
    ],
)
def test_the_choice_is_never_slower_than_eager(trials, expected):
    """And clearly faster than eager, and the same picture, or it is eager."""
    assert choose(trials) == expected


def pictures_on(device, height=16, width=20):
    random = torch.Generator().manual_seed(1)
    host = torch.rand(2, 3, height, width, generator=random)
    return host.contiguous(memory_format=torch.channels_last).to(device)


def network_on(device, name="x4plus-anime"):
    return load_model(name, NOWHERE).network.to(device, memory_format=torch.channels_last)


@pytest.mark.parametrize("name", [EAGER, "split", "graph", "split+graph"])
def test_each_strategy_makes_eagers_picture(pretend, name):
    """On the pretend device, which refuses what a GPU refuses."""
    network, pictures = network_on(pretend.device), pictures_on(pretend.device)
    with torch.inference_mode():
        trial, forward = tried(name, network, pretend.accelerator, pictures)
        again = forward(pictures)
        expected = network(pictures)
    assert trial.seconds is not None
    assert trial.difference < 2e-5
    assert float((again - expected).abs().max().cpu()) < 2e-5


def test_blocks_are_compiled_once_for_all(monkeypatch):
    """Six blocks of three dense blocks each share one compilation, for any size; the network itself
    stays as it is.
    """
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    network = load_model("x4plus-anime", NOWHERE).network
    quick = compiled(network, backend)
    with torch.inference_mode():
        for size in ((16, 20), (18, 26), (24, 30)):
            pictures = pictures_on("cpu", *size)
            assert float((quick(pictures) - network(pictures)).abs().max()) < 2e-5
    assert 1 <= len(graphs) <= 2
    assert all(module._compiled_call_impl is None for module in network.modules())


@pytest.mark.parametrize("name", ["split", "nonsense", "eager+nonsense"])
def test_a_strategy_that_does_not_fit_is_out(pretend, name):
    """A compact network has nothing to split."""
    network = network_on(pretend.device, "realesr-animevideov3")
    with pytest.raises(ValueError, match="no strategy"):
        build(name, network, pretend.accelerator)
    with torch.inference_mode():
        trial, forward = tried(name, network, pretend.accelerator, pictures_on(pretend.device))
    assert trial.seconds is None
    assert forward is network


def test_a_shape_that_recurs_is_recorded(pretend):
    """The others run as they are, and the memory of few is held."""
    calls = []

    def forward(pictures):
        calls.append(tuple(pictures.shape))
        return pictures * 2

    graphs = Graphs(forward, pretend.accelerator)
    shapes = [pictures_on(pretend.device, 8, 8 + 2 * n) for n in range(KEPT_SHAPES + 1)]
    for pictures in shapes:
        for _ in range(RECORDED_AFTER + 2):
            assert torch.equal(graphs(pictures), pictures * 2)
    assert len(graphs._recorded) == KEPT_SHAPES
    recorded = graphs._recorded[shapes[0].shape]
    assert torch.equal(graphs(shapes[0] + 1), (shapes[0] + 1) * 2)
    assert graphs(shapes[0]) is recorded.made


def test_a_choice_is_remembered_by_card_and_model(pretend, tmp_path):
    """The next worker tries nothing; another card, model or list of names does."""
    network, pictures = network_on(pretend.device), pictures_on(pretend.device)
    remembered = Remembered(tmp_path / "strategies.json")
    name, _ = fastest(["split"], network, pretend.accelerator, pictures, remembered, "x")
    operations = pretend.counts["operations"]
    again, _ = fastest(["split"], network, pretend.accelerator, pictures, remembered, "x")
    assert again == name
    assert pretend.counts["operations"] - operations < operations
    assert "pretend|" in (tmp_path / "strategies.json").read_text()
    fastest(["split"], network, pretend.accelerator, pictures, remembered, "y")
    assert len(remembered._all()) == 2


@pytest.mark.parametrize("text", ["", "nonsense", "[1]", '{"a": 3}'])
def test_a_damaged_file_is_no_memory(tmp_path, text):
    """And is written anew; a folder that is not there is no error."""
    path = tmp_path / "strategies.json"
    path.write_text(text)
    assert Remembered(path).get("a") is None
    Remembered(path).put("a", "split")
    assert Remembered(path).get("a") == "split"
    Remembered(tmp_path / "none" / "file").put("a", "split")


def test_warm_up_tries_what_the_operator_lists(pretend, tmp_path):
    """Others stay off."""
    remembered = Remembered(tmp_path / "strategies.json")
    models = Models(NOWHERE, pretend.device, "realesr-animevideov3", ["graph"], remembered)
    upscaler = models.get("realesr-animevideov3")
    models._speed_up(upscaler, (4, 6))
    assert len(remembered._all()) == 1
    assert next(iter(remembered._all())).endswith("|graph")


def test_a_strategy_that_fails_in_a_job_is_given_up(pretend):
    """The picture is made as the network makes it, and so are those after it."""
    upscaler = Upscaler(load_model("realesr-animevideov3", NOWHERE), pretend.device, torch.float32)

    def failing(pictures):
        raise RuntimeError("no kernel for this shape")

    upscaler.run_by(failing)
    rgb = OnDevice(torch.rand(1, 3, 8, 8))

    made = upscaler([noise(32, 32)], [Box(4.0, 4.0, 16.0, 16.0)], 64, 64)
    assert (made[0].width, made[0].height) == (64, 64)
    assert upscaler.enlarge(rgb).shape == (1, 3, 32, 32)
