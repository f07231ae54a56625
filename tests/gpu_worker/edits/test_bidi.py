"""The order of a line's characters on screen."""

import pytest
from bidi import get_display
from hypothesis import given, strategies as st

from gpu_worker.edits.bidi import from_left, levels


def on_screen(line):
    return "".join(from_left(list(zip(line, levels(line), strict=True))))


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("abc", "abc"),
        ("", ""),
        ("שלום abc 12!", "!abc 12 םולש"),
        ("Goal שלום 3 by Mia", "Goal 3 םולש by Mia"),
        ("א1ב", "ב1א"),
        # A number of several digits keeps its order, inside of what is turned.
        ("אב 123 גד", "דג 123 בא"),
    ],
)
def test_what_stands_where(line, shown):
    """From left to right, as a reader sees it."""
    assert on_screen(line) == shown


@given(st.text("abאבשع1٢3 .,:-+!%", max_size=30).map(str.strip))
def test_the_order_is_the_one_of_a_whole_implementation(line):
    """That one gives out the line, but not where its parts are; it treats pairs of brackets and
    isolates, too.
    """
    assert on_screen(line) == get_display(line)


def test_a_joiner_does_not_part_what_it_joins():
    """It has the level of the character before."""
    assert levels("א\u200dב 👩\u200d👧") == [1] * 7
