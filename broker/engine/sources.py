"""Checks the videos of a job: each must exist, and be no larger than an upload may be."""

from collections.abc import Iterable
from dataclasses import dataclass

import structlog
from starlette.concurrency import run_in_threadpool

from broker.bucket import Bucket
from broker.jobs.decide import End, failed
from broker.jobs.model import Attempt, EvidenceSource, Job
from broker.store.uploads import UploadStore
from schemas.jobs import ErrorCode
from schemas.keys import object_key

log = structlog.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class Sources:
    """Measures a job's sources before it is sent.

    Args:
        most_bytes: how many bytes an upload may have.
    """

    uploads: UploadStore
    bucket: Bucket
    most_bytes: int

    async def bytes(self, job: Job, attempt: Attempt, keys: Iterable[str]) -> int | End:
        """Returns the size of all sources together, or the job's end where one cannot be used.

        Raises:
            StorageError: the bucket failed.
        """
        total = 0
        for key in keys:
            size = await run_in_threadpool(self.bucket.size, object_key(job.user_id, key))
            if size is None:
                sentence = f"{key}: The file is not in the bucket."
                return failed(attempt, ErrorCode.SOURCE_NOT_FOUND, sentence, EvidenceSource.SOURCE)
            if size > self.most_bytes and await self._refuse(job, key, size):
                sentence = (
                    f"{key}: The file has {size} bytes; an upload may have {self.most_bytes}."
                )
                return failed(attempt, ErrorCode.FILE_TOO_LARGE, sentence, EvidenceSource.SOURCE)
            total += size
        return total

    async def _refuse(self, job: Job, key: str, size: int) -> bool:
        """Removes an upload that is too large; False for a file that is no upload."""
        if not await run_in_threadpool(self.uploads.refuse, job.user_id, key, size):
            return False
        await run_in_threadpool(self.bucket.delete, object_key(job.user_id, key))
        log.warning("upload_refused", bytes=size)
        return True
