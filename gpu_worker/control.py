"""The documents of one attempt in the bucket: started, progress, result and stop.json.

The worker writes started.json first and result.json last, and result.json only once: it is the
commit. The broker writes stop.json when the attempt is cancelled or superseded. A job without an
attempt token has no documents: reads find none, and writes do nothing.
"""

from gpu_worker.bucket import Bucket
from gpu_worker.errors import Cancelled, TooManyDeliveries
from schemas.keys import object_key
from schemas.worker import Progress, Result, Started, WorkerInput, attempt_folder


class ControlDocuments:
    """The documents of the attempt that a job belongs to.

    Raises:
        StorageUnavailable: from every method, when the store fails or cannot be reached.
    """

    def __init__(self, bucket: Bucket, job: WorkerInput) -> None:
        self._bucket = bucket
        self._job = job

    @property
    def exist(self) -> bool:
        """False for a job from a console, which has no attempt token."""
        return self._job.attempt_token is not None

    def start(self, started: Started) -> None:
        """Writes started.json, and counts the deliveries of the attempt in it.

        Raises:
            Cancelled: another provider job has the attempt; one submit made two of them.
            TooManyDeliveries: the workers of the earlier deliveries died.
        """
        if not self.exist:
            return
        key = self._key("started.json")
        if self._bucket.write_once(key, started.model_dump_json().encode()):
            return
        former = Started.model_validate_json(self._bucket.read(key) or b"")
        if former.provider_job_id != started.provider_job_id:
            raise Cancelled("Another run of the GPU provider has the job.")
        if former.deliveries >= (self._job.max_deliveries or former.deliveries + 1):
            raise TooManyDeliveries(
                f"The GPU worker was lost {former.deliveries} times while it did the job."
            )
        again = started.model_copy(update={"deliveries": former.deliveries + 1})
        self._bucket.write(key, again.model_dump_json().encode())

    def report(self, progress: Progress) -> None:
        """Writes progress.json."""
        if self.exist:
            self._bucket.write(self._key("progress.json"), progress.model_dump_json().encode())

    def result(self) -> Result | None:
        """Returns what an execution of this attempt has committed, or None."""
        if not self.exist:
            return None
        committed = self._bucket.read(self._key("result.json"))
        return None if committed is None else Result.model_validate_json(committed)

    def commit(self, result: Result) -> Result:
        """Writes result.json unless there is one; returns the result that stands."""
        if not self.exist:
            return result
        key = self._key("result.json")
        if self._bucket.write_once(key, result.model_dump_json().encode()):
            return result
        return Result.model_validate_json(self._bucket.read(key) or b"")

    def is_fenced(self) -> bool:
        """True when the broker has written stop.json: the attempt must publish nothing."""
        return self.exist and self._bucket.read(self._key("stop.json")) is not None

    def _key(self, name: str) -> str:
        folder = attempt_folder(self._job.job_id, self._job.attempt_token or "")
        return object_key(self._job.user_id, f"{folder}/{name}")
