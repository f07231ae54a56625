"""Files of every kind that people upload; docs/media-support.md says the same."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from make_media import CASES  # noqa: E402
from media_support import DOC, document, run_all  # noqa: E402

from schemas.jobs import JobType  # noqa: E402

pytestmark = pytest.mark.editing


OTHERS = [job_type for job_type in JobType if job_type is not JobType.FRAMING]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Each file as framing and as one of the other types in turn; `scripts/media-support` runs
    all.
    """
    folder = tmp_path_factory.mktemp("media")
    for case in CASES:
        case.make(folder / case.name)
    asked = [
        (case, job_type)
        for number, case in enumerate(CASES)
        for job_type in (JobType.FRAMING, OTHERS[number % len(OTHERS)])
    ]
    return run_all(folder, asked)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_becomes_the_right_picture_or_the_right_error(outcomes, case):
    """Colours, moments and length, or the error's code; never a hang, a crash, a black frame."""
    told = {
        job_type: outcome for (name, job_type), outcome in outcomes.items() if name == case.name
    }
    assert len(told) == 2
    assert set(told.values()) == {case.error or "exported"}


def test_the_page_says_what_was_seen(outcomes):
    """docs/media-support.md is written by `scripts/media-support`."""
    expected = {
        (case.name, job_type): case.error or "exported" for case in CASES for job_type in JobType
    }
    assert DOC.read_text() == document(expected | outcomes)
