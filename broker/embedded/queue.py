"""The queue behind the embedded endpoint: RunPod's job states and lifetimes, without HTTP and without a clock.

Every method is told what time it is, so a day passes in a test as fast as a line. A job is held by one worker at a
time under a lease, which that worker's pings (naming the job) and progress renew. A lease that runs out sends the job
back to the front of the queue once, as RunPod does; the second time it fails. Jobs are written through to SQLite: a
kill -9 of the endpoint loses none (a power cut may: this queue stands in for a cloud, on a developer's machine).
"""

import json
import sqlite3
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
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
#: From each state, where a job may go. Only `/retry` brings an ended job back.
LEGAL_TRANSITIONS: dict[State, tuple[State, ...]] = {
    State.IN_QUEUE: (State.IN_PROGRESS, State.CANCELLED),
    State.IN_PROGRESS: (State.IN_QUEUE, *ENDED),
    State.COMPLETED: (),
    State.FAILED: (State.IN_QUEUE,),
    State.CANCELLED: (),
    State.TIMED_OUT: (State.IN_QUEUE,),
}
LOST = "job timed out after 1 retries"


@dataclass(frozen=True)
class Limits:
    """Lifetimes in seconds; the defaults are RunPod's, but for the lease, which is ours."""

    lease: float = 10.0
    retention: float = 1800.0
    sync_retention: float = 60.0


@dataclass
class QueuedJob:
    """One job. Times are seconds since the epoch; `output` is progress while it runs."""

    id: str
    input: dict[str, Any]
    execution_timeout: float
    ttl: float
    created_at: float
    webhook: str | None = None
    sync: bool = False
    state: State = State.IN_QUEUE
    queued_at: float = 0.0
    taken_at: float | None = None
    ended_at: float | None = None
    worker_id: str | None = None
    lease_until: float = 0.0
    retries: int = 0
    output: Any = None
    error: Any = None
    stream: list[Any] = field(default_factory=list)

    def status(self) -> dict[str, Any]:
        """Returns the body of `/status`: fields without a value are absent, durations are milliseconds."""
        body: dict[str, Any] = {"id": self.id, "status": self.state}
        if self.taken_at is not None:
            body["delayTime"] = round((self.taken_at - self.queued_at) * 1000)
            if self.ended_at is not None:
                body["executionTime"] = round((self.ended_at - self.taken_at) * 1000)
        optional = {"output": self.output, "error": self.error, "workerId": self.worker_id}
        optional["retries"] = self.retries or None
        return body | {name: value for name, value in optional.items() if value is not None}


@dataclass
class KnownWorker:
    """A worker that has called lately."""

    seen_at: float
    stop_jobs: set[str] = field(default_factory=set)
    #: False once it reported that its own checks failed.
    is_healthy: bool = True


class JobQueue:
    """All jobs of one endpoint, in memory and in a SQLite file. Not for several threads at once.

    Writes are done in place, on the event loop: without a sync to disk, and without making the input's JSON again, one
    takes some 0.03 ms. The exception is a huge input, whose row SQLite copies: 2 ms for each MB.
    """

    def __init__(self, database: Path, limits: Limits, now: float) -> None:
        self._limits = limits
        database.touch(mode=0o600)  # jobs carry the tokens of their webhooks
        self._file = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=OFF")
        self._file.execute(
            "CREATE TABLE IF NOT EXISTS queue (id TEXT PRIMARY KEY, input TEXT NOT NULL, job TEXT NOT NULL) STRICT"
        )
        self.workers: dict[str, KnownWorker] = {}
        self._jobs = {job.id: job for job in self._load(now)}

    def close(self) -> None:
        self._file.close()

    # ── what clients do ─────────────────────────────────────────────────────────────────────────────────────────

    def add(self, job: QueuedJob) -> None:
        """Queues a job."""
        job.queued_at = job.created_at
        self._file.execute(
            "INSERT INTO queue VALUES (?, ?, ?)",
            (job.id, json.dumps(job.input), _without_input(job)),
        )
        self._jobs[job.id] = job

    def get(self, job_id: str) -> QueuedJob | None:
        return self._jobs.get(job_id)

    def set_ttl(self, job: QueuedJob, ttl: float) -> None:
        """Changes how long after its submit an open job is deleted."""
        job.ttl = ttl
        self._save(job)

    def cancel(self, job: QueuedJob, now: float) -> None:
        """Cancels a job that has not ended; its worker is told to stop."""
        if job.state not in ENDED:
            self._end(job, State.CANCELLED, now)

    def retry(self, job: QueuedJob, now: float) -> bool:
        """Queues a failed job again under its id, without its old output; False in any other state."""
        if State.IN_QUEUE not in LEGAL_TRANSITIONS[job.state] or job.state not in ENDED:
            return False
        job.error, job.retries = None, 0
        job.created_at = now
        self._requeue(job, now)
        return True

    def purge(self) -> int:
        """Removes all jobs that wait; returns how many."""
        waiting = [job for job in self._jobs.values() if job.state is State.IN_QUEUE]
        for job in waiting:
            self._remove(job)
        return len(waiting)

    def drain_stream(self, job: QueuedJob) -> list[Any]:
        """Returns the chunks that came in since the last call."""
        chunks, job.stream = job.stream, []
        self._save(job)
        return chunks

    # ── what workers do ─────────────────────────────────────────────────────────────────────────────────────────

    def take(self, worker_id: str, limit: int, now: float) -> list[QueuedJob]:
        """Hands up to `limit` waiting jobs to a worker, oldest first."""
        self.see(worker_id, now)
        waiting = sorted(
            (job for job in self._jobs.values() if job.state is State.IN_QUEUE),
            key=lambda job: job.created_at,
        )
        for job in waiting[:limit]:
            self._move(job, State.IN_PROGRESS)
            job.worker_id, job.taken_at, job.lease_until = worker_id, now, now + self._limits.lease
            # A stop that was meant for an earlier run under this id must not hit this one.
            self.workers[worker_id].stop_jobs.discard(job.id)
            self._save(job)
        return waiting[:limit]

    def give_back(self, job: QueuedJob) -> None:
        """Undoes a take whose answer did not reach the worker; it was no try."""
        if job.state is State.IN_PROGRESS:
            self._requeue(job, job.queued_at)

    def see(self, worker_id: str, now: float) -> None:
        """Notes that a worker is alive."""
        self.workers.setdefault(worker_id, KnownWorker(now)).seen_at = now

    def see_unhealthy(self, worker_id: str, now: float) -> None:
        """Notes that a worker's own checks failed: the SDK says so once, before it ends."""
        self.see(worker_id, now)
        self.workers[worker_id].is_healthy = False

    def ping(self, worker_id: str, job_ids: list[str], now: float) -> None:
        """Renews the leases that this worker holds and names; what it names but should not run, it is told to stop.

        A stop must be repeated: the SDK drops one that arrives between its taking a job and its starting it.
        """
        self.see(worker_id, now)
        for job_id in job_ids:
            job = self._jobs.get(job_id)
            if job is not None and self._holds(worker_id, job):
                job.lease_until = now + self._limits.lease
            elif (
                job is None
                or job.worker_id != worker_id
                or job.state in (State.CANCELLED, State.TIMED_OUT)
            ):
                self.workers[worker_id].stop_jobs.add(job_id)

    def progress(self, worker_id: str, job: QueuedJob, output: Any, now: float) -> None:
        """Shows progress as `output`; what comes after the end, or from a worker that lost the job, is ignored."""
        self.see(worker_id, now)
        if self._holds(worker_id, job):
            job.output = output
            job.lease_until = now + self._limits.lease
            self._save(job)

    def done(self, worker_id: str, job: QueuedJob, output: Any, error: Any, now: float) -> bool:
        """Ends a job with what its worker returned; False if it has ended already.

        A worker whose lease ran out may still be the first to finish: its result counts, and the other one is stopped.
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

    def append_stream(self, worker_id: str, job: QueuedJob, chunk: Any, now: float) -> None:
        """Keeps a chunk for `/stream`; like progress, only from the worker that holds the job."""
        self.see(worker_id, now)
        if self._holds(worker_id, job):
            job.stream.append(chunk)
            job.lease_until = now + self._limits.lease
            self._save(job)

    def stops_for(self, worker_id: str) -> list[str]:
        """Returns, once each, the jobs that the worker is to stop."""
        worker = self.workers.get(worker_id)
        if worker is None:
            return []
        stops, worker.stop_jobs = sorted(worker.stop_jobs), set()
        return stops

    # ── what time does ──────────────────────────────────────────────────────────────────────────────────────────

    def expire(self, now: float) -> list[QueuedJob]:
        """Applies every lifetime; returns the jobs that it ended."""
        ended = [job for job in list(self._jobs.values()) if self._expire_job(job, now)]
        for worker_id, worker in list(self.workers.items()):
            if worker.seen_at + 3 * self._limits.lease < now:
                del self.workers[worker_id]
        return ended

    def _expire_job(self, job: QueuedJob, now: float) -> bool:
        """Returns whether the job has ended just now."""
        if job.state in ENDED:
            kept = self._limits.sync_retention if job.sync else self._limits.retention
            if (job.ended_at or 0) + kept < now:
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
        if job.retries:
            job.error = LOST
            self._end(job, State.FAILED, now)
            return True
        job.retries = 1
        self._stop(job)
        # To the front, since the oldest is taken first; its delay counts anew, as on the platform.
        self._requeue(job, now)
        return False

    # ── small steps ─────────────────────────────────────────────────────────────────────────────────────────────

    def counts(self) -> dict[State, int]:
        """Returns how many jobs are in each state."""
        states = [job.state for job in self._jobs.values()]
        return {state: states.count(state) for state in State}

    def retried(self) -> int:
        return sum(job.retries for job in self._jobs.values())

    def busy_workers(self) -> set[str]:
        running = (job for job in self._jobs.values() if job.state is State.IN_PROGRESS)
        return {job.worker_id for job in running if job.worker_id is not None}

    def _holds(self, worker_id: str, job: QueuedJob) -> bool:
        return job.state is State.IN_PROGRESS and job.worker_id == worker_id

    def _end(self, job: QueuedJob, state: State, now: float) -> None:
        self._stop(job)
        job.output = None  # what is there is progress, and progress is not a result
        self._move(job, state)
        job.ended_at = now
        self._save(job)

    def _requeue(self, job: QueuedJob, queued_at: float) -> None:
        self._move(job, State.IN_QUEUE)
        job.queued_at = queued_at
        job.taken_at = job.ended_at = job.worker_id = job.output = None
        job.stream = []
        self._save(job)

    def _stop(self, job: QueuedJob) -> None:
        if job.state is State.IN_PROGRESS and job.worker_id in self.workers:
            self.workers[job.worker_id].stop_jobs.add(job.id)

    def _move(self, job: QueuedJob, state: State) -> None:
        if state not in LEGAL_TRANSITIONS[job.state]:
            raise ValueError(f"job {job.id} cannot go from {job.state} to {state}")
        job.state = state

    def _save(self, job: QueuedJob) -> None:
        """Writes a job's row; one that was removed meanwhile stays removed."""
        self._file.execute("UPDATE queue SET job = ? WHERE id = ?", (_without_input(job), job.id))

    def _remove(self, job: QueuedJob) -> None:
        del self._jobs[job.id]
        self._file.execute("DELETE FROM queue WHERE id = ?", (job.id,))

    def _load(self, now: float) -> Iterator[QueuedJob]:
        for input_, text in self._file.execute("SELECT input, job FROM queue ORDER BY rowid"):
            job = QueuedJob(input=json.loads(input_), **json.loads(text))
            job.state = State(job.state)
            # Its worker could not ping while we were away.
            job.lease_until = now + self._limits.lease
            yield job


def _without_input(job: QueuedJob) -> str:
    return json.dumps({name: value for name, value in vars(job).items() if name != "input"})


def new_id() -> str:
    """Returns an id in the shape of RunPod's."""
    return f"{uuid.uuid4()}-u1"
