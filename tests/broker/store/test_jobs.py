"""Jobs on disk: compare-and-set moves, legal transitions, gapless events."""

import json
import tempfile
import threading

import pytest
from hypothesis import settings as hypothesis_settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy.exc import IntegrityError

from broker.errors import IdTaken, IllegalTransition
from broker.jobs.model import LEGAL_TRANSITIONS, Attempt, AttemptState, EventKind, Job, JobChange
from broker.store.engine import open_engine
from broker.store.jobs import JobFilter, JobStore
from schemas.jobs import ErrorCode, JobStatus, Phase

#: What each status needs beside itself to pass the table's own checks.
COMPANIONS = {
    JobStatus.COMPLETE: {"output_key": "out.mp4", "progress": 100},
    JobStatus.ERROR: {"error_code": ErrorCode.INTERNAL, "error": "x"},
}


def to(status):
    return {"status": status, **COMPANIONS.get(status, {})}


def test_a_stored_job_is_read_back_as_it_was(store, make_job):
    """Words come back as words, numbers as numbers, and the value cannot be changed in place."""
    job = store.add(make_job(project_id=7, meta='{"a": "b"}'))
    assert store.get(job.id, "u1") == job
    with pytest.raises(ValueError, match="frozen"):
        job.progress = 5


def test_another_users_job_does_not_exist(store, make_job):
    """A read is scoped to its user."""
    job = store.add(make_job(user_id="u1"))
    assert store.get(job.id, "u2") is None


def test_an_id_or_key_that_came_before_is_that_job(store, make_job):
    """Of the same user; another user's id is refused, and another user's key is another key."""
    job = store.add(make_job(id="a"), "k")
    assert store.add(make_job(id="a")) == job
    assert store.add(make_job(id="b"), "k") == job
    assert store.add(make_job(id="c", user_id="u2"), "k").id == "c"
    with pytest.raises(IdTaken):
        store.add(make_job(id="a", user_id="u2"))
    assert store.find("b") is None


def test_keys_are_forgotten_after_a_while(store, make_job):
    """Then the same key makes another job."""
    store.add(make_job(id="a", created_at=1_000), "k")
    store.add(make_job(id="b", created_at=9_000), "l")
    store.forget_keys(before=5_000)
    assert store.add(make_job(id="c"), "k").id == "c"
    assert store.add(make_job(id="d"), "l").id == "b"


def test_of_two_who_look_at_the_same_moment_one_goes_on(store, make_job):
    """A touch is compare-and-set too: of two brokers, one submits."""
    job = store.add(make_job())
    touched = store.touch(job, due_at=5_000)
    assert (touched.due_at, store.touch(job, due_at=6_000)) == (5_000, None)
    assert store.find(job.id) == touched


def test_a_job_survives_the_process(database_url, make_job):
    """What was added is there after the database is opened again."""
    first = JobStore(open_engine(database_url))
    job = first.add(make_job())
    first.close()
    second = JobStore(open_engine(database_url))
    assert second.get(job.id, "u1") == job
    second.close()


def test_the_database_is_closed_after_its_last_user(database_url, make_job):
    """A request that was given up goes on in its thread; what it writes is written, and no
    connection is left behind.
    """
    store = JobStore(open_engine(database_url))
    begun, may_end = threading.Event(), threading.Event()

    def late():
        with store._engine.begin() as connection:
            connection.exec_driver_sql("SELECT 1")
            begun.set()
            may_end.wait()

    thread = threading.Thread(target=late)
    thread.start()
    begun.wait()
    threading.Timer(0.3, may_end.set).start()
    pool = store._engine.pool
    store.close()
    assert pool.checkedout() == 0
    thread.join()


def test_of_two_who_saw_the_same_only_the_first_moves(store, make_job):
    """A stale view changes nothing and says so."""
    job = store.add(make_job())
    moved = store.transition(job, EventKind.PROGRESS, JobChange.model_validate({"progress": 10}))
    assert moved.version == job.version + 1
    assert (
        store.transition(job, EventKind.PROGRESS, JobChange.model_validate({"progress": 5})) is None
    )
    assert store.get(job.id, "u1").progress == 10


def test_a_race_of_threads_has_one_winner(store, make_job):
    """Compare-and-set holds between threads, not only between lines."""
    job = store.add(make_job())
    won = []
    threads = [
        threading.Thread(
            target=lambda n=n: won.append(
                store.transition(job, EventKind.PROGRESS, JobChange.model_validate({"progress": n}))
            )
        )
        for n in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(result is not None for result in won) == 1


@pytest.mark.parametrize("before", list(JobStatus))
@pytest.mark.parametrize("after", list(JobStatus))
def test_only_the_moves_of_the_table_are_made(store, make_job, before, after):
    """Each pair of statuses either moves or is refused, as LEGAL_TRANSITIONS says."""
    job = store.add(make_job(**to(before)))
    if after in LEGAL_TRANSITIONS[before]:
        assert (
            store.transition(job, EventKind.PROGRESS, JobChange.model_validate(to(after))).status
            is after
        )
    else:
        with pytest.raises(IllegalTransition):
            store.transition(job, EventKind.PROGRESS, JobChange.model_validate(to(after)))
        assert store.get(job.id, "u1") == job


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"status": JobStatus.COMPLETE}, id="complete-without-output"),
        pytest.param({"status": JobStatus.ERROR}, id="error-without-code"),
        pytest.param({"progress": 101}, id="progress-over-100"),
    ],
)
def test_the_database_itself_refuses_nonsense(store, make_job, wrong):
    """The checks hold even if the code above them is wrong; nothing is written, no event either."""
    job = store.add(make_job())
    with pytest.raises(IntegrityError):
        store.transition(job, EventKind.PROGRESS, JobChange.model_validate(wrong))
    assert [event.seq for event in store.events(job.id)] == [1]


def test_due_jobs_come_longest_overdue_first(store, make_job):
    """Ended jobs and those of the future are left out."""
    late = store.add(make_job(due_at=10))
    later = store.add(make_job(due_at=5))
    store.add(make_job(due_at=1000))
    store.add(make_job(due_at=1, **to(JobStatus.COMPLETE)))
    assert [job.id for job, _ in store.due(now=10, limit=10)] == [later.id, late.id]


def test_a_list_is_paged_newest_first_and_filtered(store, make_job):
    """Two pages, no job twice, none left out, none of another user."""
    jobs = [store.add(make_job(project_id=n % 2)) for n in range(5)]
    store.add(make_job(user_id="u2"))
    first = store.page("u1", JobFilter(), 3)
    rest = store.page("u1", JobFilter(before=(first[-1].created_at, first[-1].id)), 3)
    assert [job.id for job in first + rest] == [job.id for job in reversed(jobs)]
    assert [job.project_id for job in store.page("u1", JobFilter(project_id=1), 9)] == [1, 1]
    assert store.page("u1", JobFilter(status=(JobStatus.ERROR,)), 9) == []


def test_of_jobs_due_at_once_those_at_the_provider_come_first(store, make_job):
    """They may be finished; the others wait for a worker anyway."""
    new, running = store.add(make_job(due_at=5)), store.add(make_job(due_at=5))
    change = JobChange(status=JobStatus.PROCESSING, attempt=1)
    store.transition(running, EventKind.SUBMITTED, change)
    assert [job.id for job, _ in store.due(now=10, limit=10)] == [running.id, new.id]


def test_an_attempt_is_written_with_the_move_or_not_at_all(store, make_job):
    """A lost race leaves no attempt behind."""
    job = store.add(make_job())
    attempt = Attempt(
        token="0" * 32,
        job_id=job.id,
        number=1,
        state=AttemptState.READY,
        provider="p",
        target="http://x",
        created_at=1,
    )
    store.transition(job, EventKind.PROGRESS, JobChange.model_validate({"progress": 1}))
    assert (
        store.transition(
            job, EventKind.ATTEMPT_BEGUN, JobChange.model_validate({"attempt": 1}), attempt
        )
        is None
    )
    assert store.load(job.id)[1] == []
    assert store.touch(job, due_at=5, attempt=attempt) is None
    assert store.load(job.id)[1] == []


def test_an_event_says_what_changed(store, make_job):
    """The log of a job reads as its story."""
    job = store.add(make_job())
    store.transition(
        job,
        EventKind.PROGRESS,
        JobChange.model_validate({"phase": Phase.UPLOADING, "progress": 90, "due_at": 5}),
    )
    last = store.events(job.id)[-1]
    assert (last.kind, json.loads(last.data)) == (
        "progress",
        {"phase": "uploading", "progress": 90},
    )
    assert store.events(job.id, after=last.seq) == []


class StoreMachine(RuleBasedStateMachine):
    """Random moves, fresh and stale, by several hands: against a plain dict as the oracle."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = JobStore(
            open_engine(self.new_database() or f"sqlite:///{self.folder.name}/jobs.db")
        )
        self.expected: dict[str, Job] = {}
        self.seen: list[Job] = []

    @rule()
    def add(self):
        job = Job(
            id=f"j{len(self.expected)}",
            user_id="u",
            type="framing",
            input_key="a",
            params="{}",
            max_attempts=1,
            created_at=1,
            due_at=1,
        )
        self.expected[job.id] = self.store.add(job)
        self.seen.append(job)

    @rule(data=st.data(), status=st.sampled_from(JobStatus), progress=st.integers(0, 100))
    def move(self, data, status, progress):
        if not self.seen:
            return
        view = data.draw(st.sampled_from(self.seen))
        changes = {"progress": progress, **to(status)}
        if status not in LEGAL_TRANSITIONS[view.status]:
            with pytest.raises(IllegalTransition):
                self.store.transition(view, EventKind.PROGRESS, JobChange.model_validate(changes))
            return
        moved = self.store.transition(view, EventKind.PROGRESS, JobChange.model_validate(changes))
        assert (moved is not None) == (view == self.expected[view.id])
        if moved is not None:
            self.expected[view.id] = moved
            self.seen.append(moved)

    @invariant()
    def the_store_agrees(self):
        for job_id, job in self.expected.items():
            assert self.store.get(job_id, "u") == job
            assert [event.seq for event in self.store.events(job_id)] == list(
                range(1, job.version + 1)
            )

    def teardown(self):
        self.store.close()
        self.folder.cleanup()


def test_random_moves_agree_with_the_oracle(request, database_url):
    """On each kind of database, an empty one for each example."""
    postgres = database_url.startswith("postgresql")
    StoreMachine.new_database = staticmethod(
        request.getfixturevalue("new_postgres") if postgres else lambda: None
    )
    run_state_machine_as_test(
        StoreMachine,
        settings=hypothesis_settings(
            max_examples=5 if postgres else 15, stateful_step_count=30, deadline=None
        ),
    )
