"""The metrics at `GET /metrics`: this process's counts, and the database's and provider's state.

The broker's components call callbacks that app.py passes them (`on_event`, `on_call` …). Labels are
closed lists of words, never an id, a user or a path, so the number of series is fixed. Every series
exists from the start, so that the first failure of a kind counts. Each app has a registry of its
own: tests create many in a process.
"""

import math
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import product
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from broker.jobs.model import Job
from broker.store.reports import Backlog
from schemas.fleet import Place, Workers
from schemas.jobs import ErrorCode, JobStatus, JobType, Phase

Made = TypeVar("Made", Counter, Gauge, Histogram)
#: The labels' values of each series that exists from the start.
Known = Iterable[tuple[str, ...]]
#: `text/plain` with its version, as generate_latest writes it.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_JOB_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200)
_CALL_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LATE_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_CALLS = ("submit", "status", "cancel", "health")
_OUTCOMES = ("ok", "held", "paced", "unreachable", "uncertain", "refused", "given_up")
_FAILURES = ("unreachable", "crashed")
_METHODS = ("HEAD", "GET", "PUT", "POST", "LIST", "DELETE")
_DELIVERIES = ("delivered", "failed", "given_up")
_STREAMS = ("sse", "websocket")
_CLASSES = ("2xx", "3xx", "4xx", "5xx")
_OPEN = [phase for phase in Phase if phase is not Phase.DONE]
_ENDS = [
    (JobStatus.COMPLETE, ""),
    (JobStatus.CANCELLED, ""),
    *((JobStatus.ERROR, code.value) for code in ErrorCode),
]


class Metrics:
    """Counts, from any thread."""

    def __init__(self, providers: Sequence[str]) -> None:
        # Otherwise each counter has a second series with its creation time.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build = self._gauge("build_info", "Always 1; the labels say what runs.", "version python")
        build.labels(version("reelbroker"), platform.python_version()).set(1)
        self._jobs()
        self._traffic(providers)
        self._now()

    def _jobs(self) -> None:
        ends = [(kind, status, code) for kind in JobType for status, code in _ENDS]
        jobs, time, cost = (
            "Jobs that this broker ended.",
            "GPU time of ended jobs, all attempts, as known at their end.",
            "What that GPU time cost.",
        )
        self._ended = self._counter("jobs_ended", jobs, "type status error_code", ends)
        self._gpu_seconds = self._counter("gpu_seconds", time, "type", _each(JobType))
        self._cost = self._counter("cost_usd", cost, "type", _each(JobType))
        about = "of jobs that are complete"
        self._queue = self._job_seconds("queue", f"From the submit to the worker's start, {about}.")
        self._run = self._job_seconds("run", f"GPU time, all attempts, {about}.")
        self._total = self._job_seconds("total", f"From the submit to the end, {about}.")

    def _traffic(self, providers: Sequence[str]) -> None:
        about = "Calls to GPU providers; held, paced: not sent."
        known: Known = product(providers, _CALLS, _OUTCOMES)
        self._calls = self._counter("provider_calls", about, "provider action outcome", known)
        about, known = (
            "How long they took, the wait for their turn included.",
            product(providers, _CALLS),
        )
        self._call_seconds = self._histogram(
            "provider_call_seconds", about, _CALL_SECONDS, "provider action", known
        )
        about = "1: calls fail, so hardly any is sent."
        self.breaker_open = self._gauge("provider_breaker_open", about)
        about = "How much later than due an open job was looked at."
        self._late = self._histogram("look_late_seconds", about, _LATE_SECONDS)
        about, known = "Looks that came to nothing. crashed: a bug of ours.", _each(_FAILURES)
        self._failures = self._counter("looks_failed", about, "why", known)
        about, known = "Calls to the bucket that failed.", _each(_METHODS)
        self._storage_errors = self._counter("storage_errors", about, "action", known)
        about, known = "Calls to clients' servers.", _each(_DELIVERIES)
        self._webhook_calls = self._counter("webhook_calls", about, "outcome", known)
        about, known = "Clients that watch a job now.", _each(_STREAMS)
        self._streams = self._gauge("streams_open", about, "kind", known)
        about, known = "Answers to requests, by class.", _each(_CLASSES)
        self._responses = self._counter("http_responses", about, "status", known)

    def _now(self) -> None:
        gauge = self._gauge
        self._database_up = gauge("database_up", "Whether the database could be read just now.")
        self._open = gauge("open_jobs", "Open jobs in the database.", "phase")
        about = "How long the job that has waited longest for a worker has."
        self._oldest = gauge("oldest_wait_seconds", about)
        about = "How long the open job most overdue for a look is."
        self._overdue = gauge("reconcile_lag_seconds", about)
        self._stalled = gauge("stalled_jobs", "Open jobs that look stuck.")
        about = "Given-up runs that may still be paid for at the provider."
        self._orphans = gauge("orphaned_runs", about)
        self._draining = gauge("draining", "1: no new jobs are taken or sent.")
        about = "Whether every GPU provider has reported its workers lately."
        self._provider_up = gauge("provider_up", about)
        self._queued = gauge("provider_queued_jobs", "Jobs in the providers' queues.")
        self._workers = gauge("provider_workers", "The providers' workers.", "state")

    # ── called by the broker's components ───────────────────────────────────────────────────────

    def job_ended(self, job: Job) -> None:
        """A job has ended."""
        self._ended.labels(job.type.value, job.status.value, job.error_code or "").inc()
        self._gpu_seconds.labels(job.type.value).inc(job.gpu_seconds or 0.0)
        self._cost.labels(job.type.value).inc(job.cost_usd or 0.0)
        if job.status is not JobStatus.COMPLETE or job.completed_at is None:
            return
        ran = job.gpu_seconds or 0.0
        total = (job.completed_at - job.created_at) / 1000
        # A short job may end before the broker observes that it runs.
        queue = total - ran if job.started_at is None else (job.started_at - job.created_at) / 1000
        for histogram, seconds in ((self._queue, queue), (self._run, ran), (self._total, total)):
            histogram.labels(job.type.value).observe(max(0.0, seconds))

    def provider_called(self, provider: str, action: str, outcome: str, seconds: float) -> None:
        """A call to the GPU provider has ended."""
        self._calls.labels(provider, action, outcome).inc()
        if outcome not in ("held", "paced"):
            self._call_seconds.labels(provider, action).observe(seconds)

    def reconciled(self, late_seconds: float) -> None:
        """The broker reconciles an open job, so many seconds after it was due."""
        self._late.observe(max(0.0, late_seconds))

    def reconcile_failed(self, why: str) -> None:
        """A reconcile has failed."""
        self._failures.labels(why).inc()

    def storage_failed(self, action: str) -> None:
        """A call to the bucket has failed."""
        self._storage_errors.labels(action).inc()

    def webhook_called(self, outcome: str) -> None:
        """A client's server was called."""
        self._webhook_calls.labels(outcome).inc()

    def answered(self, status: int) -> None:
        """A request was answered."""
        self._responses.labels(f"{status // 100}xx").inc()

    @contextmanager
    def stream(self, kind: str) -> Iterator[None]:
        """Counts a client that watches a job, while entered."""
        gauge = self._streams.labels(kind)
        with gauge.track_inprogress():
            yield

    # ── read by Prometheus ──────────────────────────────────────────────────────────────────────

    def exposition(self, draining: bool, backlog: Backlog | None, places: Sequence[Place]) -> bytes:
        """Returns all metrics as text; what is unknown at the moment (None) is NaN."""
        self._draining.set(draining)
        self._database_up.set(backlog is not None)
        self._provider_up.set(all(place.error is None for place in places))
        for phase in _OPEN:
            self._open.labels(phase.value).set(
                math.nan if backlog is None else backlog.open_jobs.get(phase, 0)
            )
        self._oldest.set(math.nan if backlog is None else backlog.oldest_wait_seconds or 0)
        self._overdue.set(math.nan if backlog is None else backlog.overdue_seconds)
        self._stalled.set(math.nan if backlog is None else backlog.stalled)
        self._orphans.set(math.nan if backlog is None else backlog.orphans)
        self._queued.set(_sum(place.queued for place in places))
        for state in Workers.model_fields:
            counts = (getattr(place.workers, state) for place in places if place.workers)
            self._workers.labels(state).set(_sum(counts))
        return generate_latest(self.registry)

    def _job_seconds(self, name: str, about: str) -> Histogram:
        known = _each(JobType)
        return self._histogram(f"job_{name}_seconds", about, _JOB_SECONDS, "type", known)

    def _gauge(self, name: str, about: str, labels: str = "", known: Known = ()) -> Gauge:
        made = Gauge(f"reelbroker_{name}", about, labels.split(), registry=self.registry)
        return _with(made, known)

    def _counter(self, name: str, about: str, labels: str, known: Known) -> Counter:
        made = Counter(f"reelbroker_{name}", about, labels.split(), registry=self.registry)
        return _with(made, known)

    def _histogram(
        self, name: str, about: str, buckets: Sequence[float], labels: str = "", known: Known = ()
    ) -> Histogram:
        full, names = f"reelbroker_{name}", labels.split()
        return _with(Histogram(full, about, names, buckets=buckets, registry=self.registry), known)


def _with(made: Made, known: Known) -> Made:
    """Returns a metric with a series for each of these labels' values."""
    for values in known:
        made.labels(*values)
    return made


def _sum(counts: Iterable[int | None]) -> float:
    """Returns the sum of the counts that are known; NaN where none is."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else math.nan


def _each(words: Iterable[str]) -> list[tuple[str, ...]]:
    return [(str(word),) for word in words]
