"""Where a job goes, by tables: each state of an attempt against what can be seen of it. No I/O."""

import pytest

from broker.errors import (
    ProviderHeld,
    ProviderNotReady,
    ProviderPaced,
    ProviderRefused,
    ProviderUncertain,
    ProviderUnreachable,
)
from broker.jobs.decide import (
    CANCEL_SECONDS,
    MESSAGES,
    PACED_SECONDS,
    BeginAttempt,
    Change,
    Complete,
    End,
    NoOp,
    Reschedule,
    Rules,
    StopAttempt,
    Submit,
    decide,
    decide_sent,
    decide_stopped,
)
from broker.jobs.model import Attempt, AttemptState, EventKind, EvidenceSource, Job, JobChange
from broker.jobs.observation import Committed, Health, Observation, RemoteJob, RemoteState
from schemas.jobs import ErrorCode, JobStatus, OutputFacts, Phase
from schemas.worker import Result, Started, Timings

NOW = 10_000_000
RULES = Rules(submit_grace=600, lost_after=30, cancel_grace=60, stalled_after=300)


def job(**fields):
    """A job that the provider has, and that nobody has taken yet."""
    base = {
        "id": "j",
        "user_id": "u",
        "type": "framing",
        "status": "processing",
        "phase": "queued",
        "params": "{}",
        "message": MESSAGES[Phase.QUEUED],
        "input_key": "a.mp4",
        "attempt": 1,
        "max_attempts": 3,
        "created_at": NOW - 60_000,
        "due_at": NOW,
        "progressed_at": NOW - 5_000,
    }
    return Job.model_validate(base | fields)


def attempt(state=AttemptState.SUBMITTED, **fields):
    """Its attempt, sent five seconds ago."""
    base = {
        "token": "t",
        "job_id": "j",
        "number": 1,
        "state": state,
        "provider": "p",
        "target": "http://x",
        "provider_job_id": "rp-1",
        "created_at": NOW - 6_000,
        "submitted_at": NOW - 5_000,
        "timeout_seconds": 600,
        "ttl_seconds": 90_000,
    }
    return Attempt.model_validate(base | fields)


def ago(seconds):
    return NOW - int(seconds * 1000)


def committed(output_is_there=True, of=None):
    facts = OutputFacts(
        bytes=9,
        sha256="0" * 64,
        width=2,
        height=2,
        fps=1,
        frames=1,
        duration_seconds=1,
        video_codec="h264",
        audio_codec=None,
    )
    timings = Timings(fetch_seconds=1, edit_seconds=1, upload_seconds=1)
    result = Result(output_key="o.mp4", runpod_job_id="rp-1", facts=facts, timings=timings)
    return Committed(of or attempt(), result, output_is_there)


def remote(state, **fields):
    return Observation(remote=RemoteJob(RemoteState(state), **fields))


STARTED = Started(runpod_job_id="rp-7", worker_id="w", at_ms=NOW - 2_000)
NOBODY = Health(0, 0, 0, 0)
BUSY = Health(1, 1, 0, 1)


def decided(attempts, seen, **fields):
    return decide(job(**fields), attempts, seen, NOW, RULES)


@pytest.mark.parametrize("status", [status for status in JobStatus if status.is_terminal])
def test_a_job_that_has_ended_is_left_alone(status):
    """Whatever is seen of it."""
    ended = {"output_key": "o"} if status is JobStatus.COMPLETE else {"error_code": "internal"}
    assert (
        decided([attempt()], Observation(committed=committed()), status=status, **ended) == NoOp()
    )


@pytest.mark.parametrize("state", [None, *AttemptState])
@pytest.mark.parametrize("cancel", [None, NOW])
def test_a_result_that_is_there_completes_in_every_state(state, cancel):
    """The bucket is the proof; it wins over a cancel as well."""
    attempts = [] if state is None else [attempt(state)]
    seen = Observation(
        draining=True, committed=committed(of=attempt()), remote=RemoteJob(RemoteState.FAILED)
    )
    assert isinstance(decided(attempts, seen, cancel_requested_at=cancel), Complete)


@pytest.mark.parametrize(
    ("state", "draining", "kind"),
    [
        (None, False, BeginAttempt),
        (None, True, Change),
        (AttemptState.SUPERSEDED, False, BeginAttempt),
        (AttemptState.SUPERSEDED, True, Change),
        (AttemptState.READY, False, Submit),
        (AttemptState.READY, True, Change),
    ],
)
def test_what_is_not_at_the_provider_is_sent_unless_the_broker_drains(state, draining, kind):
    """Why a job is held is said once."""
    attempts = [] if state is None else [attempt(state)]
    decision = decided(attempts, Observation(draining))
    assert isinstance(decision, kind)
    if isinstance(decision, Change):
        assert decision.kind is EventKind.HELD
        again = decided(attempts, Observation(draining), message=decision.change.message)
        assert isinstance(again, Reschedule)


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (None, End),
        (AttemptState.READY, End),
        (AttemptState.SUPERSEDED, End),
        (AttemptState.SUBMITTING, StopAttempt),
        (AttemptState.SUBMITTED, StopAttempt),
    ],
)
def test_a_cancel_ends_what_the_provider_does_not_have_and_stops_the_rest(state, kind):
    """A result without its output does not hold it up."""
    attempts = [] if state is None else [attempt(state)]
    seen = Observation(committed=committed(output_is_there=False))
    decision = decided(attempts, seen, cancel_requested_at=NOW)
    assert isinstance(decision, kind)
    if isinstance(decision, End):
        assert (decision.kind, decision.change.status) == (EventKind.CANCELLED, JobStatus.CANCELLED)


@pytest.mark.parametrize(
    ("seen", "fields", "expected"),
    [
        pytest.param(
            Observation(started=STARTED), {}, "adopted rp-7 bucket:started.json", id="started"
        ),
        pytest.param(
            remote("queued"), {}, "adopted rp-1 provider:webhook", id="webhook-told-the-truth"
        ),
        pytest.param(remote("absent"), {}, "asked for rp-1 no more", id="webhook-told-a-lie"),
        pytest.param(Observation(health=BUSY), {"provider_job_id": None}, "waits", id="busy"),
        pytest.param(
            Observation(health=NOBODY), {"provider_job_id": None}, "empty since now", id="empty"
        ),
        pytest.param(
            Observation(health=NOBODY),
            {"provider_job_id": None, "queue_empty_since": ago(11)},
            "given up",
            id="still-empty",
        ),
        pytest.param(
            Observation(health=BUSY),
            {"provider_job_id": None, "queue_empty_since": ago(11)},
            "waits",
            id="empty-no-more",
        ),
        pytest.param(
            Observation(),
            {"provider_job_id": None, "submitted_at": ago(601)},
            "given up",
            id="grace-is-over",
        ),
        pytest.param(
            Observation(health=NOBODY),
            {"provider_job_id": None, "absent_since": ago(999)},
            "empty since now",
            id="absence-is-no-empty-queue",
        ),
    ],
)
def test_a_submit_in_doubt(seen, fields, expected):
    """Adopted by a sign of its run, given up after the grace or an empty queue, and never sent
    again blindly.
    """
    decision = decided([attempt(AttemptState.SUBMITTING, **fields)], seen)
    match decision:
        case Change(kind=EventKind.SUBMITTED) as adopted:
            told = f"adopted {adopted.attempt.provider_job_id} {adopted.evidence}"
            assert (adopted.attempt.queue_empty_since, adopted.attempt.absent_since) == (None, None)
        case Change(kind=EventKind.SUPERSEDED) as given_up:
            told = "given up"
            assert (given_up.attempt.error_code, given_up.fence) == (
                ErrorCode.PROVIDER_UNAVAILABLE,
                True,
            )
        case Reschedule(attempt=known):
            told = "waits" if known.queue_empty_since is None else "empty since now"
            if expected.startswith("asked"):
                told = "asked for rp-1 no more"
                assert known.provider_job_id is None
    assert told == expected


@pytest.mark.parametrize(
    ("state", "fields", "seen", "code"),
    [
        ("finished", {}, {}, "result_lost"),
        ("failed", {}, {}, "worker_lost"),
        ("failed", {}, {"output": {"error_code": "internal", "retryable": True}}, "internal"),
        (
            "failed",
            {},
            {"output": {"error_code": "invalid_media", "retryable": False}},
            "invalid_media",
        ),
        ("failed", {}, {"output": {"error_code": "cancelled", "retryable": False}}, "worker_lost"),
        ("failed", {}, {"output": "nonsense"}, "worker_lost"),
        ("timed_out", {}, {}, "queue_timeout"),
        ("timed_out", {}, {"execution_seconds": 42.0}, "worker_lost"),
        ("timed_out", {"started_at": ago(42)}, {}, "worker_lost"),
        ("timed_out", {"started_at": ago(700)}, {}, "execution_timeout"),
        ("timed_out", {"started_at": ago(700)}, {"execution_seconds": 42.0}, "worker_lost"),
        ("absent", {"absent_since": ago(31)}, {}, "worker_lost"),
        ("absent", {"absent_since": ago(31), "submitted_at": ago(90_001)}, {}, "queue_timeout"),
        (
            "absent",
            {"absent_since": ago(31), "submitted_at": ago(90_001), "started_at": ago(9)},
            {},
            "worker_lost",
        ),
    ],
)
def test_a_run_that_is_over_without_a_result(state, fields, seen, code):
    """Its code; what may be tried again is fenced and follows, the rest is the job's end."""
    decision = decided([attempt(**fields)], remote(state, **seen))
    assert decision.attempt.error_code == code
    assert decision.attempt.gpu_seconds == seen.get("execution_seconds")
    if ErrorCode(code).retryable:
        assert (decision.kind, decision.fence) == (EventKind.SUPERSEDED, True)
        assert decision.attempt.state is AttemptState.SUPERSEDED
    else:
        assert (decision.kind, decision.change.error_code) == (EventKind.ERROR, code)


def test_a_result_without_its_output_is_lost():
    """Whatever the provider says of it."""
    seen = Observation(
        committed=committed(output_is_there=False), remote=RemoteJob(RemoteState.RUNNING)
    )
    assert decided([attempt()], seen).attempt.error_code is ErrorCode.RESULT_LOST


def test_the_last_attempt_is_the_jobs_end():
    """Counted by the codes of those before; what it may have left there is an orphan."""
    before = [
        attempt(AttemptState.SUPERSEDED, token="1", error_code="worker_lost"),
        attempt(AttemptState.SUPERSEDED, token="2", error_code="provider_unavailable"),
    ]
    last = attempt(AttemptState.SUBMITTING, token="3", submitted_at=ago(601), provider_job_id=None)
    end = decided([*before, last], Observation())
    assert isinstance(end, End)
    assert (end.fence, end.gone, end.change.error_code) == (
        True,
        False,
        ErrorCode.PROVIDER_UNAVAILABLE,
    )
    assert "after 3 attempts" in end.change.error


def test_absence_counts_only_where_it_lasts():
    """One answer is noted; asked again before it is believed; forgotten when the job is seen
    again.
    """
    first = decided([attempt()], remote("absent"))
    assert (first.attempt.absent_since, first.evidence) == (NOW, EvidenceSource.ABSENT)
    assert decided([attempt(absent_since=ago(29))], remote("absent")).attempt is None
    # An empty queue that was seen before is no absence.
    assert (
        decided([attempt(queue_empty_since=ago(99))], remote("absent")).attempt.absent_since == NOW
    )
    seen_again = decided([attempt(absent_since=ago(29))], remote("queued"))
    assert seen_again.attempt.absent_since is None


@pytest.mark.parametrize(
    ("told", "fields", "shown"),
    [
        ({"phase": "processing", "progress": 40}, {}, ("processing", 40)),
        (
            {"phase": "processing", "progress": 30},
            {"phase": "processing", "progress": 40},
            ("processing", 40),
        ),
        ("nonsense", {}, ("starting", 0)),
        (None, {"progress": 10}, ("starting", 10)),
    ],
)
def test_progress_is_shown_and_never_falls(told, fields, shown):
    """With the moment at which a worker was first seen at it, of the job and of the attempt."""
    change = decided([attempt()], remote("running", output=told), **fields)
    assert change.attempt.started_at == NOW
    after = job(**fields).model_copy(update=change.change.model_dump(exclude_unset=True))
    assert (after.phase, after.progress, after.started_at) == (*shown, NOW)


@pytest.mark.parametrize(
    ("health", "waited", "message", "stalled"),
    [
        (Health(1, 0, 0, 0, workers_starting=0), 60, "There is no GPU worker", True),
        (Health(1, 0, 0, 0), 60, "Waiting for a GPU worker", False),
        (Health(1, 0, 0, 0, workers_starting=0, workers_unhealthy=2), 60, "unhealthy", True),
        (Health(1, 0, 0, 0, workers_throttled=2), 60, "no GPU free", False),
        (Health(1, 0, 0, 0, workers_starting=1), 60, "starting", False),
        (Health(1, 3, 0, 3), 999, "Waiting for a GPU worker", False),
        (Health(1, 3, 0, 3, workers_ready=3), 999, "Waiting for a GPU worker", False),
        (Health(1, 0, 1, 0), 60, "Waiting for a GPU worker", False),
        (Health(1, 0, 1, 0), 301, "GPU workers are idle", True),
        (None, 5, "Waiting for a GPU worker", False),
    ],
)
def test_a_queue_says_why_it_waits(health, waited, message, stalled):
    """Slow and stuck are told apart; what was said before is taken back."""
    seen = Observation(remote=RemoteJob(RemoteState.QUEUED), health=health)
    before = job(message="?" if health else MESSAGES[Phase.QUEUED])
    decision = decide(before, [attempt(submitted_at=ago(waited))], seen, NOW, RULES)
    change = decision.change if isinstance(decision, Change) else JobChange()
    after = before.model_copy(update=change.model_dump(exclude_unset=True))
    assert message in after.message
    assert (after.stalled_since == NOW) is stalled


def test_a_run_without_progress_is_stalled_and_goes_on():
    """Said once, with the moment since when."""
    fields = {
        "phase": "processing",
        "progress": 5,
        "started_at": ago(900),
        "progressed_at": ago(301),
    }
    seen = remote("running", output={"phase": "processing", "progress": 5})
    change = decided([attempt(started_at=ago(900))], seen, **fields).change
    assert (change.stalled_since, "no progress" in change.message) == (NOW, True)
    said = fields | change.model_dump(exclude_unset=True)
    assert isinstance(decided([attempt(started_at=ago(900))], seen, **said), Reschedule)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("rp-9", EventKind.SUBMITTED),
        (ProviderUnreachable("x"), EventKind.HELD),
        (ProviderHeld("x"), EventKind.HELD),
        (ProviderNotReady("x"), EventKind.HELD),
        (ProviderPaced("x"), EventKind.HELD),
        (ProviderUncertain("x"), EventKind.SUBMIT_UNKNOWN),
        (ProviderRefused("x"), EventKind.ERROR),
    ],
)
def test_what_follows_from_a_submit(outcome, expected):
    """Nothing sent keeps the attempt ready; what may have been sent is never ready again."""
    ready = attempt(AttemptState.READY, submitted_at=None, provider_job_id=None)
    sent = ready.evolve(state=AttemptState.SUBMITTING, submitted_at=NOW)
    decision = decide_sent(job(status="pending"), ready, sent, outcome, NOW)
    assert decision.kind is expected
    if expected is EventKind.HELD:
        assert (decision.attempt, decision.keep_attempt) == (ready, True)
        again = decide_sent(job(message=decision.change.message), ready, sent, outcome, NOW)
        assert again == Reschedule(None, ready, keep_attempt=True)
    if expected is EventKind.SUBMIT_UNKNOWN:
        assert decision.attempt is None


@pytest.mark.parametrize(
    ("outcome", "asked", "expected"),
    [
        (True, NOW, EvidenceSource.CANCEL),
        (False, NOW, CANCEL_SECONDS),
        (ProviderUnreachable("x"), NOW, CANCEL_SECONDS),
        (ProviderPaced("x"), NOW, PACED_SECONDS),
        (False, ago(61), EvidenceSource.STOP),
        (ProviderUncertain("x"), ago(61), EvidenceSource.STOP),
    ],
)
def test_what_follows_from_a_stop(outcome, asked, expected):
    """Cancelled on the provider's word, or after a while on the fence alone, and then the run is an
    orphan.
    """
    stopping = job(cancel_requested_at=asked)
    decision = decide_stopped(stopping, attempt(), Observation(), outcome, NOW, RULES)
    if isinstance(decision, Reschedule):
        assert decision.wait == expected
    else:
        assert (decision.evidence, decision.gone) == (expected, expected is EvidenceSource.CANCEL)
    done = Observation(committed=committed())
    assert isinstance(decide_stopped(stopping, attempt(), done, outcome, NOW, RULES), Complete)


@pytest.mark.parametrize(
    ("waited", "started_at", "ends"),
    [
        pytest.param(89_399, None, False, id="still in time"),
        pytest.param(89_401, None, True, id="too late"),
        pytest.param(89_401, NOW - 1000, False, id="taken once, and queued again"),
    ],
)
def test_a_job_that_nobody_takes_is_given_up_by_the_clock_of_the_broker(waited, started_at, ends):
    """Not every provider drops such a job, so what is left of it is cancelled there."""
    waiting = attempt(submitted_at=ago(waited), started_at=started_at)
    decision = decided([waiting], remote("queued", output=None))
    given_up = isinstance(decision, Change) and decision.kind is EventKind.SUPERSEDED
    assert given_up is ends
    if given_up:
        assert decision.attempt.error_code is ErrorCode.QUEUE_TIMEOUT
        assert (decision.fence, decision.attempt.orphan_due_at) == (True, NOW)


def test_a_run_begins_by_the_clock_of_its_worker():
    """Where the provider does not say when, `started.json` does."""
    seen = Observation(remote=RemoteJob(RemoteState.RUNNING), started=STARTED)
    assert decided([attempt()], seen).attempt.started_at == STARTED.at_ms


@pytest.mark.parametrize(
    "outcome",
    [
        ProviderNotReady("Modal refuses the token"),
        ProviderHeld("the provider is down", ProviderNotReady("Modal refuses the token")),
    ],
    ids=["refused", "held-since"],
)
def test_a_job_that_waits_for_the_operator_names_the_reason(outcome):
    """Also while calls are held back because of it."""
    ready = attempt(AttemptState.READY, submitted_at=None, provider_job_id=None)
    decision = decide_sent(job(status="pending"), ready, ready, outcome, NOW)
    sentence = "The job waits until an operator acts: Modal refuses the token"
    assert decision.change.message == sentence


@pytest.mark.parametrize(
    ("fields", "started", "expected"),
    [
        pytest.param({}, None, "waits", id="just-now"),
        pytest.param({"unreachable_since": ago(299)}, None, "waits", id="not-for-long"),
        pytest.param({"unreachable_since": ago(301)}, None, "goes elsewhere", id="nobody-began"),
        pytest.param(
            {"unreachable_since": ago(301), "started_at": ago(629)}, None, "waits", id="may-run"
        ),
        pytest.param({"unreachable_since": ago(301)}, STARTED, "waits", id="has-just-begun"),
        pytest.param(
            {"unreachable_since": ago(301), "started_at": ago(631)},
            None,
            "goes elsewhere",
            id="its-limit-is-over",
        ),
        pytest.param(
            {"unreachable_since": ago(20), "started_at": ago(9_000)}, None, "waits", id="a-moment"
        ),
    ],
)
def test_a_provider_out_of_reach(fields, started, expected):
    """A run that may go on is left alone; the rest goes to the next place, fenced, and is cancelled
    here as soon as the provider is back.
    """
    seen = Observation(started=started, out_of_reach=True)
    decision = decided([attempt(**fields)], seen)
    match decision:
        case Reschedule(attempt=known) | Change(kind=EventKind.HELD, attempt=known):
            told = "waits"
            assert known.unreachable_since == fields.get("unreachable_since", NOW)
            assert (known.started_at is None) == (started is None and "started_at" not in fields)
        case Change(kind=EventKind.SUPERSEDED, attempt=given_up, fence=True):
            told = "goes elsewhere"
            assert given_up.error_code is ErrorCode.PROVIDER_UNAVAILABLE
            assert given_up.orphan_due_at == NOW
    assert told == expected


def test_an_answer_ends_the_count_of_silence():
    """The next silence begins anew."""
    decision = decided([attempt(unreachable_since=ago(200))], remote("queued"))
    assert decision.attempt.unreachable_since is None
