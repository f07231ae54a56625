"""Removes old objects from the bucket by rule, and nothing that a job names.

| below the user's folder | removed when |
|---|---|
| `jobs/{job}/{attempt}/…` | its job ended long ago |
| `final_videos/…` | its job ended long ago, with another output or none |
| `uploads/…` | its upload is in the database, old, and named by no job; or it is too large |
| `temp/…` | it is old, and all jobs that name it ended long ago |
| parts in `uploads/` and `temp/` | their upload began long ago, and is not complete |

Objects of a job or an upload that the database lacks stay: the database may be older than the
bucket, or another one.
"""

import asyncio
import re
from collections.abc import Callable, Iterator

import structlog
from starlette.concurrency import run_in_threadpool

from broker.bucket import Bucket, Found, Unfinished
from broker.clock import DAY_MS, now_ms
from broker.jobs.model import Job
from broker.settings import Settings
from broker.store.jobs import JobStore
from broker.store.uploads import UploadStore
from schemas.keys import TEMPORARY, object_key

log = structlog.get_logger(__name__)

#: A broker that has just started has more urgent work.
FIRST_SECONDS = 600.0
#: How long an idempotency key is kept.
KEYS_DAYS = 7
_DOCUMENT = re.compile(r"jobs/([A-Za-z0-9_-]+)/[0-9a-f]{32}/[a-z]+\.json")
_OUTPUT = re.compile(r"final_videos/[a-z_]+?_([0-9a-f]{8}-[0-9a-f-]{27})_[0-9a-f]{8}\.mp4")


class Retention:
    """Sweeps the bucket."""

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        uploads: UploadStore,
        bucket: Bucket,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._store = store
        self._uploads = uploads
        self._bucket = bucket
        self._clock = clock
        self._closed = asyncio.Event()
        self._documents_ms = int(settings.keep_documents_days * DAY_MS)
        self._most_bytes = settings.max_upload_bytes
        self._uploads_ms = int(settings.keep_uploads_days * DAY_MS)
        # Users get URLs until an upload has that age. A file may arrive until the last URL expires,
        # and stays for that time again. Until then, the row marks the file as an upload.
        self._noted_ms = 2 * self._uploads_ms + settings.url_lifetime_seconds * 1000 + DAY_MS

    def removable(self) -> Iterator[Found]:
        """Yields what a sweep would remove now."""
        for user_id in self._uploads.users():
            yield from self._left_by_jobs(user_id, "jobs", _DOCUMENT)
            yield from self._left_by_jobs(user_id, "final_videos", _OUTPUT)
            yield from self._abandoned_uploads(user_id)
            yield from self._left_over(user_id)

    def sweep(self) -> int:
        """Removes old objects, idempotency keys and uploads' rows; returns how many objects."""
        count = 0
        for found in self.removable():
            if self._closed.is_set():
                return count
            self._bucket.delete(found.key)
            count += 1
        for left in self.unfinished():
            if self._closed.is_set():
                return count
            self._bucket.drop_parts(left.key, left.multipart_id)
            count += 1
        self._store.forget_keys(self._clock() - KEYS_DAYS * DAY_MS)
        self._uploads.forget(self._clock() - self._noted_ms)
        return count

    def unfinished(self) -> Iterator[Unfinished]:
        """Yields the uploads whose parts a sweep would remove."""
        before = self._clock() - self._uploads_ms
        for user_id in self._uploads.users():
            for folder in ("uploads", TEMPORARY):
                for left in self._bucket.unfinished(object_key(user_id, f"{folder}/")):
                    if left.begun_at < before:
                        yield left

    def close(self) -> None:
        """Lets `run` return, and cuts a sweep short."""
        self._closed.set()

    async def run(self) -> None:
        """Sweeps once a day until closed. After an error, the next day's sweep goes on."""
        pause = FIRST_SECONDS
        while True:
            try:
                await asyncio.wait_for(self._closed.wait(), pause)
                return
            except TimeoutError:
                pause = DAY_MS / 1000
            try:
                log.info("swept", removed=await run_in_threadpool(self.sweep))
            except Exception:
                log.exception("sweep_failed")

    def _left_by_jobs(self, user_id: str, folder: str, pattern: re.Pattern[str]) -> Iterator[Found]:
        job: Job | None = None
        for found in self._old(user_id, folder, self._documents_ms):
            key = found.key.removeprefix(object_key(user_id, ""))
            named = pattern.fullmatch(key)
            if named is None:
                continue
            if job is None or job.id != named[1]:
                job = self._store.get(named[1], user_id)
            if job is not None and self._is_long_over(job) and key != job.output_key:
                yield found

    def _abandoned_uploads(self, user_id: str) -> Iterator[Found]:
        known = self._uploads.sizes(user_id)
        old = list(self._old(user_id, "uploads", self._uploads_ms))
        # Read last, so that a job that was submitted meanwhile counts.
        in_use = self._uploads.keys_in_use(user_id)
        for found in old:
            key = found.key.removeprefix(object_key(user_id, ""))
            is_refused = found.bytes > self._most_bytes and found.bytes != known.get(key)
            if key in known and (key not in in_use or is_refused):
                yield found

    def _left_over(self, user_id: str) -> Iterator[Found]:
        since = self._clock() - self._documents_ms
        for found in self._old(user_id, TEMPORARY, self._documents_ms):
            if not self._uploads.is_needed(
                user_id, found.key.removeprefix(object_key(user_id, "")), since
            ):
                yield found

    def _old(self, user_id: str, folder: str, age_ms: int) -> Iterator[Found]:
        before = self._clock() - age_ms
        listed = self._bucket.listed(object_key(user_id, f"{folder}/"))
        return (found for found in listed if found.modified_at < before)

    def _is_long_over(self, job: Job) -> bool:
        return (
            job.completed_at is not None and job.completed_at < self._clock() - self._documents_ms
        )
