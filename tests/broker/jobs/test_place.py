"""Where the next attempt goes: a table."""

import pytest

from broker.jobs.model import Attempt
from broker.jobs.place import MOVES, Place, choose_place
from schemas.jobs import ErrorCode

A, B, C = (
    Place("runpod", "https://a"),
    Place("modal", "modal:main/x/y"),
    Place("runpod", "https://c"),
)


def failed(place, code):
    return Attempt(
        token="t",
        job_id="j",
        number=1,
        provider=place.provider,
        target=place.target,
        created_at=1,
        error_code=code,
    )


@pytest.mark.parametrize(
    ("before", "held", "expected"),
    [
        pytest.param(None, [], A, id="the-first"),
        pytest.param(None, [A], B, id="the-first-that-is-healthy"),
        pytest.param(None, [A, B, C], A, id="all-are-held"),
        pytest.param((A, ErrorCode.PROVIDER_UNAVAILABLE), [], B, id="unavailable"),
        pytest.param((A, ErrorCode.QUEUE_TIMEOUT), [], B, id="no-worker-came"),
        pytest.param((A, ErrorCode.WORKER_LOST), [], B, id="the-worker-was-lost"),
        pytest.param((A, ErrorCode.WORKER_LOST), [B], C, id="the-next-one-is-held"),
        pytest.param((C, ErrorCode.WORKER_LOST), [], A, id="round-again"),
        pytest.param((A, ErrorCode.OUT_OF_MEMORY), [], A, id="another-failure-stays"),
        pytest.param((A, ErrorCode.STORAGE_UNAVAILABLE), [A], B, id="stays-if-it-can"),
        pytest.param((Place("gone", "x"), ErrorCode.WORKER_LOST), [], A, id="not-in-the-settings"),
    ],
)
def test_where_the_next_attempt_goes(before, held, expected):
    """The first healthy place; after a failure of the place, the one that follows it."""
    attempt = None if before is None else failed(*before)
    assert choose_place([A, B, C], attempt, lambda place: place in held) == expected


@pytest.mark.parametrize("code", list(ErrorCode))
def test_with_one_place_everything_stays_there(code):
    """Whatever failed."""
    assert choose_place([A], failed(A, code), lambda place: True) == A
    assert choose_place([A, B], failed(A, code), lambda place: False) == (B if code in MOVES else A)
