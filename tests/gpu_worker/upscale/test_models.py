"""Which model a job goes through, and that it is loaded once."""

from pathlib import Path

import pytest
import torch

from gpu_worker.errors import InvalidParams, ModelUnavailable
from gpu_worker.upscale.models import Models
from schemas.edits import FramingParams, UpscaleParams

pytestmark = pytest.mark.editing
SMALL = "realesr-animevideov3"
QUALITY = FramingParams(export_mode="QUALITY")


def models(preferred=SMALL):
    return Models(Path("/nonexistent"), torch.device("cpu"), preferred)


@pytest.mark.parametrize(
    "params", [FramingParams(), UpscaleParams(export_mode="FAST", model=SMALL)]
)
def test_fast_jobs_go_through_no_network(params):
    """Whatever else they say."""
    assert models().engine(params, 4.0) is None


@pytest.mark.parametrize("ratio", [0.3, 1.0, 1.01])
def test_a_crop_that_is_large_enough_goes_through_none(ratio):
    """There are pixels enough, to a rounding."""
    assert models().engine(QUALITY, ratio) is None


@pytest.mark.parametrize(
    ("ratio", "name"),
    [
        (1.5, "RealESRGAN_x2plus"),
        (2.0, "RealESRGAN_x2plus"),
        (2.67, "realesr-general-x4v3"),
        (8.0, "realesr-general-x4v3"),
    ],
)
def test_the_table_chooses_by_what_is_needed(ratio, name):
    """x2 before x4; nothing else takes the place of what is missing here."""
    with pytest.raises(ModelUnavailable, match=name):
        models(None).engine(QUALITY, ratio)


def test_the_operators_model_takes_the_tables_place():
    """For jobs that name none."""
    assert models().engine(QUALITY, 1.5).name == SMALL
    assert models("x4plus-anime").engine(UpscaleParams(model=SMALL), 3.0).name == SMALL


def test_a_scale_chooses_by_the_table():
    """Over the operator's model; a model that enlarges otherwise is refused."""
    with pytest.raises(ModelUnavailable, match="RealESRGAN_x2plus"):
        models().engine(UpscaleParams(scale=2), 4.0)
    with pytest.raises(InvalidParams, match=r"params.scale is 2, but .* enlarges by 4"):
        models().engine(UpscaleParams(model=SMALL, scale=2), 4.0)


def test_a_model_is_loaded_once():
    """And stays for the next job."""
    kept = models()
    assert kept.warm() == SMALL
    assert kept.engine(QUALITY, 3.0) is kept.engine(UpscaleParams(model=SMALL), 2.0)


def test_without_a_preferred_model_nothing_is_warmed():
    """Which one it will be, the first job tells."""
    assert models(None).warm() is None
