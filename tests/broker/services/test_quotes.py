"""Estimates: by the user's own jobs once there are enough of them, by default rates before."""

import pytest

from broker.jobs.pricing import cost
from broker.services.quotes import estimate
from schemas.edits import FramingParams
from schemas.jobs import OutputFacts

#: A second of output is a million pixels.
PARAMS = FramingParams(
    output_width=1000, output_height=100, target_fps=10, start_time=0.0, end_time=10.0
)


@pytest.fixture
def done(make_job):
    """Makes a complete job of a million pixels that took so many GPU seconds."""

    def make(gpu_seconds):
        facts = OutputFacts(
            bytes=1,
            sha256="0" * 64,
            width=1000,
            height=100,
            fps=10,
            frames=10,
            duration_seconds=1.0,
            video_codec="h264",
            audio_codec=None,
        )
        return make_job(result=facts.model_dump_json(), gpu_seconds=gpu_seconds)

    return make


def test_a_user_without_jobs_gets_default_rates():
    """10 s are 10 million pixels at 0.04 GPU seconds each, and 8 s to start."""
    found = estimate(PARAMS, 60.0, 0, [], {"*": 0.5})
    assert (found.basis, found.output_seconds, found.gpu_seconds) == ("default", 10.0, 8.4)
    assert (found.gpu_seconds_p90, found.cost_usd, found.cost_usd_p90) == (9.2, 4.2, 4.6)


def test_five_jobs_alike_make_a_history(done, make_job):
    """The median, and the ninth tenth; jobs without a result or a time count for nothing."""
    known = [done(seconds) for seconds in (1.0, 2.0, 3.0, 4.0, 9.0)]
    unknown = [make_job(), done(None)]
    found = estimate(PARAMS, 60.0, 0, known + unknown, {})
    assert (found.basis, found.gpu_seconds, found.gpu_seconds_p90) == ("history", 30.0, 90.0)
    assert found.cost_usd is None
    assert estimate(PARAMS, 60.0, 0, known[:4] + unknown, {}).basis == "default"


def test_the_length_of_an_unknown_source_comes_from_its_bytes():
    """A million bytes are taken for a second, and the quote says that it is an assumption."""
    found = estimate(FramingParams(), None, 7_000_000, [], {})
    assert (found.output_seconds, found.source_known) == (7.0, False)


@pytest.mark.parametrize(
    ("gpu", "seconds", "usd"),
    [("L4", 10, 2.0), ("T4", 10, 5.0), (None, 10, 5.0), ("L4", None, None)],
)
def test_a_gpu_without_a_price_costs_what_any_does(gpu, seconds, usd):
    """The table's `*` is for every GPU that it does not name."""
    assert cost({"L4": 0.2, "*": 0.5}, gpu, seconds) == usd
