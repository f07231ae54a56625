"""RunPod's states and lifetimes, at times that the tests choose."""

import json
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker.embedded.queue import ENDED, LOST, JobQueue, Limits, QueuedJob, State


@pytest.fixture
def queue(tmp_path):
    """An empty queue at time 0."""
    queue = JobQueue(tmp_path / "q.db", Limits(), now=0)
    yield queue
    queue.close()


def add(queue, name="a", now=0.0, **overrides):
    fields = {
        "id": name,
        "input": {"x": 1},
        "execution_timeout": 600,
        "ttl": 86_400,
        "created_at": now,
    }
    queue.add(job := QueuedJob(**(fields | overrides)))
    return job


def test_jobs_are_handed_out_oldest_first_and_once(queue):
    """Two workers never hold the same job."""
    add(queue, "a", 0), add(queue, "b", 1), add(queue, "c", 2)
    assert [queue.take(worker, 5).id for worker in ("w1", "w1", "w2")] == ["a", "b", "c"]
    assert queue.take("w3", 5) is None


def test_the_status_has_the_fields_that_have_a_value(queue):
    """Durations in milliseconds; nothing that is not known."""
    job = add(queue)
    assert job.status() == {"id": "a", "status": "IN_QUEUE"}
    queue.take("w1", 2.5)
    queue.progress("w1", job, {"progress": 5}, 3)
    assert job.status() == {
        "id": "a",
        "status": "IN_PROGRESS",
        "workerId": "w1",
        "output": {"progress": 5},
    }
    queue.finish("w1", job, {"ok": 1}, None, 4)
    ended = {"status": "COMPLETED", "executionTime": 1500, "output": {"ok": 1}}
    assert job.status() == {"id": "a", "workerId": "w1"} | ended


def test_progress_after_the_end_is_ignored(queue):
    """A late message does not un-finish a job."""
    job = add(queue)
    queue.take("w1", 0)
    queue.finish("w1", job, {"ok": 1}, None, 1)
    queue.progress("w1", job, {"progress": 5}, 2)
    assert (job.state, job.output) == (State.COMPLETED, {"ok": 1})
    assert not queue.finish("w1", job, None, "late", 3)


@pytest.fixture
def endless(tmp_path):
    """A queue that restarts jobs without end, as Modal does."""
    queue = JobQueue(tmp_path / "endless.db", Limits(retries=None), now=0)
    yield queue
    queue.close()


def test_a_job_is_restarted_without_end_where_there_is_no_limit(endless):
    """Each worker dies; the job is there for the next one, and counts."""
    job = add(endless)
    for death in range(1, 6):
        endless.take(f"w.{death}", death * 100)
        endless.expire(death * 100 + 50)
        assert (job.state, job.retries) == (State.IN_QUEUE, death)


def test_a_worker_that_takes_a_slot_ends_the_one_before(endless):
    """Its jobs go to the next worker at once, and those of other slots stay."""
    mine, other = add(endless, "mine", 1), add(endless, "other", 2)
    assert endless.take("slot-1.a", 3) is mine
    assert endless.take("slot-2.a", 3) is other
    endless.replace("slot-1.b", 4)
    assert (mine.state, mine.retries, other.state) == (State.IN_QUEUE, 1, State.IN_PROGRESS)
    assert set(endless.workers) == {"slot-1.b", "slot-2.a"}
    assert endless.held("slot-2.a") == [other]
    assert endless.take("slot-1.b", 5) is mine


def test_a_worker_that_names_its_job_keeps_it(queue):
    """A ping without the job's name is no proof of life for the job."""
    job = add(queue)
    queue.take("w1", 0)
    for now in range(0, 60, 2):
        queue.ping("w1", ["a"], now)
        queue.expire(now)
    assert job.state is State.IN_PROGRESS
    for now in range(60, 80, 2):
        queue.ping("w1", [], now)
        queue.expire(now)
    assert (job.state, job.retries) == (State.IN_QUEUE, 1)


def test_a_job_is_lost_once_and_then_failed(queue):
    """RunPod's own retry, with RunPod's error text."""
    job = add(queue)
    queue.take("w1", 0)
    assert queue.expire(11) == []
    assert (job.state, job.retries) == (State.IN_QUEUE, 1)
    queue.take("w2", 12)
    assert queue.expire(23) == [job]
    assert (job.state, job.error) == (State.FAILED, LOST)


def test_a_result_from_a_worker_that_was_given_up_counts(queue):
    """The queue stops the worker that took over."""
    job = add(queue)
    queue.take("w1", 0)
    queue.expire(11)
    queue.take("w2", 12)
    assert queue.finish("w1", job, {"ok": 1}, None, 13)
    assert (job.state, job.worker_id) == (State.COMPLETED, "w1")
    assert queue.pop_stops("w2") == ["a"]
    assert queue.pop_stops("w2") == []


def test_a_job_that_runs_too_long_is_timed_out_and_stopped(queue):
    """executionTimeout counts from the take; the progress so far is no output."""
    job = add(queue, execution_timeout=30)
    queue.take("w1", 100)
    for now in range(100, 134, 2):
        queue.progress("w1", job, {"progress": 1}, now)
        queue.expire(now)
    assert (job.state, job.output) == (State.TIMED_OUT, None)
    assert queue.pop_stops("w1") == ["a"]


def test_a_stop_is_repeated_until_the_worker_lets_go(queue):
    """The SDK loses a stop that comes too early; its pings show that it works on."""
    job = add(queue)
    queue.take("w1", 0)
    queue.cancel(job, 1)
    assert queue.pop_stops("w1") == ["a"]
    queue.ping("w1", ["a"], 2)
    assert queue.pop_stops("w1") == ["a"]
    queue.ping("w1", [], 4)
    assert queue.pop_stops("w1") == []


def test_a_lost_job_is_next(queue):
    """The job has waited its turn already."""
    job = add(queue, "lost", 0)
    queue.take("w1", 1)
    add(queue, "later", 2)
    queue.expire(12)
    assert queue.take("w2", 15) is job


def test_a_job_whose_hand_over_failed_is_next_and_was_not_tried(queue):
    """The worker hung up while it waited: nothing has run."""
    job = add(queue, "a", 0)
    add(queue, "b", 1)
    queue.take("w1", 2)
    queue.give_back(job)
    assert job.status() == {"id": "a", "status": "IN_QUEUE"}
    assert queue.take("w2", 3) is job


def test_a_worker_whose_own_checks_fail_is_unhealthy(queue):
    """The SDK reports this once, before the worker ends."""
    queue.ping("w1", [], 0)
    queue.ping("w2", [], 0, is_healthy=False)
    queue.ping("w2", [], 1)
    assert queue.count_workers() == {"idle": 1, "unhealthy": 1}


def test_what_is_removed_is_not_written_again(queue, tmp_path):
    """A save of a removed job must not bring the job back after a restart."""
    job = add(queue, ttl=1)
    queue.expire(2)
    queue.cancel(job, 2)
    again = JobQueue(tmp_path / "q.db", Limits(), now=1)
    assert again.get("a") is None
    again.close()


def test_a_worker_that_finished_is_not_stopped(queue):
    """Its next ping may still name the job."""
    job = add(queue)
    queue.take("w1", 0)
    queue.finish("w1", job, {}, None, 1)
    queue.ping("w1", ["a"], 2)
    assert queue.pop_stops("w1") == []


@pytest.mark.parametrize("taken", [False, True], ids=["waiting", "running"])
def test_a_job_is_deleted_when_its_ttl_is_over(queue, taken):
    """Whatever its state, counted from the submit; a running one is stopped."""
    add(queue, ttl=20)
    if taken:
        queue.take("w1", 15)
    queue.expire(21)
    assert queue.get("a") is None
    assert queue.pop_stops("w1") == (["a"] if taken else [])


def test_a_result_is_kept_for_its_time(queue):
    """30 minutes after the end."""
    job = add(queue)
    queue.take("w1", 0)
    queue.finish("w1", job, {}, None, 5)
    queue.expire(1805)
    assert queue.get("a") is job
    queue.expire(1806)
    assert queue.get("a") is None


def test_a_requeued_job_is_not_stopped_by_its_earlier_run(queue):
    """The worker that lost the job takes the job again."""
    add(queue)
    queue.take("w1", 0)
    queue.expire(11)
    queue.take("w1", 12)
    assert queue.pop_stops("w1") == []


def test_a_file_of_an_older_release_is_read(tmp_path):
    """Its rows have fields that this release does not have."""
    queue = JobQueue(tmp_path / "q.db", Limits(), now=0)
    add(queue)
    queue._file.execute("UPDATE queue SET job = json_set(job, '$.sync', 0, '$.stream', '[]')")
    queue.close()
    again = JobQueue(tmp_path / "q.db", Limits(), now=1)
    assert again.take("w1", 2).id == "a"
    again.close()


def test_the_queue_survives_a_restart(tmp_path):
    """Jobs keep state, output and retries. Workers of running jobs get time to call again."""
    queue = JobQueue(tmp_path / "q.db", Limits(), now=0)
    add(queue, "waiting", 1, webhook="http://x/"), add(queue, "running", 0)
    queue.take("w1", 2)
    again = JobQueue(tmp_path / "q.db", Limits(), now=100)
    again.expire(105)
    assert again.get("waiting").webhook == "http://x/"
    assert (again.get("running").state, again.get("running").worker_id) == (State.IN_PROGRESS, "w1")
    again.expire(111)
    assert again.get("running").state is State.IN_QUEUE
    queue.close(), again.close()


class QueueMachine(RuleBasedStateMachine):
    """Random clients, workers, passing time and restarts."""

    workers = st.sampled_from(["w1", "w2", "w3"])

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.now = 0.0
        self.path = Path(self.folder.name) / "q.db"
        self.queue = JobQueue(self.path, Limits(), self.now)
        self.jobs = []
        self.ended = {}

    def job(self, data):
        return data.draw(st.sampled_from(self.jobs)) if self.jobs else None

    @rule()
    def submit(self):
        self.jobs.append(add(self.queue, f"j{len(self.jobs)}", self.now))

    @rule(worker=workers)
    def take(self, worker):
        if job := self.queue.take(worker, self.now):
            assert (job.state, job.worker_id) == (State.IN_PROGRESS, worker)

    @rule(worker=workers)
    def take_in_vain(self, worker):
        before = self.queue.count_jobs()
        if job := self.queue.take(worker, self.now):
            self.queue.give_back(job)
        assert self.queue.count_jobs() == before

    @rule()
    def restart(self):
        self.queue.close()
        self.queue = JobQueue(self.path, Limits(), self.now)
        self.jobs = [self.queue.get(job.id) or job for job in self.jobs]

    @rule(data=st.data(), worker=workers, error=st.none() | st.just("x"))
    def finish(self, data, worker, error):
        job = self.job(data)
        if job is not None and self.queue.get(job.id) is job:
            was_open = job.state not in ENDED
            assert self.queue.finish(worker, job, {"by": worker}, error, self.now) == was_open

    @rule(data=st.data(), worker=workers)
    def report(self, data, worker):
        job = self.job(data)
        if job is not None:
            self.queue.ping(worker, [job.id], self.now)
            self.queue.progress(worker, job, {"progress": 1}, self.now)

    @rule(data=st.data())
    def cancel(self, data):
        job = self.job(data)
        if job is not None and self.queue.get(job.id) is job:
            self.queue.cancel(job, self.now)

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0, 700.0]))
    def wait(self, seconds):
        self.now += seconds
        self.queue.expire(self.now)

    @invariant()
    def an_end_is_an_end(self):
        for job in self.jobs:
            if job.id in self.ended:
                assert (job.state, job.output) == self.ended[job.id]
            elif job.state in ENDED:
                self.ended[job.id] = (job.state, job.output)

    @invariant()
    def every_job_is_somewhere(self):
        there = [job for job in self.jobs if self.queue.get(job.id)]
        assert sum(self.queue.count_jobs().values()) == len(there)
        gone = [job for job in self.jobs if self.queue.get(job.id) is None]
        assert all(job.state in ENDED for job in gone)
        assert all(job.retries <= 1 for job in self.jobs)
        assert all((job.worker_id is not None) for job in there if job.state is State.IN_PROGRESS)
        assert all((job.worker_id is None) for job in there if job.state is State.IN_QUEUE)

    @invariant()
    def the_file_holds_what_memory_holds(self):
        with sqlite3.connect(self.path) as file:
            rows = {
                name: json.loads(job) for name, job in file.execute("SELECT id, job FROM queue")
            }
        file.close()
        there = [job for job in self.jobs if self.queue.get(job.id)]
        # A restart renews leases in memory only: the next one would, too.
        expected = {job.id: vars(job) | {"input": None, "lease_until": None} for job in there}
        assert {
            name: row | {"input": None, "lease_until": None} for name, row in rows.items()
        } == expected

    def teardown(self):
        self.queue.close()
        self.folder.cleanup()


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
