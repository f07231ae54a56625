"""From params to clips: rates, sizes, the files that are needed."""

from fractions import Fraction

import pytest

from gpu_worker.edits.compose import _rate

pytestmark = pytest.mark.editing


@pytest.mark.parametrize(
    ("asked", "rate"),
    [
        (None, Fraction(25)),
        (30.0, Fraction(30)),
        (29.97, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
    ],
)
def test_the_rate_asked_for_is_meant_exactly(asked, rate):
    """29.97 is the broadcast rate, not 2997/100."""
    assert _rate(asked, [Fraction(25)]) == rate
