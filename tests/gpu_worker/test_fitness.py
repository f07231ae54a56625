"""A worker says what it is made of, and does not begin where something is missing."""

import pytest
import structlog

from gpu_worker.fitness import check_fitness
from gpu_worker.handler import models_of


def test_a_fit_worker_says_what_it_has(settings):
    """Device, ffmpeg, disk, model, torch: one line; the model is warm."""
    chosen = settings(REELBROKER_QUALITY_MODEL="realesr-animevideov3")
    with structlog.testing.capture_logs() as logs:
        check_fitness(chosen, models_of(chosen))
    (told,) = [entry for entry in logs if entry["event"] == "fit"]
    assert {"device", "ffmpeg", "free_bytes", "model", "torch"} <= told.keys()
    assert told["model"] == "realesr-animevideov3"


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [("REELBROKER_QUALITY_MODEL", "nothing", "nothing.pth"), ("REELBROKER_WORK_DIR", "/nowhere", "/nowhere")],
)
def test_an_unfit_worker_ends(settings, setting, value, words):
    """Rather than take jobs that it cannot do; it says why."""
    chosen = settings(**{setting: value})
    with pytest.raises(SystemExit, match=words):
        check_fitness(chosen, models_of(chosen))
