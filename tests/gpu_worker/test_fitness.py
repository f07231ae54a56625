"""A worker says what it is made of, and does not begin where something is missing."""

import pytest
import structlog
from runpod.serverless.modules import rp_fitness

from gpu_worker.fitness import check_fitness
from gpu_worker.handler import choose_checks
from gpu_worker.pipeline import models_of


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
    [
        ("REELBROKER_QUALITY_MODEL", "nothing", "nothing.pth"),
        ("REELBROKER_WORK_DIR", "/nowhere", "/nowhere"),
    ],
)
def test_an_unfit_worker_ends(settings, setting, value, words):
    """Rather than take jobs that it cannot do; it says why."""
    chosen = settings(**{setting: value})
    with pytest.raises(SystemExit, match=words):
        check_fitness(chosen, models_of(chosen))


@pytest.fixture
def registry():
    """The SDK's list of checks, empty before and after."""

    def empty():
        rp_fitness.clear_fitness_checks()
        rp_fitness._reset_registration_state()

    empty()
    yield rp_fitness._fitness_checks
    empty()


@pytest.mark.parametrize(
    ("skipped", "left_out"),
    [(set(), set()), ({"network"}, {"network"}), ({"disk", "memory"}, {"disk", "memory"})],
)
def test_the_sdk_s_checks_are_left_out_by_name(registry, skipped, left_out):
    """All others run as they do on RunPod, each once, and the log lists both."""
    with structlog.testing.capture_logs() as logs:
        choose_checks(skipped)
    everywhere = {"memory", "disk", "network"}
    registered = {check.__name__.strip("_").removesuffix("_check") for check in registry}
    assert registered & everywhere == everywhere - left_out
    assert len(registered) == len(registry)
    (told,) = [entry for entry in logs if entry["event"] == "machine_checks"]
    assert set(told["run"].split(",")) == registered
    assert set(filter(None, told["skipped"].split(","))) == left_out


async def test_the_sdk_adds_no_check_to_the_chosen_ones(registry):
    """When it runs them, it registers none again."""
    choose_checks({"network", "memory", "disk"})
    before = list(registry)
    rp_fitness._ensure_gpu_check_registered()
    rp_fitness._ensure_system_checks_registered()
    assert registry == before
