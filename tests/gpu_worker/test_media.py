"""Files of every kind that people upload, through every job type; docs/media-support.md says the
same.
"""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from make_media import CASES  # noqa: E402
from media_support import DOC, document, run_all  # noqa: E402

pytestmark = pytest.mark.editing


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """All of them, made and run once."""
    folder = tmp_path_factory.mktemp("media")
    for case in CASES:
        case.make(folder / case.name)
    return run_all(folder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_becomes_the_right_picture_or_the_right_error(outcomes, case):
    """In every job type: colours, moments and length, or the error's code; never a hang, a crash, a
    black frame.
    """
    told = {
        job_type: outcome for (name, job_type), outcome in outcomes.items() if name == case.name
    }
    assert len(told) == 5
    assert set(told.values()) == {case.error or "exported"}


def test_the_page_says_what_was_seen(outcomes):
    """docs/media-support.md is written by `scripts/media-support`."""
    assert DOC.read_text() == document(outcomes)
