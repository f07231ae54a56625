"""Where the clock of a stream jumps, and by how much each stretch is moved so that none is left."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

#: A clock that goes on by less has not jumped: the recorder paused. FFmpeg has the same limits.
PAUSE_SECONDS, BACK_SECONDS = 10.0, 0.1
#: How much of a stretch comes out after the next one has begun, and how exactly that continues it.
TAIL_SECONDS, EXACT_SECONDS = 0.5, 0.05
#: Picture and sound of a recording begin and end within this time of each other.
TOGETHER_SECONDS = 0.25


@dataclass
class Stretch:
    """A part of a file in which one clock holds; seconds of that clock, of each kind of stream.

    Attributes:
        begins: when the first packet is decoded.
        ends: when the last one is over.
    """

    begins: dict[str, float] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)

    def goes_on(self, kind: str, moment: float) -> bool:
        """Whether a packet can be of this stretch, which is the newest."""
        if kind not in self.ends:
            return abs(moment - min(self.begins.values())) <= PAUSE_SECONDS
        return -BACK_SECONDS <= moment - self.ends[kind] <= PAUSE_SECONDS


class Stretches:
    """The stretches of a file, found packet by packet, in the file's order."""

    def __init__(self) -> None:
        self.all: list[Stretch] = []
        self._tail: dict[str, float] = {}

    def place(self, kind: str, moment: float, lasts: float) -> int:
        """Takes the next packet; returns the number of its stretch.

        The demuxer gives out the last packet of a kind when the next one of its kind arrives, so
        that one may come after the first packet of another kind from the next stretch.
        """
        number = self._of(kind, moment)
        stretch = self.all[number]
        stretch.begins.setdefault(kind, moment)
        stretch.ends[kind] = max(moment + lasts, stretch.ends.get(kind, moment))
        return number

    def _of(self, kind: str, moment: float) -> int:
        last = len(self.all) - 1
        if last >= 1 and kind not in self.all[last].ends and self._is_tail(kind, moment):
            return last - 1
        if last >= 0 and self.all[last].goes_on(kind, moment):
            return last
        self._tail = dict(self.all[last].ends) if last >= 0 else {}
        self.all.append(Stretch())
        return last + 1

    def _is_tail(self, kind: str, moment: float) -> bool:
        """Whether a packet is one of the last of the stretch before."""
        end = self.all[-2].ends.get(kind)
        if end is None or end - self._tail[kind] > TAIL_SECONDS:
            return False
        return abs(moment - end) <= EXACT_SECONDS


def offsets(stretches: Sequence[Stretch], leading: str) -> list[float]:
    """Returns what is added to the clock of each stretch, so that each begins where the one before
    ends (seconds).

    Args:
        leading: the kind of stream that goes on without a gap, where that parts no stream from the
            others: sound is cut into longer packets than pictures are.
    """
    added = [0.0] if stretches else []
    for before, after in itertools.pairwise(stretches):
        whole = max(before.ends.values()) - min(after.begins.values())
        if leading in before.ends and leading in after.begins:
            smooth = before.ends[leading] - after.begins[leading]
            whole = smooth if abs(smooth - whole) <= TOGETHER_SECONDS else whole
        added.append(added[-1] + whole)
    return added
