"""Where an attempt goes: a place is a provider and one of its targets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from broker.jobs.model import Attempt
from schemas.jobs import ErrorCode

#: After these, the next attempt goes to the place that follows the failed one's.
MOVES = frozenset({ErrorCode.PROVIDER_UNAVAILABLE, ErrorCode.QUEUE_TIMEOUT, ErrorCode.WORKER_LOST})


@dataclass(frozen=True)
class Place:
    """A provider's name, and the address of its endpoint or function."""

    provider: str
    target: str


def choose_place(
    places: Sequence[Place], failed: Attempt | None, is_held: Callable[[Place], bool]
) -> Place:
    """Returns where the next attempt goes: the first place whose calls are not held back.

    Args:
        places: the preferred one first; at least one.
        failed: the attempt before; None for a job's first.
        is_held: whether a call there would be held back now. Where all are, the attempt waits for
            the first.
    """
    first = 0
    if failed is not None and failed.error_code in MOVES:
        before = Place(failed.provider, failed.target)
        first = (places.index(before) + 1) % len(places) if before in places else 0
    order = [*places[first:], *places[:first]]
    return next((place for place in order if not is_held(place)), order[0])
