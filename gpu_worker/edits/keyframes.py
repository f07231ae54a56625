"""Keyframes: when they are, between which two a moment lies, and what is between them."""

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from fractions import Fraction
from typing import Any, TypeVar

#: A frozen dataclass of numbers.
Values = TypeVar("Values", bound=Any)


def seconds_of(time: float | None, frame: int | None, fps: Fraction) -> float:
    """Returns a moment that is given in seconds, or else by the number of a frame."""
    return time if time is not None else float((frame or 0) / fps)


def bracket(times: Sequence[float], moment: float) -> tuple[int, float]:
    """Returns the keyframe that a moment comes after, and how far it is on the way to the next one
    (0 to 1).

    Before the first and after the last one everything rests: it is no way at all from that one.
    """
    before = bisect.bisect_right(times, moment) - 1
    if before < 0 or before + 1 == len(times):
        return max(0, before), 0.0
    begin, end = times[before], times[before + 1]
    return before, (moment - begin) / (end - begin)


def mixed(parts: Iterable[tuple[float, Values]]) -> Values:
    """Returns the weighted sum of values of one class, field by field; (weight, value) each."""
    parts = list(parts)
    weighted = [[weight * field for field in astuple(value)] for weight, value in parts]
    made: Values = type(parts[0][1])(*map(math.fsum, zip(*weighted, strict=True)))
    return made
