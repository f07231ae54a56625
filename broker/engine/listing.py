"""A user's folders, listed at once, where very many of the user's jobs are overdue.

After an outage, thousands of jobs need two requests to the bucket each. One page of a listing
names 1000 objects, and so saves as many requests.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import structlog
from starlette.concurrency import run_in_threadpool

from broker.bucket import Bucket
from broker.store.jobs import JobStore
from schemas.keys import object_key

log = structlog.get_logger(__name__)

#: From how many overdue jobs of one user on a listing is cheaper than single requests.
MANY_JOBS = 100
#: How many listed objects cost as much as the requests that they save for one job.
OBJECTS_PER_JOB = 20
MAX_OBJECTS = 200_000
#: How old a listing may be.
FRESH_SECONDS = 60.0
FOLDERS = ("jobs", "final_videos")


@dataclass(frozen=True)
class Listing:
    """The objects of one user's folders at one moment; bytes by object key."""

    sizes: dict[str, int]
    at: int


class Listings:
    """The listings that are fresh, by user."""

    def __init__(self, store: JobStore, bucket: Bucket, clock: Callable[[], int]) -> None:
        self._store = store
        self._bucket = bucket
        self._clock = clock
        self._listings: dict[str, Listing | None] = {}

    async def refresh(self, least: int = MANY_JOBS) -> None:
        """Lists the folders of the users who have at least so many overdue jobs.

        Raises:
            StorageError: the bucket cannot be listed.
        """
        overdue = await run_in_threadpool(self._store.overdue, self._clock(), least)
        self._listings = {user: self._fresh(user) for user in overdue}
        for user_id, jobs in overdue.items():
            if self._fresh(user_id) is None:
                most = min(jobs * OBJECTS_PER_JOB, MAX_OBJECTS)
                self._listings[user_id] = await run_in_threadpool(self._list, user_id, most)

    def size(self, user_id: str, key: str) -> int | None:
        """Returns the size of one of the user's objects; None where no fresh listing has it."""
        listing = self._fresh(user_id)
        return None if listing is None else listing.sizes.get(object_key(user_id, key))

    def lacks(self, user_id: str, key: str) -> bool:
        """Whether a fresh listing shows that an object in FOLDERS was not there."""
        listing = self._fresh(user_id)
        return listing is not None and object_key(user_id, key) not in listing.sizes

    def _fresh(self, user_id: str) -> Listing | None:
        listing = self._listings.get(user_id)
        if listing is None or self._clock() - listing.at > FRESH_SECONDS * 1000:
            return None
        return listing

    def _list(self, user_id: str, most: int) -> Listing | None:
        """Lists the folders; None where they have more than `most` objects."""
        at, sizes = self._clock(), dict[str, int]()
        for folder in FOLDERS:
            found = self._bucket.listed(object_key(user_id, f"{folder}/"))
            sizes |= {one.key: one.bytes for one in islice(found, most + 1 - len(sizes))}
        log.info("folders_listed", objects=len(sizes))
        return Listing(sizes, at) if len(sizes) <= most else None
