"""What follows from an observation: the one place that decides where a job goes.

Nothing here reads or writes. `decide` takes a stored job, its attempts and an observation; the
engine carries the decision out. Two actions of the engine have outcomes of their own to decide on:
a submit (`decide_sent`) and a stop at the provider (`decide_stopped`).

    pending ─ BeginAttempt ─ Submit ─┬─ accepted ──────── SUBMITTED: bucket first, then provider
                                     ├─ nothing sent ──── READY: the same attempt goes again
                                     └─ outcome unknown ─ SUBMITTING: search for signs of the run

A provider's answers are hints. The proof of success is `result.json` with an output of the size
that it names. An unreachable bucket or provider changes nothing: the job is due again later. The
broker fences an attempt with `stop.json` before it gives the attempt up, so that two workers never
publish one job.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from broker.errors import (
    ProviderError,
    ProviderHeld,
    ProviderNotReady,
    ProviderPaced,
    ProviderRefused,
    ProviderUncertain,
)
from broker.jobs.model import Attempt, AttemptState, EventKind, EvidenceSource, Job, JobChange
from broker.jobs.observation import Health, Observation, RemoteJob, RemoteState, parsed
from broker.jobs.policy import TRIES, backoff_seconds, timeout_code, tries_again
from schemas.jobs import ErrorCode, JobStatus, Phase
from schemas.worker import Failure, Progress, Result, Started

#: How long a job waits in the queue before the broker asks for the queue's health.
PATIENCE_SECONDS = 30.0
#: A queue that is empty twice, so far apart, does not hold a job whose submit is in doubt.
EMPTY_SECONDS = 10.0
#: How soon a submit in doubt is due again.
DOUBT_SECONDS = 2.0
#: How soon a cancel is due again that the provider has not carried out, and one that the
#: provider's pace put off. The fence works meanwhile.
CANCEL_SECONDS, PACED_SECONDS = 2.0, 5.0
DRAIN_SECONDS = 5.0
#: How much longer than its limit a run may take to end.
OVERTIME_SECONDS = 30.0

MESSAGES = {
    Phase.QUEUED: "Waiting for a GPU worker",
    Phase.STARTING: "A GPU worker has taken the job",
    Phase.DOWNLOADING: "Fetching the video",
    Phase.PROCESSING: "Editing frames",
    Phase.UPLOADING: "Uploading the result",
    Phase.VERIFYING: "Checking the result",
}
TIMED_OUT = {
    ErrorCode.QUEUE_TIMEOUT: "No GPU worker took the job in time.",
    ErrorCode.WORKER_LOST: "The GPU worker was lost.",
    ErrorCode.EXECUTION_TIMEOUT: (
        "The job ran longer than such an export may take, and was stopped."
    ),
}
_AWAY = "The GPU provider cannot be reached; the job goes as soon as it is back"
_NOT_READY = "The job waits until an operator acts"
_OUT_OF_REACH = "The GPU provider does not answer; the job goes to another one soon"
_PACED = "The GPU provider takes no more jobs for the moment; the job goes in its turn"
_DRAINING = "The broker sends no jobs for the moment; the job waits"
_IDLE = "GPU workers are idle, but none takes the job: see their logs"
_STARTING = "A GPU worker is starting"
_THROTTLED = "The GPU provider has no GPU free at the moment"
_UNHEALTHY = "All GPU workers are unhealthy; see their logs"
_NO_WORKER = (
    "There is no GPU worker: the endpoint may be scaled to zero, or its workers cannot start"
)


@dataclass(frozen=True)
class Rules:
    """How long to wait for what, from the settings; seconds."""

    submit_grace: float
    lost_after: float
    cancel_grace: float
    stalled_after: float
    #: How long a provider may be out of reach before a job that it has not begun goes elsewhere.
    unreachable_after: float = 300.0


@dataclass(frozen=True)
class NoOp:
    """The job has ended."""


@dataclass(frozen=True)
class Reschedule:
    """The job is due again after `wait` seconds; None: as its age suggests. No event follows."""

    wait: float | None = None
    attempt: Attempt | None = None
    evidence: EvidenceSource | None = None
    #: The attempt is written even where somebody else changed the job meanwhile.
    keep_attempt: bool = False


@dataclass(frozen=True)
class Change:
    """A transition of a job that goes on. `fence`: `stop.json` is written first."""

    kind: EventKind
    change: JobChange
    attempt: Attempt | None = None
    evidence: EvidenceSource | None = None
    wait: float | None = None
    fence: bool = False
    keep_attempt: bool = False


@dataclass(frozen=True)
class BeginAttempt:
    """A new attempt is committed, and submitted."""


@dataclass(frozen=True)
class Submit:
    """An attempt that the provider does not have is submitted."""

    attempt: Attempt


@dataclass(frozen=True)
class StopAttempt:
    """The attempt is fenced, and cancelled at the provider."""

    attempt: Attempt


@dataclass(frozen=True)
class Complete:
    """The result is committed and its output exists: the only way to `complete`."""

    attempt: Attempt
    result: Result


@dataclass(frozen=True)
class End:
    """The job ends without a result.

    `fence`: `stop.json` is written first, and a result that was committed until then wins.
    `gone`: the provider has nothing left of the attempt.
    """

    kind: EventKind
    change: JobChange
    attempt: Attempt | None
    evidence: EvidenceSource
    fence: bool = False
    gone: bool = True


Decision = NoOp | Reschedule | Change | BeginAttempt | Submit | StopAttempt | Complete | End


@dataclass(frozen=True)
class _Case:
    """What a decision rests on, once there is an attempt."""

    job: Job
    attempts: Sequence[Attempt]
    attempt: Attempt  #: the newest
    seen: Observation
    now: int
    rules: Rules

    def since(self, moment: int | None) -> float:
        """Returns the seconds since a moment in ms; 0 where there is none."""
        return seconds_since(moment, self.now)


def decide(
    job: Job, attempts: Sequence[Attempt], seen: Observation, now: int, rules: Rules
) -> Decision:
    """Returns what to do with a job now.

    Args:
        attempts: of the job, the oldest first.
        now: milliseconds since the epoch.
    """
    attempt = attempts[-1] if attempts else None
    if job.status.is_terminal:
        return NoOp()
    if seen.committed is not None and seen.is_done:
        return Complete(seen.committed.attempt, seen.committed.result)
    if job.cancel_requested_at is not None:
        if attempt is None or attempt.state in (AttemptState.READY, AttemptState.SUPERSEDED):
            return cancelled(attempt, EvidenceSource.BROKER)
        return StopAttempt(attempt)
    if attempt is None or attempt.state is AttemptState.SUPERSEDED:
        return _held(job, _DRAINING, DRAIN_SECONDS) if seen.draining else BeginAttempt()
    if attempt.state is AttemptState.READY:
        return _held(job, _DRAINING, DRAIN_SECONDS) if seen.draining else Submit(attempt)
    case = _Case(job, attempts, attempt, seen, now, rules)
    if seen.committed is not None:
        sentence = "The finished file is not in the bucket."
        return _give_up(case, attempt, ErrorCode.RESULT_LOST, sentence)
    return _in_doubt(case) if attempt.state is AttemptState.SUBMITTING else _follow(case)


# ── submit ──────────────────────────────────────────────────────────────────────────────────────


def decide_sent(
    job: Job, ready: Attempt, sent: Attempt, outcome: str | ProviderError, now: int
) -> Decision:
    """Returns what follows from a submit.

    Args:
        ready: the attempt as it was before the submit.
        sent: the attempt as it was committed before the first byte left.
        outcome: the provider's id for the job, or why there is none.
    """
    match outcome:
        case str():
            return adopt(sent, outcome, EvidenceSource.ACCEPTED, now)
        case ProviderRefused():
            sentence = "The GPU provider refused the job."
            return failed(ready, ErrorCode.PROVIDER_REFUSED, sentence, EvidenceSource.ACCEPTED)
        case ProviderUncertain():
            message = "Checking whether the GPU provider has the job"
            change = JobChange(status=JobStatus.PROCESSING, message=message)
            return Change(EventKind.SUBMIT_UNKNOWN, change)
        case ProviderNotReady() | ProviderHeld(cause=ProviderNotReady()):
            cause = outcome.cause if isinstance(outcome, ProviderHeld) else outcome
            return _held(job, f"{_NOT_READY}: {cause}", None, ready)
        case _:
            sentence = _PACED if isinstance(outcome, ProviderPaced) else _AWAY
            return _held(job, sentence, None, ready)


def adopt(attempt: Attempt, provider_job_id: str, evidence: EvidenceSource, now: int) -> Change:
    """The provider has the attempt, under this id. A cancel needs the id, so it is always kept."""
    known = attempt.evolve(
        state=AttemptState.SUBMITTED,
        provider_job_id=provider_job_id,
        # Earlier observations do not concern a run that is known only now.
        queue_empty_since=None,
        absent_since=None,
    )
    change = JobChange(
        status=JobStatus.PROCESSING,
        provider=attempt.provider,
        provider_job_id=provider_job_id,
        progressed_at=now,
        phase=Phase.QUEUED,
        message=MESSAGES[Phase.QUEUED],
    )
    return Change(EventKind.SUBMITTED, change, known, evidence, keep_attempt=True)


def _in_doubt(case: _Case) -> Decision:
    """Adopts the run that a submit may have started, or gives it up; never repeats the submit."""
    attempt, seen = case.attempt, case.seen
    if seen.started is not None:
        running = attempt.evolve(started_at=started_at(attempt, seen.started, case.now))
        return adopt(running, seen.started.provider_job_id, EvidenceSource.STARTED, case.now)
    if attempt.provider_job_id is not None and seen.remote is not None:
        # The provider's webhook named this id; only the provider's status confirms it.
        if seen.remote.state is not RemoteState.ABSENT:
            return adopt(attempt, attempt.provider_job_id, EvidenceSource.WEBHOOK, case.now)
        return Reschedule(DOUBT_SECONDS, attempt.evolve(provider_job_id=None))
    if case.since(attempt.submitted_at) > case.rules.submit_grace:
        sentence = "The GPU provider lost the job."
        return _give_up(case, attempt, ErrorCode.PROVIDER_UNAVAILABLE, sentence, gone=False)
    if seen.health is None or seen.health.jobs_queued or seen.health.jobs_running:
        return Reschedule(DOUBT_SECONDS, attempt.evolve(queue_empty_since=None))
    if case.since(attempt.queue_empty_since) > EMPTY_SECONDS:
        sentence = "The GPU provider did not get the job."
        return _give_up(case, attempt, ErrorCode.PROVIDER_UNAVAILABLE, sentence)
    empty_since = attempt.queue_empty_since or case.now
    return Reschedule(DOUBT_SECONDS, attempt.evolve(queue_empty_since=empty_since))


def _held(job: Job, sentence: str, wait: float | None, attempt: Attempt | None = None) -> Decision:
    """The job waits; one event states the reason."""
    if job.message == sentence:
        return Reschedule(wait, attempt, keep_attempt=True)
    change = JobChange(message=sentence)
    return Change(EventKind.HELD, change, attempt, wait=wait, keep_attempt=True)


# ── follow a run ────────────────────────────────────────────────────────────────────────────────


def _follow(case: _Case) -> Decision:
    if case.seen.out_of_reach:
        return _out_of_reach(case)
    remote = case.seen.remote or RemoteJob(RemoteState.ABSENT)
    if not remote.state.is_over:
        return _goes_on(case, remote)
    if remote.state is RemoteState.ABSENT:
        return _absent(case)
    billed = case.attempt.evolve(gpu_seconds=remote.execution_seconds)
    if remote.state is RemoteState.CANCELLED:
        change = JobChange(status=JobStatus.CANCELLED, message="Cancelled at the GPU provider")
        return End(EventKind.CANCELLED, change, billed, EvidenceSource.STATUS)
    code, sentence = _failure(case, remote)
    return _give_up(case, billed, code, sentence)


def _out_of_reach(case: _Case) -> Decision:
    """The provider does not answer: a run that may still go on is left alone.

    A job that no worker has begun goes elsewhere; the fence stops a worker that takes it later. A
    job that a worker has begun goes elsewhere once its time limit is over: the worker keeps it.
    """
    since = case.attempt.unreachable_since or case.now
    known, began = case.attempt.evolve(unreachable_since=since), _began(case)
    if began is not None:
        known = known.evolve(started_at=began)
    ended = began is None or case.since(began) > (known.timeout_seconds or 0) + OVERTIME_SECONDS
    if began is None and case.since(since) < case.rules.unreachable_after:
        return _held(case.job, _OUT_OF_REACH, None, known)
    if not ended or case.since(since) < case.rules.unreachable_after:
        return Reschedule(None, known)
    code = ErrorCode.PROVIDER_UNAVAILABLE
    return _give_up(case, known, code, "The GPU provider cannot be reached.", gone=False)


def _goes_on(case: _Case, remote: RemoteJob) -> Decision:
    """Shows what the provider reports of a run that goes on."""
    job, known = case.job, case.attempt.evolve(absent_since=None, unreachable_since=None)
    if remote.state is RemoteState.QUEUED and _waited_too_long(case):
        # Not every provider drops a job that nobody takes.
        code = ErrorCode.QUEUE_TIMEOUT
        return _give_up(case, known, code, TIMED_OUT[code], gone=False)
    if remote.state is RemoteState.RUNNING and known.started_at is None:
        known = known.evolve(started_at=_began(case) or case.now)
    change = _progress(job, remote, case.now)
    if (change.phase, change.progress) != (job.phase, job.progress):
        change = change.merged(JobChange(progressed_at=case.now, stalled_since=None))
    else:
        change = change.merged(_slow_or_stuck(case, remote))
    change = change.beyond(job)
    if not change.model_fields_set:
        return Reschedule(None, known, EvidenceSource.STATUS)
    return Change(EventKind.PROGRESS, change, known, EvidenceSource.STATUS)


def _waited_too_long(case: _Case) -> bool:
    """Whether no worker took the attempt in the time for that: its life without its run."""
    attempt = case.attempt
    if attempt.started_at is not None or attempt.ttl_seconds is None:
        return False
    return case.since(attempt.submitted_at) > attempt.ttl_seconds - (attempt.timeout_seconds or 0)


def _progress(job: Job, remote: RemoteJob, now: int) -> JobChange:
    if remote.state is RemoteState.QUEUED:
        return JobChange(phase=Phase.QUEUED, message=MESSAGES[Phase.QUEUED], progress=job.progress)
    report = parsed(Progress, remote.output) or Progress(phase=Phase.STARTING, progress=0)
    return JobChange(
        phase=report.phase,
        message=report.message or MESSAGES[report.phase],
        progress=max(job.progress, report.progress),
        started_at=job.started_at or now,
    )


def _slow_or_stuck(case: _Case, remote: RemoteJob) -> JobChange:
    """States why a run makes no progress. That alone never fails a job."""
    since, patience = case.job.stalled_since or case.now, case.rules.stalled_after
    if remote.state is RemoteState.QUEUED:
        if case.seen.health is None:
            return JobChange()
        is_late = case.since(case.attempt.submitted_at) > patience
        sentence, is_stuck = _waiting(case.seen.health, is_late)
        return JobChange(message=sentence, stalled_since=since if is_stuck else None)
    if case.since(case.job.progressed_at) <= patience:
        return JobChange()
    phase = MESSAGES.get(case.job.phase, "")
    sentence = f"{phase}: no progress for a while; the worker may be stuck"
    return JobChange(message=sentence, stalled_since=since)


def _waiting(health: Health, is_late: bool) -> tuple[str, bool]:
    """Returns why a job waits in the queue, and whether it would wait for ever.

    An idle worker takes the next job at once. Providers also call a worker idle that is scaled
    down and does not start.
    """
    if health.workers_idle and is_late:
        return _IDLE, True
    if health.workers_up:
        return MESSAGES[Phase.QUEUED], False
    if health.workers_starting:
        return _STARTING, False
    if health.workers_throttled:
        return _THROTTLED, False
    if health.workers_starting is None:
        # The provider may be starting one.
        return MESSAGES[Phase.QUEUED], False
    return (_UNHEALTHY if health.workers_unhealthy else _NO_WORKER), True


def _absent(case: _Case) -> Decision:
    """The provider forgot the job, deleted it, or never had it; only a lasting absence counts."""
    attempt, lasting = case.attempt, case.rules.lost_after
    if attempt.absent_since is None:
        known = attempt.evolve(absent_since=case.now)
        return Reschedule(lasting / 2, known, EvidenceSource.ABSENT)
    if case.since(attempt.absent_since) < lasting:
        return Reschedule(lasting / 2, None, EvidenceSource.ABSENT)
    if _began(case) is None and case.since(attempt.submitted_at) > (attempt.ttl_seconds or 0):
        code = ErrorCode.QUEUE_TIMEOUT
        return _give_up(case, attempt, code, TIMED_OUT[code])
    return _give_up(case, attempt, ErrorCode.WORKER_LOST, "The GPU provider lost the job.")


def _failure(case: _Case, remote: RemoteJob) -> tuple[ErrorCode, str]:
    """Returns why a run that is over has no result, and the sentence for the user."""
    if remote.state is RemoteState.TIMED_OUT:
        began, ran = _began(case), remote.execution_seconds or 0.0
        was_taken = began is not None or ran > 0
        code = timeout_code(was_taken, ran or case.since(began), case.attempt.timeout_seconds)
        return code, TIMED_OUT[code]
    if remote.state is not RemoteState.FAILED:
        return ErrorCode.RESULT_LOST, "The job ended without a result."
    failure = parsed(Failure, remote.output)
    if failure is None:
        return ErrorCode.WORKER_LOST, "The GPU worker was lost."
    if failure.error_code is ErrorCode.CANCELLED:
        # No user cancelled: the broker fenced the attempt, then lost the race to change the job.
        return ErrorCode.WORKER_LOST, "The GPU worker was stopped."
    return failure.error_code, remote.error or "The worker could not do the job."


def _began(case: _Case) -> int | None:
    """Returns when a worker took the attempt; of a short run, `started.json` is the only sign."""
    attempt, started = case.attempt, case.seen.started
    if attempt.started_at is not None or started is None:
        return attempt.started_at
    return started_at(attempt, started, case.now)


# ── to the end ──────────────────────────────────────────────────────────────────────────────────


def decide_stopped(
    job: Job,
    attempt: Attempt,
    seen: Observation,
    outcome: bool | ProviderError,
    now: int,
    rules: Rules,
) -> Decision:
    """Returns what follows from a stop. A committed result wins over the cancel.

    Args:
        outcome: whether the provider runs nothing of the attempt any more, or why that is unknown.
    """
    if seen.committed is not None and seen.is_done:
        return Complete(seen.committed.attempt, seen.committed.result)
    if outcome is True:
        return cancelled(attempt, EvidenceSource.CANCEL)
    if seconds_since(job.cancel_requested_at, now) > rules.cancel_grace:
        return cancelled(attempt, EvidenceSource.STOP, gone=False)
    return Reschedule(PACED_SECONDS if isinstance(outcome, ProviderPaced) else CANCEL_SECONDS)


def _give_up(
    case: _Case, attempt: Attempt, code: ErrorCode, sentence: str, gone: bool = True
) -> Change | End:
    """Gives an attempt up. Another one follows if the policy allows.

    Args:
        attempt: the newest, with what the observation added.
        gone: the provider has nothing left of it.
    """
    failures = [one.error_code for one in case.attempts if one.error_code is not None] + [code]
    # A worker that the broker lost may still be working.
    fence = code in TRIES or not gone
    if not tries_again(failures, case.job.max_attempts):
        if len(failures) > 1:
            sentence = f"{sentence} Gave up after {len(failures)} attempts."
        return failed(attempt, code, sentence, EvidenceSource.STATUS, fence=fence, gone=gone)
    change = JobChange(
        phase=Phase.ACCEPTED,
        message=f"{sentence} Trying again.",
        provider_job_id=None,
        progress=0,
        stalled_since=None,
    )
    given_up = over(attempt.evolve(error_code=code), AttemptState.SUPERSEDED, case.now, gone)
    wait = backoff_seconds(len(failures))
    return Change(EventKind.SUPERSEDED, change, given_up, wait=wait, fence=fence)


def failed(
    attempt: Attempt,
    code: ErrorCode,
    sentence: str,
    evidence: EvidenceSource,
    fence: bool = False,
    gone: bool = True,
) -> End:
    """Ends a job in `error`."""
    change = JobChange(status=JobStatus.ERROR, error=sentence, error_code=code, message=sentence)
    return End(EventKind.ERROR, change, attempt.evolve(error_code=code), evidence, fence, gone)


def cancelled(attempt: Attempt | None, evidence: EvidenceSource, gone: bool = True) -> End:
    """Ends a job as its user requested."""
    change = JobChange(status=JobStatus.CANCELLED, message="Cancelled by user")
    return End(EventKind.CANCELLED, change, attempt, evidence, gone=gone)


def over(attempt: Attempt, state: AttemptState, now: int, gone: bool) -> Attempt:
    """Returns an attempt that has ended; its remains at the provider are due for a cancel now."""
    due = None if gone or attempt.submitted_at is None else now
    return attempt.evolve(state=state, ended_at=now, orphan_due_at=due)


def started_at(attempt: Attempt, started: Started, now: int) -> int:
    """Returns when a worker took the attempt by the worker's clock, between submit and now."""
    return min(max(started.at_ms, attempt.submitted_at or 0), now)


def seconds_since(moment: int | None, now: int) -> float:
    """Returns the seconds since a moment in ms; 0 where there is none."""
    return 0.0 if moment is None else (now - moment) / 1000
