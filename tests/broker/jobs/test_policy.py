"""The rules of retries, deadlines and waiting."""

import pytest

from broker.jobs.policy import (
    RECONCILED_PER_SECOND,
    TRIES,
    backoff_seconds,
    deadlines,
    longest_output,
    timeout_code,
    tries_again,
    wait_seconds,
)
from schemas.jobs import ErrorCode, JobRequest, JobType

FULL = 10_000_000
HOUR = 3600


def codes(text):
    return [ErrorCode(word) for word in text.split()]


@pytest.mark.parametrize(
    ("failures", "again"),
    [
        ("worker_lost", True),
        ("worker_lost worker_lost", True),
        ("worker_lost worker_lost worker_lost", False),
        ("storage_unavailable worker_lost internal", False),
        ("out_of_memory", True),
        ("out_of_memory out_of_memory", False),
        ("worker_lost out_of_memory", True),
        ("queue_timeout queue_timeout", False),
        ("invalid_media", False),
        ("invalid_params", False),
        ("worker_lost source_not_found", False),
        ("execution_timeout", False),
        ("cpu_timeout", False),
    ],
)
def test_infrastructure_is_tried_again_and_media_is_not(failures, again):
    """Three attempts in all; out of memory once more; what would fail the same way never."""
    assert tries_again(codes(failures), max_attempts=3) is again


@pytest.mark.parametrize(
    ("started", "ran", "limit", "code"),
    [
        (False, 0.0, 600, "queue_timeout"),
        (False, 900.0, 600, "queue_timeout"),
        (True, 42.0, 600, "worker_lost"),
        (True, 569.0, 600, "worker_lost"),
        (True, 599.0, 600, "execution_timeout"),
        (True, 601.0, 600, "execution_timeout"),
        (True, 42.0, None, "execution_timeout"),
    ],
)
def test_timed_out_means_three_things(started, ran, limit, code):
    """Never started, ended before the limit, at the limit; an attempt of an older broker has no
    limit noted.
    """
    assert timeout_code(started, ran, limit) is ErrorCode(code)


def test_what_is_tried_again_is_what_the_api_calls_retryable():
    """A client and the broker agree."""
    assert set(TRIES) == {code for code in ErrorCode if code.retryable}


def test_each_further_attempt_waits_longer():
    """The last wait is for all that follow."""
    waits = [backoff_seconds(n) for n in range(1, 6)]
    assert waits == sorted(waits)
    assert waits[-1] == waits[-2]


def limits(job_type, params, source_bytes=FULL, longest=24 * HOUR):
    params = JobType(job_type).params_model.model_validate(params)
    return deadlines(params, source_bytes, longest, HOUR)


def test_a_deadline_grows_with_what_is_to_be_made():
    """Length, mode, slow motion and size of the source each lengthen it."""
    clip = {"end_time": 10}
    plain = limits("framing", clip).execution
    slow = [{"start": 0, "end": 10, "speed": 0.5}]
    for longer in (
        limits("framing", {"end_time": 20}),
        limits("framing", clip | {"export_mode": "QUALITY"}),
        limits("upscale", clip),
        limits("framing", clip | {"segments": slow}),
        limits("framing", clip, source_bytes=10_000_000_000),
        limits("framing", {}),
    ):
        assert longer.execution > plain
    smooth = limits("framing", clip | {"segments": slow, "slow_motion": "interpolate"})
    assert smooth.execution > limits("framing", clip | {"segments": slow}).execution


def test_clips_are_added_up():
    """Each has its own length."""
    clips = [{"start_time": 0, "end_time": 100}] * 3
    assert (
        limits("annotate", {"clips": clips}).execution
        > limits("annotate", {"clips": clips[:1]}).execution
    )
    assert (
        limits("multi_clip", {"clips": clips}).execution
        > limits("multi_clip", {"clips": clips[:1]}).execution
    )


def test_a_quality_export_gets_more_than_it_ever_needed():
    """The reference product ran 1.3 frames a second: 60 seconds at 30 took 1385 s; its own limit
    killed such jobs.
    """
    assert limits("framing", {"end_time": 60, "export_mode": "QUALITY"}).execution > 3 * 1385


def test_the_limit_of_the_settings_holds_and_the_queue_comes_on_top():
    """RunPod counts its ttl from the submit."""
    made = limits("framing", {}, source_bytes=10**12, longest=2 * HOUR)
    assert (made.execution, made.ttl) == (2 * HOUR, 3 * HOUR)


def test_looks_become_rarer_and_never_march_in_step():
    """Within 20 % of 1, 2, 5 and 15 seconds."""
    for age, base in (
        (0, 1),
        (9, 1),
        (11, 2),
        (59, 2),
        (61, 5),
        (599, 5),
        (601, 15),
        (100_000, 15),
    ):
        waits = {wait_seconds(age) for _ in range(50)}
        assert base * 0.8 <= min(waits)
        assert max(waits) <= base * 1.2
        assert len(waits) > 40


def test_the_more_jobs_are_open_the_rarer_each_is_looked_at():
    """All together within a bound; a few cost nothing."""
    assert wait_seconds(0, open_jobs=40) <= 1.2
    looks = sum(1 / wait_seconds(0, open_jobs=10_000) for _ in range(10_000))
    assert looks == pytest.approx(RECONCILED_PER_SECOND, rel=0.1)


@pytest.mark.abuse
def test_each_clip_is_as_long_as_its_own_source_may_be():
    """By its bytes, the part of it that is shown, and its speed; an unknown source is as long as
    any may be.
    """
    clips = [
        {"input_key": "b.mp4"},
        {"input_key": "c.mp4", "end_time": 3},
        {"start_time": 2, "segments": [{"start": 2, "end": 10, "speed": 0.5}]},
    ]
    asked = JobRequest(type="multi_clip", input_key="a.mp4", params={"clips": clips})
    sizes = {"a.mp4": 10 * 40_000, "b.mp4": 7 * 40_000, "c.mp4": 10**12}
    assert longest_output(asked, sizes) == pytest.approx(7 + 3 + 16)
    assert longest_output(asked, sizes | {"b.mp4": 10**15}) == pytest.approx(6 * 3600 + 3 + 16)
    assert longest_output(asked, {"a.mp4": 10 * 40_000}) == pytest.approx(6 * 3600 + 3 + 16)
