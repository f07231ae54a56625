"""What follows from what was seen: the one place where it is said where a job goes.

Nothing here reads or writes. `decide` takes a job as it is stored, its attempts and an observation; the engine
carries the decision out. Two things that the engine does have an end of their own to decide on: a submit
(`decide_sent`) and a stop at the provider (`decide_stopped`).

    pending ── BeginAttempt ── Submit ─┬─ accepted ───────── SUBMITTED: the bucket first, then the provider's status
                              ├─ nothing sent ───── READY: the same attempt goes again in a moment
                              └─ end unknown ────── SUBMITTING: look for signs of the run, then give it up

A provider's answers are hints; the proof of success is `result.json` with an output of the size
that it names. What fails or is unreachable changes nothing: the job is looked at again later. An attempt that is given
up is first fenced by `stop.json`, so that two workers never publish one job.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from broker.errors import ProviderError, ProviderPaced, ProviderRefused, ProviderUncertain
from broker.jobs.model import Attempt, AttemptState, EventKind, EvidenceSource, Job, JobChange
from broker.jobs.observation import Health, Observation, RemoteJob, RemoteState, parsed
from broker.jobs.policy import TRIES, backoff_seconds, timeout_code, tries_again
from schemas.jobs import ErrorCode, JobStatus, Phase
from schemas.worker import Failure, Progress, Result, Started

#: How long a job waits in the queue before it is asked why.
PATIENCE_SECONDS = 30.0
#: A queue that is seen empty twice, so far apart, does not hold the job whose submit is in doubt.
EMPTY_SECONDS = 10.0
#: How soon to look again at a submit that is in doubt.
DOUBT_SECONDS = 2.0
#: How soon to ask again for a cancel that is not carried out yet, and for one that the provider's pace
#: put off. The fence works meanwhile.
CANCEL_SECONDS, PACED_SECONDS = 2.0, 5.0
DRAIN_SECONDS = 5.0

MESSAGES = {
    Phase.QUEUED: "Waiting for a GPU worker",
    Phase.STARTING: "A GPU worker has taken the job",
    Phase.DOWNLOADING: "Fetching the video",
    Phase.PROCESSING: "Editing frames",
    Phase.UPLOADING: "Uploading the result",
    Phase.VERIFYING: "Checking the result",
}
#: What a user reads of an attempt that timed out.
TIMED_OUT = {
    ErrorCode.QUEUE_TIMEOUT: "No GPU worker took the job in time.",
    ErrorCode.WORKER_LOST: "The GPU worker was lost.",
    ErrorCode.EXECUTION_TIMEOUT: "The job ran longer than such an export may take, and was stopped.",
}
_AWAY = "The GPU provider cannot be reached; the job goes as soon as it is back"
_PACED = "The GPU provider takes no more jobs for the moment; the job goes in its turn"
_DRAINING = "The broker sends no jobs for the moment; the job waits"


@dataclass(frozen=True)
class Rules:
    """How long to wait for what, from the settings; seconds."""

    submit_grace: float
    lost_after: float
    cancel_grace: float
    stalled_after: float


@dataclass(frozen=True)
class NoOp:
    """The job has ended; nothing is done."""


@dataclass(frozen=True)
class Reschedule:
    """Nothing changes that anybody watches. `wait` None: as its age has it."""

    wait: float | None = None
    attempt: Attempt | None = None
    evidence: EvidenceSource | None = None
    #: The attempt is written even where somebody else has moved the job meanwhile.
    keep_attempt: bool = False


@dataclass(frozen=True)
class Change:
    """One move of a job that goes on. `fence`: the attempt is told to stop before."""

    kind: EventKind
    change: JobChange
    attempt: Attempt | None = None
    evidence: EvidenceSource | None = None
    wait: float | None = None
    fence: bool = False
    keep_attempt: bool = False


@dataclass(frozen=True)
class BeginAttempt:
    """A new attempt is committed, and sent."""


@dataclass(frozen=True)
class Submit:
    """An attempt of which nothing is at the provider is sent."""

    attempt: Attempt


@dataclass(frozen=True)
class StopAttempt:
    """The attempt is fenced, and the provider is asked to stop it."""

    attempt: Attempt


@dataclass(frozen=True)
class Complete:
    """The result is committed and there: the only way to `complete`."""

    attempt: Attempt
    result: Result


@dataclass(frozen=True)
class End:
    """The job ends without a result.

    `fence`: the attempt is told to stop before, and what it committed until then counts after all.
    `gone`: nothing of the attempt is left at the provider.
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
    """All that a decision rests on, while there is an attempt."""

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
        return _give_up(
            case, attempt, ErrorCode.RESULT_LOST, "The finished file is not in the bucket."
        )
    return _in_doubt(case) if attempt.state is AttemptState.SUBMITTING else _follow(case)


# ── send ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def decide_sent(
    job: Job, ready: Attempt, sent: Attempt, outcome: str | ProviderError, now: int
) -> Decision:
    """Returns what follows from a submit.

    Args:
        ready: the attempt as it was before.
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
        case _:
            sentence = _PACED if isinstance(outcome, ProviderPaced) else _AWAY
            return _held(job, sentence, None, ready)


def adopt(attempt: Attempt, provider_job_id: str, evidence: EvidenceSource, now: int) -> Change:
    """The provider has the attempt, under this id; where somebody asked for a cancel, the id is what that needs."""
    known = attempt.evolve(
        state=AttemptState.SUBMITTED,
        provider_job_id=provider_job_id,
        # What was seen before says nothing about a run that is known now.
        queue_empty_since=None,
        absent_since=None,
    )
    change = JobChange(
        status=JobStatus.PROCESSING,
        provider_job_id=provider_job_id,
        progressed_at=now,
        phase=Phase.QUEUED,
        message=MESSAGES[Phase.QUEUED],
    )
    return Change(EventKind.SUBMITTED, change, known, evidence, keep_attempt=True)


def _in_doubt(case: _Case) -> Decision:
    """After a submit whose end is unknown: adopt the run that it started, or give it up, but never repeat it."""
    attempt, seen = case.attempt, case.seen
    if seen.started is not None:
        running = attempt.evolve(started_at=started_at(attempt, seen.started, case.now))
        return adopt(running, seen.started.provider_job_id, EvidenceSource.STARTED, case.now)
    if (
        attempt.provider_job_id is not None and seen.remote is not None
    ):  # the provider called, with an id
        if seen.remote.state is not RemoteState.ABSENT:
            return adopt(attempt, attempt.provider_job_id, EvidenceSource.WEBHOOK, case.now)
        return Reschedule(DOUBT_SECONDS, attempt.evolve(provider_job_id=None))
    if case.since(attempt.submitted_at) > case.rules.submit_grace:
        sentence = "The GPU provider lost the job."
        return _give_up(case, attempt, ErrorCode.PROVIDER_UNAVAILABLE, sentence, gone=False)
    if seen.health is None or seen.health.jobs_queued or seen.health.jobs_running:
        return Reschedule(DOUBT_SECONDS, attempt.evolve(queue_empty_since=None))
    if case.since(attempt.queue_empty_since) > EMPTY_SECONDS:  # no need to sit out the grace period
        sentence = "The GPU provider did not get the job."
        return _give_up(case, attempt, ErrorCode.PROVIDER_UNAVAILABLE, sentence)
    return Reschedule(
        DOUBT_SECONDS, attempt.evolve(queue_empty_since=attempt.queue_empty_since or case.now)
    )


def _held(job: Job, sentence: str, wait: float | None, attempt: Attempt | None = None) -> Decision:
    """The job waits; why is said once."""
    if job.message == sentence:
        return Reschedule(wait, attempt, keep_attempt=True)
    return Change(
        EventKind.HELD, JobChange(message=sentence), attempt, wait=wait, keep_attempt=True
    )


# ── follow ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _follow(case: _Case) -> Decision:
    remote = case.seen.remote or RemoteJob(RemoteState.ABSENT)
    if not remote.state.is_over:
        return _goes_on(case, remote)
    if remote.state is RemoteState.ABSENT:
        return _absent(case)
    billed = case.attempt.evolve(gpu_seconds=remote.execution_seconds)
    if remote.state is RemoteState.CANCELLED:
        change = JobChange(status=JobStatus.CANCELLED, message="Cancelled at the GPU provider")
        return End(EventKind.CANCELLED, change, billed, EvidenceSource.STATUS)
    code, sentence = _why(case, remote)
    return _give_up(case, billed, code, sentence)


def _goes_on(case: _Case, remote: RemoteJob) -> Decision:
    """Shows what the provider says of a job that goes on."""
    job, known = case.job, case.attempt.evolve(absent_since=None)
    if remote.state is RemoteState.RUNNING and known.started_at is None:
        known = known.evolve(started_at=case.now)
    change = _shown(job, remote, case.now)
    if (change.phase, change.progress) != (job.phase, job.progress):
        change = change.merged(JobChange(progressed_at=case.now, stalled_since=None))
    else:
        change = change.merged(_slow_or_stuck(case, remote))
    change = change.beyond(job)
    if not change.model_fields_set:
        return Reschedule(None, known, EvidenceSource.STATUS)
    return Change(EventKind.PROGRESS, change, known, EvidenceSource.STATUS)


def _shown(job: Job, remote: RemoteJob, now: int) -> JobChange:
    if remote.state is RemoteState.QUEUED:
        return JobChange(phase=Phase.QUEUED, message=MESSAGES[Phase.QUEUED], progress=job.progress)
    told = parsed(Progress, remote.output) or Progress(phase=Phase.STARTING, progress=0)
    return JobChange(
        phase=told.phase,
        message=told.message or MESSAGES[told.phase],
        progress=max(job.progress, told.progress),
        started_at=job.started_at or now,
    )


def _slow_or_stuck(case: _Case, remote: RemoteJob) -> JobChange:
    """Says why nothing new is seen; that alone never fails a job."""
    since, patience = case.job.stalled_since or case.now, case.rules.stalled_after
    if remote.state is RemoteState.QUEUED:
        long = case.since(case.attempt.submitted_at) > patience
        return JobChange() if case.seen.health is None else _waiting(case.seen.health, since, long)
    if case.since(case.job.progressed_at) <= patience:
        return JobChange()
    sentence = (
        f"{MESSAGES.get(case.job.phase, '')}: no progress for a while; the worker may be stuck"
    )
    return JobChange(message=sentence, stalled_since=since)


def _waiting(health: Health, since: int, long: bool) -> JobChange:
    """Says why a job waits for a worker; with none at all it would wait for ever.

    An idle worker takes the next job at once. Providers also call a worker idle that is scaled down and does not come up.
    """
    if health.workers_idle and long:
        sentence = "GPU workers are idle, but none takes the job: see their logs"
        return JobChange(message=sentence, stalled_since=since)
    if health.workers_up:
        return JobChange(message=MESSAGES[Phase.QUEUED], stalled_since=None)
    if health.workers_starting:
        return JobChange(message="A GPU worker is starting", stalled_since=None)
    if health.workers_throttled:
        return JobChange(
            message="The GPU provider has no GPU free at the moment", stalled_since=None
        )
    if health.workers_unhealthy:
        return JobChange(
            message="All GPU workers are unhealthy; see their logs", stalled_since=since
        )
    sentence = (
        "There is no GPU worker: the endpoint may be scaled to zero, or its workers cannot start"
    )
    return JobChange(message=sentence, stalled_since=since)


def _absent(case: _Case) -> Decision:
    """Forgotten, deleted or never there: one answer has three meanings, so only a lasting one loses the attempt."""
    attempt, lasting = case.attempt, case.rules.lost_after
    if attempt.absent_since is None:
        return Reschedule(lasting / 2, attempt.evolve(absent_since=case.now), EvidenceSource.ABSENT)
    if case.since(attempt.absent_since) < lasting:
        return Reschedule(lasting / 2, None, EvidenceSource.ABSENT)
    if _began(case) is None and case.since(attempt.submitted_at) > (attempt.ttl_seconds or 0):
        code = ErrorCode.QUEUE_TIMEOUT
        return _give_up(case, attempt, code, TIMED_OUT[code])
    return _give_up(case, attempt, ErrorCode.WORKER_LOST, "The GPU provider lost the job.")


def _why(case: _Case, remote: RemoteJob) -> tuple[ErrorCode, str]:
    """Returns why a run that is over has no result, and what the user reads of it."""
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
        # By nobody: the broker fenced the attempt, and then somebody else moved the job first.
        return ErrorCode.WORKER_LOST, "The GPU worker was stopped."
    return failure.error_code, remote.error or "The worker could not do the job."


def _began(case: _Case) -> int | None:
    """Returns when a worker took the attempt; a short run may have been at no look, and left `started.json`."""
    attempt, started = case.attempt, case.seen.started
    if attempt.started_at is not None or started is None:
        return attempt.started_at
    return started_at(attempt, started, case.now)


# ── to the end ──────────────────────────────────────────────────────────────────────────────────────────────────────


def decide_stopped(
    job: Job,
    attempt: Attempt,
    seen: Observation,
    outcome: bool | ProviderError,
    now: int,
    rules: Rules,
) -> Decision:
    """Returns what follows from a stop. A result that is committed wins over the cancel.

    Args:
        outcome: whether nothing runs at the provider any more, or why that is not known.
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
    """Gives an attempt up for good: the next one follows if the policy has one left.

    Args:
        attempt: the newest, with what was learned of it.
        gone: nothing of it is left at the provider.
    """
    failures = [one.error_code for one in case.attempts if one.error_code is not None] + [code]
    # A worker that was lost to the broker may still be at work.
    fence = code in TRIES or not gone
    if not tries_again(failures, case.job.max_attempts):
        told = (
            f"{sentence} Gave up after {len(failures)} attempts." if len(failures) > 1 else sentence
        )
        return failed(attempt, code, told, EvidenceSource.STATUS, fence=fence, gone=gone)
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
    """Ends a job as its user wanted."""
    change = JobChange(status=JobStatus.CANCELLED, message="Cancelled by user")
    return End(EventKind.CANCELLED, change, attempt, evidence, gone=gone)


def over(attempt: Attempt, state: AttemptState, now: int, gone: bool) -> Attempt:
    """Returns an attempt that nobody wants any more; what it may have left at the provider is due at once."""
    due = None if gone or attempt.submitted_at is None else now
    return attempt.evolve(state=state, ended_at=now, orphan_due_at=due)


def started_at(attempt: Attempt, started: Started, now: int) -> int:
    """Returns when a worker took the attempt, by the worker's clock; within what the broker's allows."""
    return min(max(started.at_ms, attempt.submitted_at or 0), now)


def seconds_since(moment: int | None, now: int) -> float:
    """Returns the seconds since a moment in ms; 0 where there is none."""
    return 0.0 if moment is None else (now - moment) / 1000
