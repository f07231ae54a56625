"""The order in which the parts of a line stand: Unicode's bidirectional algorithm (annex 9)."""

import unicodedata
from collections.abc import Sequence
from itertools import groupby
from typing import TypeVar

from bidi import algorithm, get_base_level

T = TypeVar("T")
#: Classes of letters and digits without which nothing goes from right to left.
_TURNING = frozenset(("R", "AL", "AN"))
#: Joiners and the like, which the algorithm leaves out, count as marks of the character before.
_LEFT_OUT, _MARK = "BN", "\u0301"


def levels(line: str) -> list[int]:
    """Returns the embedding level of each character: odd where it goes from right to left.

    Args:
        line: without codes that embed or isolate.
    """
    if _TURNING.isdisjoint(map(unicodedata.bidirectional, line)):
        return [0] * len(line)
    base = get_base_level(line)
    shown = (_MARK if unicodedata.bidirectional(one) == _LEFT_OUT else one for one in line)
    storage = algorithm.get_empty_storage()
    storage["base_level"], storage["base_dir"] = base, ("L", "R")[base]
    algorithm.get_embedding_levels("".join(shown), storage)
    algorithm.explicit_embed_and_overrides(storage)
    algorithm.resolve_weak_types(storage)
    algorithm.resolve_neutral_types(storage, False)
    algorithm.resolve_implicit_levels(storage, False)
    return [one["level"] for one in storage["chars"]]


def from_left(parts: Sequence[tuple[T, int]]) -> list[T]:
    """Returns parts, each with its level, in their order on screen (rule L2)."""
    ordered = list(parts)
    for level in range(max((level for _, level in parts), default=0), 0, -1):
        stretches = groupby(ordered, key=lambda part: part[1] >= level)
        ordered = [
            part
            for turned, stretch in stretches
            for part in (reversed(list(stretch)) if turned else stretch)
        ]
    return [part for part, _ in ordered]
