"""The documents of one attempt in the bucket: started.json, result.json and stop.json.

The worker writes started.json first and result.json last, and result.json only once: it is the
commit. The broker writes stop.json when the attempt is cancelled or superseded. A job without an
attempt token has no documents: reads find none, and writes do nothing.
"""

from gpu_worker.bucket import Bucket
from schemas.keys import object_key
from schemas.worker import Result, Started, WorkerInput, attempt_folder


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
        """Writes started.json."""
        if self.exist:
            self._bucket.write(self._key("started.json"), started.model_dump_json().encode())

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
