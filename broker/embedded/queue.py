"""The queue behind the embedded providers: job states and lifetimes.

The queue does no network calls and reads no clock: each method takes the current time. A worker
holds a job under a lease. Pings that name the job, and progress, renew the lease. When the lease
runs out, the queue returns the job to its front: once for RunPod, then the job fails; without end
for Modal. SQLite keeps every job: a kill -9 of the server loses none, a power cut may.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any


class State(StrEnum):
    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


ENDED = (State.COMPLETED, State.FAILED, State.CANCELLED, State.TIMED_OUT)
#: The states that may follow each state. An ended job never moves again.
LEGAL_TRANSITIONS: dict[State, tuple[State, ...]] = {
    State.IN_QUEUE: (State.IN_PROGRESS, State.CANCELLED),
    State.IN_PROGRESS: (State.IN_QUEUE, *ENDED),
} | dict.fromkeys(ENDED, ())
#: RunPod's error text for a job that loses its worker twice.
LOST = "job timed out after 1 retries"


@dataclass(frozen=True)
class Limits:
    """Lifetimes in seconds, RunPod's by default; the lease is this queue's own.

    Attributes:
        retries: how often a job goes to another worker after its own died; None: without end.
    """

    lease: float = 10.0
    retention: float = 1800.0
    retries: int | None = 1


@dataclass
class QueuedJob:
    """One job. Times are seconds since the epoch. `output` holds progress while the job runs."""

    id: str
    input: dict[str, Any]
    execution_timeout: float
    ttl: float
    created_at: float
    webhook: str | None = None
    state: State = State.IN_QUEUE
    taken_at: float | None = None
    ended_at: float | None = None
    worker_id: str | None = None
    lease_until: float = 0.0
    retries: int = 0
    output: Any = None
    error: Any = None

    def status(self) -> dict[str, Any]:
        """Returns the body of `/status`: durations in milliseconds, no field without a value."""
        body: dict[str, Any] = {"id": self.id, "status": self.state}
        if self.taken_at is not None and self.ended_at is not None:
            body["executionTime"] = round((self.ended_at - self.taken_at) * 1000)
        optional = {"output": self.output, "error": self.error, "workerId": self.worker_id}
        optional["retries"] = self.retries or None
        return body | {name: value for name, value in optional.items() if value is not None}


@dataclass
class KnownWorker:
    """A worker that has called lately."""

    seen_at: float
    stop_jobs: set[str] = field(default_factory=set)
    #: False once the worker reports that its own checks fail.
    is_healthy: bool = True


class JobQueue:
    """All jobs of one endpoint, in memory and in a SQLite file. One thread at a time may use it.

    The queue writes on the event loop: without a sync to disk, a write takes some 0.03 ms.
    """

    def __init__(self, database: Path, limits: Limits, now: float) -> None:
        self._limits = limits
        # Jobs carry the tokens of their webhooks.
        database.touch(mode=0o600)
        self._file = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=OFF")
        self._file.execute(
            "CREATE TABLE IF NOT EXISTS queue"
            " (id TEXT PRIMARY KEY, input TEXT NOT NULL, job TEXT NOT NULL) STRICT"
        )
        self.workers: dict[str, KnownWorker] = {}
        self._jobs = {job.id: job for job in self._load(now)}

    def close(self) -> None:
        self._file.close()

    # ── what clients do ─────────────────────────────────────────────────────────────────────────

    def add(self, job: QueuedJob) -> None:
        """Queues a job."""
        row = (job.id, json.dumps(job.input), _without_input(job))
        self._file.execute("INSERT INTO queue VALUES (?, ?, ?)", row)
        self._jobs[job.id] = job

    def get(self, job_id: str) -> QueuedJob | None:
        return self._jobs.get(job_id)

    def cancel(self, job: QueuedJob, now: float) -> bool:
        """Cancels a job and stops its worker. Returns False when the job has ended already."""
        if job.state in ENDED:
            return False
        self._end(job, State.CANCELLED, now)
        return True

    # ── what workers do ─────────────────────────────────────────────────────────────────────────

    def take(self, worker_id: str, now: float) -> QueuedJob | None:
        """Gives the oldest waiting job to a worker."""
        self.mark_seen(worker_id, now)
        waiting = (job for job in self._jobs.values() if job.state is State.IN_QUEUE)
        job = min(waiting, key=lambda job: job.created_at, default=None)
        if job is not None:
            self._move(job, State.IN_PROGRESS)
            job.worker_id, job.taken_at, job.lease_until = worker_id, now, now + self._limits.lease
            # A stop that was meant for an earlier run of this job must not hit this run.
            self.workers[worker_id].stop_jobs.discard(job.id)
            self._save(job)
        return job

    def give_back(self, job: QueuedJob) -> None:
        """Undoes a take whose answer did not reach the worker. Such a take counts as no try."""
        if job.state is State.IN_PROGRESS:
            self._requeue(job)

    def held(self, worker_id: str) -> list[QueuedJob]:
        """Returns the jobs that a worker holds."""
        return [job for job in self._jobs.values() if self._holds(worker_id, job)]

    def replace(self, worker_id: str, now: float) -> None:
        """Records a worker `SLOT.N`; the jobs of an earlier worker of its slot are lost."""
        slot = worker_id.rpartition(".")[0]
        for earlier in [known for known in self.workers if known.rpartition(".")[0] == slot]:
            del self.workers[earlier]
        for job in list(self._jobs.values()):
            is_earlier = (job.worker_id or "").rpartition(".")[0] == slot
            if job.state is State.IN_PROGRESS and is_earlier:
                self._lose(job, now)
        self.mark_seen(worker_id, now)

    def mark_seen(self, worker_id: str, now: float) -> None:
        """Records that a worker is alive."""
        self.workers.setdefault(worker_id, KnownWorker(now)).seen_at = now

    def ping(
        self, worker_id: str, job_ids: list[str], now: float, *, is_healthy: bool = True
    ) -> None:
        """Renews the leases of the named jobs, and stops named jobs that the worker must not run.

        The queue repeats a stop at each ping: the SDK drops a stop that arrives after the worker
        takes a job and before the worker starts the job. A worker whose own checks fail reports
        this once, before it ends.
        """
        self.mark_seen(worker_id, now)
        worker = self.workers[worker_id]
        worker.is_healthy = worker.is_healthy and is_healthy
        for job_id in job_ids:
            job = self._jobs.get(job_id)
            if job is not None and self._holds(worker_id, job):
                job.lease_until = now + self._limits.lease
            elif (
                job is None
                or job.worker_id != worker_id
                or job.state in (State.CANCELLED, State.TIMED_OUT)
            ):
                worker.stop_jobs.add(job_id)

    def progress(self, worker_id: str, job: QueuedJob, output: Any, now: float) -> None:
        """Shows progress as `output`. Ignores progress of a worker that does not hold the job."""
        self.mark_seen(worker_id, now)
        if self._holds(worker_id, job):
            job.output = output
            job.lease_until = now + self._limits.lease
            self._save(job)

    def finish(self, worker_id: str, job: QueuedJob, output: Any, error: Any, now: float) -> bool:
        """Ends a job with its worker's result. Returns False when the job has ended already.

        A worker whose lease ran out may still finish first. Its result counts, and the queue stops
        the other worker.
        """
        if job.state in ENDED:
            return False
        if job.state is State.IN_QUEUE:
            self._move(job, State.IN_PROGRESS)
            job.taken_at = job.taken_at or now
        elif job.worker_id != worker_id:
            self._stop(job)
        job.worker_id = worker_id
        self._move(job, State.FAILED if error else State.COMPLETED)
        job.output, job.error, job.ended_at = output, error, now
        self._save(job)
        return True

    def pop_stops(self, worker_id: str) -> list[str]:
        """Returns the jobs that the worker must stop, each once."""
        worker = self.workers.get(worker_id)
        if worker is None:
            return []
        stops, worker.stop_jobs = sorted(worker.stop_jobs), set()
        return stops

    # ── what time does ──────────────────────────────────────────────────────────────────────────

    def expire(self, now: float) -> list[QueuedJob]:
        """Applies every lifetime; returns the jobs that this call ends."""
        ended = [job for job in list(self._jobs.values()) if self._expire_job(job, now)]
        for worker_id, worker in list(self.workers.items()):
            if worker.seen_at + 3 * self._limits.lease < now:
                del self.workers[worker_id]
        return ended

    def _expire_job(self, job: QueuedJob, now: float) -> bool:
        """Applies one job's lifetimes; returns whether this ends the job."""
        if job.state in ENDED:
            if (job.ended_at or 0) + self._limits.retention < now:
                self._remove(job)
        elif job.created_at + job.ttl < now:
            self._stop(job)
            self._remove(job)
        elif job.state is State.IN_PROGRESS:
            if (job.taken_at or 0) + job.execution_timeout < now:
                self._end(job, State.TIMED_OUT, now)
                return True
            if job.lease_until < now:
                return self._lose(job, now)
        return False

    def _lose(self, job: QueuedJob, now: float) -> bool:
        """Requeues a job whose worker died; fails a job that has no retry left."""
        if self._limits.retries is not None and job.retries >= self._limits.retries:
            job.error = LOST
            self._end(job, State.FAILED, now)
            return True
        job.retries += 1
        self._stop(job)
        # Workers take the oldest job first, so this one is next.
        self._requeue(job)
        return False

    # ── small steps ─────────────────────────────────────────────────────────────────────────────

    def count_jobs(self) -> Counter[State]:
        """Returns how many jobs are in each state."""
        return Counter(job.state for job in self._jobs.values())

    def count_workers(self) -> Counter[str]:
        """Returns how many workers are `running`, `idle` and `unhealthy`."""
        running = {job.worker_id for job in self._jobs.values() if job.state is State.IN_PROGRESS}
        return Counter(
            "unhealthy" if not worker.is_healthy else "running" if worker_id in running else "idle"
            for worker_id, worker in self.workers.items()
        )

    def _holds(self, worker_id: str, job: QueuedJob) -> bool:
        return job.state is State.IN_PROGRESS and job.worker_id == worker_id

    def _end(self, job: QueuedJob, state: State, now: float) -> None:
        self._stop(job)
        # `output` holds progress here, and progress is no result.
        job.output = None
        self._move(job, state)
        job.ended_at = now
        self._save(job)

    def _requeue(self, job: QueuedJob) -> None:
        self._move(job, State.IN_QUEUE)
        job.taken_at = job.ended_at = job.worker_id = job.output = None
        self._save(job)

    def _stop(self, job: QueuedJob) -> None:
        if job.state is State.IN_PROGRESS and job.worker_id in self.workers:
            self.workers[job.worker_id].stop_jobs.add(job.id)

    def _move(self, job: QueuedJob, state: State) -> None:
        if state not in LEGAL_TRANSITIONS[job.state]:
            raise ValueError(f"job {job.id} cannot go from {job.state} to {state}")
        job.state = state

    def _save(self, job: QueuedJob) -> None:
        """Updates a job's row. The row of a removed job stays removed."""
        self._file.execute("UPDATE queue SET job = ? WHERE id = ?", (_without_input(job), job.id))

    def _remove(self, job: QueuedJob) -> None:
        del self._jobs[job.id]
        self._file.execute("DELETE FROM queue WHERE id = ?", (job.id,))

    def _load(self, now: float) -> Iterator[QueuedJob]:
        # An older release wrote fields that this one does not have.
        names = {known.name for known in fields(QueuedJob)}
        for input_, text in self._file.execute("SELECT input, job FROM queue ORDER BY rowid"):
            row = {name: value for name, value in json.loads(text).items() if name in names}
            job = QueuedJob(input=json.loads(input_), **row)
            job.state = State(job.state)
            # The job's worker could not ping while the endpoint was down.
            job.lease_until = now + self._limits.lease
            yield job


def _without_input(job: QueuedJob) -> str:
    return json.dumps({name: value for name, value in vars(job).items() if name != "input"})
