"""The promise: no accepted job is lost, paid twice blindly or published twice; on random histories,
with an oracle.

There are two providers, as RunPod and as Modal behave, and the settings change in mid-history. A
provider executes and times out, loses jobs, forgets them, completes without output, shows progress
after the end, calls late and twice, answers 429 and 5xx, scales to zero, and goes away for good.
Workers are killed, delivered twice, and go on after they were given up. The bucket is away. The
broker crashes before and after every commit and every call. A run in which something of all this
was never seen fails.
"""

import asyncio
import collections
import contextlib
import functools
import json
import uuid

import httpx
from hypothesis import HealthCheck, settings as hypothesis_settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from broker.engine.admission import DiskSpace
from broker.engine.core import make_core
from broker.engine.service import JobService
from broker.errors import (
    AlreadyFinished,
    BrokerError,
    KeyReused,
    NotFound,
    StorageError,
    Unavailable,
)
from broker.jobs.model import LEGAL_TRANSITIONS, AttemptState
from broker.jobs.place import Place
from broker.jobs.policy import TRIES
from broker.providers.registry import Providers
from broker.providers.runpod import RunPod
from broker.settings import Settings
from broker.store.engine import open_engine
from broker.store.jobs import JobStore
from broker.store.uploads import UploadStore
from schemas.jobs import ErrorCode, JobRequest, JobStatus
from schemas.keys import object_key
from tests.broker.memory_bucket import MemoryBucket
from tests.broker.provider import Provider, Vague, Worker

USER = "u"
REQUEST = JobRequest.model_validate({"type": "framing", "input_key": "a.mp4"})
MISSING = JobRequest.model_validate({"type": "framing", "input_key": "nothing.mp4"})
SETTINGS = Settings(
    _env_file=None,
    RUNPOD_API_KEY="runpod-key",
    RUNPOD_ENDPOINT_URL="http://runpod/v2/embedded",
    R2_ENDPOINT="http://bucket",
    R2_ACCESS_KEY_ID="x",
    R2_SECRET_ACCESS_KEY="x",
    R2_BUCKET_NAME="x",
    REELBROKER_API_KEY="x" * 16,
    REELBROKER_USER_ID=USER,
    REELBROKER_PUBLIC_URL="http://broker",
    REELBROKER_RUNPOD_CALLS_PER_SECOND=1000,
)
BOTH = Place("runpod", "http://runpod/v2/embedded"), Place("modal", "http://modal/v2/embedded")
#: What the settings may name.
PLACES = (BOTH, BOTH[::-1], BOTH[:1], BOTH[1:])
#: What the provider may do with one call; None: what it should.
FAULTS = (None, "refuse", "429", "500", "execute-and-500", "execute-and-time-out", "cut-off", "400")
WORKER_CODES = [code for code in ErrorCode if code is not ErrorCode.PROVIDER_REFUSED]


def when(condition):
    """Makes a rule do nothing while it cannot be. No precondition: which of two brokers is faster
    depends on the machine, and what hypothesis draws may not.
    """

    def conditional(step):
        @functools.wraps(step)
        def stepped(self, *args, **kwargs):
            return step(self, *args, **kwargs) if condition(self) else None

        return stepped

    return conditional


class Crash(BaseException):
    """The broker's process ends here."""


class Boundaries:
    """Counts commits and calls; crashes at the one that is chosen, before or after it."""

    def __init__(self):
        self.until_crash = None

    def pass_one(self):
        if self.until_crash is not None:
            self.until_crash -= 1
            if self.until_crash < 0:
                raise Crash

    def around(self, work):
        """Returns `work` with a boundary on either side."""

        def bounded(*args, **kwargs):
            self.pass_one()
            result = work(*args, **kwargs)
            self.pass_one()
            return result

        return bounded


class Bounded:
    """Some methods of an object, each between two boundaries."""

    def __init__(self, inner, boundaries, names):
        self._inner = inner
        for name in names:
            setattr(self, name, boundaries.around(getattr(inner, name)))

    def __getattr__(self, name):
        return getattr(self._inner, name)


class Execution:
    """A worker's process on one delivery of a job. It looks at the fence, and only later
    commits.
    """

    def __init__(self, remote, bucket, number):
        self.remote_id, self.sent, self.number = remote["id"], remote["sent"], number
        self.worker = Worker(bucket, remote["sent"])
        self.looked = self.over = False


class Coverage:
    """What was seen in all histories together."""

    def __init__(self):
        self.edges, self.codes, self.ends = set(), set(), collections.Counter()
        self.crashes = self.late_commits = self.second_deliveries = self.orphans = 0
        self.replays = self.retries = self.listings = 0
        self.moved = self.out_of_reach = self.changes = 0


class Promise(RuleBasedStateMachine):
    """One broker, one provider, one bucket; a few jobs. `store` and `coverage` are set by the
    test.
    """

    jobs = Bundle("jobs")
    store = coverage = None

    @initialize()
    def begin(self, look=True):
        self.now = 1_700_000_000_000
        self.bucket, self.provider, self.boundaries = MemoryBucket(), Provider(), Boundaries()
        self.provider.fault = self.fault
        self.bucket.write(object_key(USER, "a.mp4"), b"a video")
        self.faults, self.executions, self.accepted, self.ended = [], [], {}, {}
        self.keys = {}
        # Histories share a database.
        self.name = uuid.uuid4().hex
        self.draining, self.places = False, PLACES[0]
        self.runner = asyncio.Runner()
        self.restart()
        self.submit(None, REQUEST, None)
        if look:
            self.look(0, None, 1)

    def restart(self):
        """A new process: nothing is kept but the database and what lies outside."""
        self.boundaries.until_crash = None
        names = ("add", "transition", "touch", "note", "hint", "set_flag")
        store = Bounded(self.store, self.boundaries, names)
        bucket = Bounded(self.bucket, self.boundaries, ("write",))
        self.http = httpx.AsyncClient(transport=self.provider)
        known = {
            "runpod": RunPod(self.http, "runpod-key", 1000),
            "modal": Vague(self.http, "runpod-key", 1000),
        }
        providers = Providers(known, self.places)
        core = make_core(
            SETTINGS, store, UploadStore(self.store._engine), bucket, providers, lambda: self.now
        )
        self.reconciler, self.orphans, self.drain = core.reconciler, core.orphans, core.drain
        self.listings = core.listings
        self.drain.is_on = self.draining
        disk = DiskSpace(None, 0)
        watched_by_nobody = None
        self.service = JobService(
            SETTINGS,
            store,
            bucket,
            self.reconciler,
            self.drain,
            watched_by_nobody,
            disk,
            wake=lambda: None,
            clock=lambda: self.now,
        )

    def fault(self, request):
        """Does with a call to the provider what is next in line."""
        self.boundaries.pass_one()
        fault = self.faults.pop(0) if self.faults else None
        if fault in ("execute-and-500", "execute-and-time-out"):
            self.provider.carry_out(request)
        match fault:
            case "refuse":
                raise httpx.ConnectError("refused", request=request)
            case "cut-off":
                raise httpx.RemoteProtocolError("cut off", request=request)
            case "execute-and-time-out":
                raise httpx.ReadTimeout("no answer", request=request)
            case "429" | "500" | "400":
                return httpx.Response(int(fault))
            case "execute-and-500":
                return httpx.Response(502)
        reply = self.provider.carry_out(request)
        self.boundaries.pass_one()
        return reply

    def run(self, work):
        """Runs a piece of the broker, to its end or to a crash."""
        try:
            return self.runner.run(work)
        except Crash:
            self.coverage.crashes += 1
            self.restart()
            return None

    # ── what clients do ───────────────────────────────────────────────────────────────────────────

    @rule(
        target=jobs,
        key=st.sampled_from([None, None, "k1", "k2"]),
        request=st.sampled_from([REQUEST, REQUEST, REQUEST, MISSING]),
        crash=st.sampled_from([None, None, None, 0, 1]),
    )
    def submit(self, key, request, crash):
        key = key and f"{key}-{self.name}"
        self.boundaries.until_crash = crash
        try:
            reply = self.run(self.service.submit(USER, request, key))
            self.boundaries.until_crash = None
            # Not acknowledged: the client asks again.
            if reply is None and key is not None:
                reply = self.run(self.service.submit(USER, request, key))
        except KeyReused:
            assert self.keys[key][1] != request
            return None
        except Unavailable:
            assert self.draining
            assert key not in self.keys
            return None
        if reply is None:
            return None
        job, replayed = reply
        if key in self.keys:
            assert (job.id, replayed) == (self.keys[key][0], True)
            self.coverage.replays += 1
        elif key is not None:
            self.keys[key] = (job.id, request)
        self.accepted.setdefault(job.id, {})
        return job.id

    @rule(target=jobs, pick=st.integers(0, 99))
    @when(lambda self: self.failed())
    def retry(self, pick):
        """A job that failed is sent again: one new job, however often it is asked for."""
        job = self.choose(self.failed(), pick)
        try:
            again, _ = self.run(self.service.retry(USER, job))
            assert self.run(self.service.retry(USER, job))[0].id == again.id
        except Unavailable:
            assert self.draining
            return None
        assert again.retry_of == job
        self.accepted.setdefault(again.id, {})
        self.coverage.retries += 1
        return again.id

    @rule(job=jobs, crash=st.sampled_from([None, None, 0, 1]))
    def cancel(self, job, crash):
        if job is None:
            return
        self.boundaries.until_crash = crash
        with contextlib.suppress(AlreadyFinished):
            self.run(self.service.cancel(USER, job))
        self.boundaries.until_crash = None

    # ── what the broker does ──────────────────────────────────────────────────────────────────────

    @rule(
        after=st.sampled_from([0, 1, 5, 15, 40, 130, 700]),
        crash=st.one_of(st.none(), st.none(), st.integers(0, 9)),
        brokers=st.sampled_from([1, 1, 1, 2]),
    )
    def look(self, after, crash, brokers):
        """Everything that is due after a while, once; by two brokers at the same moment,
        sometimes.
        """
        self.now += after * 1000
        self.boundaries.until_crash = crash
        for job, _ in self.store.due(self.now, 1000):
            if job.id in self.accepted:
                self.run(self.reconcile(job.id, brokers))
        for _, orphan in self.store.orphans(self.now):
            if orphan.job_id in self.accepted:
                self.coverage.orphans += 1
                self.run(self.release(orphan.token))
        self.boundaries.until_crash = None

    async def reconcile(self, job_id, brokers):
        looks = [self.look_safely(job_id) for _ in range(brokers)]
        await asyncio.gather(*looks)

    async def look_safely(self, job_id):
        try:
            await self.reconciler.reconcile(job_id)
        except BrokerError:
            await self.reconciler.postpone(job_id)

    async def release(self, token):
        with contextlib.suppress(BrokerError):
            await self.orphans.release(token)

    @rule()
    def lists(self):
        """The user's folders are listed, as where very many jobs are overdue; later looks may use
        that.
        """
        with contextlib.suppress(StorageError):
            self.run(self.listings.refresh(least=1))
        self.coverage.listings += self.listings.lacks(USER, "nothing")

    @rule(
        after=st.sampled_from([0, 5, 9_000, 100_000]),
        draining=st.sampled_from([False, False, True]),
    )
    def restarts(self, after, draining):
        """After a while in which nobody looked."""
        self.now += after * 1000
        self.draining = draining
        self.restart()

    @rule(places=st.sampled_from(range(4)))
    def settings_change(self, places):
        """Attempts stay with the provider that has them."""
        self.places = PLACES[places]
        self.coverage.changes += 1
        self.restart()

    # ── what the provider does ────────────────────────────────────────────────────────────────────

    @rule(faults=st.lists(st.sampled_from(FAULTS), min_size=1, max_size=4))
    def provider_is_in_trouble(self, faults):
        self.faults = faults

    @rule(host=st.sampled_from(["runpod", "modal"]), after=st.sampled_from([0, 40, 700]))
    def provider_is_away(self, host, after):
        """For a while, or until the end of the history: the other one takes what it can."""
        away = self.provider.away
        self.provider.away = away - {host} if host in away else away | {host}
        self.look(after, None, 1)

    @rule(
        workers=st.sampled_from(
            [{}, {"idle": 1}, {"throttled": 1}, {"unhealthy": 1}, {"initializing": 1}]
        )
    )
    def provider_scales(self, workers):
        self.provider.workers = workers

    @rule(away=st.booleans())
    def bucket_is_away(self, away):
        self.bucket.away = away

    @rule(pick=st.integers(0, 99))
    @when(lambda self: self.waiting())
    def provider_starts_a_worker(self, pick):
        self.deliver(self.choose(self.waiting(), pick))

    @rule(pick=st.integers(0, 99))
    @when(lambda self: self.waiting("IN_PROGRESS"))
    def provider_delivers_again(self, pick):
        """What one worker has is given to another."""
        self.coverage.second_deliveries += (
            self.deliver(self.choose(self.waiting("IN_PROGRESS"), pick)) is not None
        )

    @rule(pick=st.integers(0, 99))
    @when(lambda self: self.waiting())
    def a_fast_worker_is_done_before_anybody_looks(self, pick):
        execution = self.deliver(self.choose(self.waiting(), pick))
        if execution is not None:
            execution.looked = True
            self.commit(execution, "output", lose=False)

    @rule(pick=st.integers(0, 99), code=st.sampled_from(WORKER_CODES))
    @when(lambda self: self.waiting())
    def a_worker_fails_at_once(self, pick, code):
        execution = self.deliver(self.choose(self.waiting(), pick))
        if execution is not None:
            execution.over = True
            self.answer(execution.remote_id, status="FAILED", error="x", output=failure(code))

    @rule()
    @when(lambda self: self.waiting())
    def the_queue_expires(self):
        """No worker came in a day; the provider has deleted what waited."""
        for remote in self.waiting():
            del self.provider.jobs[remote["id"]]
        self.now += 100_000_000
        self.look(0, None, 1)
        self.look(40, None, 1)

    def deliver(self, remote):
        """A worker takes a job; returns its execution, or None where it is fenced, or cannot write
        that it began.
        """
        if self.bucket.away:
            return None
        remote["status"] = "IN_PROGRESS"
        execution = Execution(remote, self.bucket, len(self.executions))
        if execution.worker.told_to_stop():
            self.answer(remote["id"], status="FAILED", error="stopped", output=failure("cancelled"))
            return None
        execution.worker.start(remote["id"])
        self.executions.append(execution)
        return execution

    @rule(
        pick=st.integers(0, 99),
        how=st.sampled_from(["forget", "cancel", "time-out", "platform-failure"]),
    )
    @when(lambda self: self.provider.jobs)
    def provider_ends_a_job(self, pick, how):
        """Whatever its worker does meanwhile."""
        remote = self.choose(list(self.provider.jobs.values()), pick)
        if remote is None:
            return
        if how == "forget":
            del self.provider.jobs[remote["id"]]
        elif remote["status"] in ("IN_QUEUE", "IN_PROGRESS"):
            remote.pop("output", None)
            remote["status"] = {"cancel": "CANCELLED", "time-out": "TIMED_OUT"}.get(how, "FAILED")

    @rule(pick=st.integers(0, 99), token_is_right=st.booleans())
    @when(lambda self: self.provider.jobs)
    def provider_calls(self, pick, token_is_right):
        """At any time, any number of times."""
        remote = self.choose(list(self.provider.jobs.values()), pick)
        if remote is None:
            return
        sent = remote["sent"]["input"]
        token = sent["attempt_token"] if token_is_right else "0" * 32
        try:
            self.run(self.service.hint(sent["job_id"], token, remote["id"]))
        except NotFound:
            assert not token_is_right

    # ── what workers do ───────────────────────────────────────────────────────────────────────────

    @rule(pick=st.integers(0, 99), progress=st.integers(0, 99))
    @when(lambda self: self.executions)
    def worker_tells_progress(self, pick, progress):
        """Also after the end: then it is shown again, as on the platform."""
        execution = self.choose(self.executions, pick)
        if execution is not None and execution.remote_id in self.provider.jobs:
            remote = self.provider.jobs[execution.remote_id]
            if remote["status"] in ("IN_PROGRESS", "COMPLETED"):
                remote.update(
                    status="IN_PROGRESS", output={"phase": "processing", "progress": progress}
                )

    @rule(pick=st.integers(0, 99))
    @when(lambda self: self.alive())
    def worker_looks_at_the_fence(self, pick):
        execution = self.choose(self.alive(), pick)
        if execution is None or self.bucket.away:
            return
        if execution.worker.told_to_stop():
            execution.over = True
            self.answer(
                execution.remote_id, status="FAILED", error="stopped", output=failure("cancelled")
            )
        else:
            execution.looked = True

    @rule(
        pick=st.integers(0, 99),
        answer=st.sampled_from(["output", "output", "empty", "none"]),
        lose=st.integers(0, 9),
    )
    @when(lambda self: self.alive(looked=True))
    def worker_commits(self, pick, answer, lose):
        execution = self.choose(self.alive(looked=True), pick)
        if execution is not None and not self.bucket.away:
            self.commit(execution, answer, lose == 0)

    @rule(
        pick=st.integers(0, 99),
        end=st.sampled_from(["forget", "platform-failure", "cancelled-by-user"]),
    )
    @when(lambda self: self.alive(looked=True))
    def worker_is_given_up_after_its_last_look(self, pick, end):
        """And commits all the same: between looking and committing there is always a moment."""
        execution = self.choose(self.alive(looked=True), pick)
        job_id = execution.sent["input"]["job_id"]
        if end == "cancelled-by-user":
            self.cancel(job_id, None)
        elif end == "forget":
            self.provider.jobs.pop(execution.remote_id, None)
            self.look(5, None, 1)
        else:
            self.answer(execution.remote_id, status="FAILED", error="lost")
        self.look(40, None, 1)
        if not self.bucket.away and not execution.over:
            self.commit(execution, "output", lose=False)

    def commit(self, execution, answer, lose):
        """What it found of the fence may be old by now. Of several deliveries, the first one
        counts.
        """
        execution.over = True
        self.coverage.late_commits += execution.worker.told_to_stop()
        key = execution.worker.commit(self.bucket, execution.number)
        if lose and key is not None:
            self.bucket.delete(object_key(USER, key))
        output = {"output_key": key} if answer == "output" else None
        if answer != "none":
            self.answer(execution.remote_id, status="COMPLETED", output=output)

    @rule(pick=st.integers(0, 99), code=st.sampled_from([None, *WORKER_CODES]))
    @when(lambda self: self.alive())
    def worker_fails(self, pick, code):
        """With a word, or without one: killed."""
        execution = self.choose(self.alive(), pick)
        if execution is not None:
            execution.over = True
            self.answer(
                execution.remote_id,
                status="FAILED",
                error="x",
                output=failure(code) if code else None,
            )

    # ── the oracle ────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def no_accepted_job_is_lost_and_none_moves_after_its_end(self):
        for job_id in getattr(self, "accepted", ()):
            job = self.store.find(job_id)
            assert job is not None
            if job.status.is_terminal:
                assert self.ended.setdefault(job_id, job) == job

    @invariant()
    def each_attempt_was_sent_once(self):
        if hasattr(self, "provider"):
            sent = [job["sent"]["input"]["attempt_token"] for job in self.provider.every.values()]
            assert len(sent) == len(set(sent))

    def teardown(self):
        if hasattr(self, "runner"):
            try:
                self.everything_ends_when_all_is_well_again()
                for job_id in self.accepted:
                    self.check(job_id)
            finally:
                self.runner.run(self.http.aclose())
                self.runner.close()

    def everything_ends_when_all_is_well_again(self):
        """Nothing may wait for ever: workers take what waits, finish what they have, and every job
        ends.
        """
        self.bucket.away, self.faults, self.provider.workers = False, [], {"idle": 1}
        self.draining = False
        if len(self.provider.away) > 1:
            self.provider.away = set()
        # One that is away stays so; the settings name the other one, too.
        self.places = PLACES[0] if len(self.places) == 1 else self.places
        self.restart()
        for _ in range(80):
            self.look(120, None, 1)
            if not any(job_id in self.accepted for job_id in self.store.open_jobs()):
                break
            while self.waiting():
                self.provider_starts_a_worker(0)
            for _ in range(sum(not execution.over for execution in self.executions)):
                self.worker_looks_at_the_fence(0)
                self.worker_commits(0, "output", 1)
            # Its worker is gone, and told nothing.
            for remote in self.provider.jobs.values():
                if remote["status"] == "IN_PROGRESS":
                    remote["status"] = "TIMED_OUT"
        assert not set(self.accepted) & set(self.store.open_jobs())

    def check(self, job_id):
        """A job's whole story, at its end."""
        job, events = self.store.find(job_id), self.store.events(job_id)
        assert [event.seq for event in events] == list(range(1, job.version + 1))
        self.check_moves(events)
        attempts = self.store.attempts(job_id)
        assert [attempt.number for attempt in attempts] == list(range(1, job.attempt + 1))
        assert len(attempts) <= job.max_attempts
        failures = collections.Counter(
            attempt.error_code for attempt in attempts if attempt.error_code
        )
        assert all(count <= TRIES.get(code, 1) for code, count in failures.items())
        for attempt in attempts:
            if attempt.state is AttemptState.SUPERSEDED:
                assert (
                    self.bucket.size(f"{USER}/jobs/{job_id}/{attempt.token}/stop.json") is not None
                )
        if job.status is JobStatus.COMPLETE:
            assert (
                self.bucket.size(object_key(USER, job.output_key))
                == json.loads(job.result)["bytes"]
            )
        self.coverage.moved += len({attempt.provider for attempt in attempts}) > 1
        self.coverage.out_of_reach += any(attempt.unreachable_since for attempt in attempts)
        self.coverage.ends[job.status] += 1
        self.coverage.codes |= failures.keys() | ({job.error_code} if job.error_code else set())

    def check_moves(self, events):
        """Legal edges only; progress never falls within an attempt; one output at most."""
        status, progress, outputs = JobStatus.PENDING, 0, 0
        for event in events[1:]:
            data = json.loads(event.data)
            after = JobStatus(data.get("status", status))
            assert after in LEGAL_TRANSITIONS[status]
            self.coverage.edges.add((status, after))
            if event.kind not in ("superseded", "attempt_begun"):
                assert data.get("progress", progress) >= progress
            status, progress = after, data.get("progress", progress)
            outputs += data.get("output_key") is not None
        assert outputs == (status is JobStatus.COMPLETE)

    # ── small steps ───────────────────────────────────────────────────────────────────────────────

    def waiting(self, *more):
        """The jobs that a worker could take; a provider that is away gives out none."""
        return [
            job
            for job in self.provider.jobs.values()
            if job["status"] in ("IN_QUEUE", *more) and job["host"] not in self.provider.away
        ]

    def alive(self, looked=False):
        return [one for one in self.executions if not one.over and one.looked >= looked]

    def failed(self):
        """The jobs that may be retried."""
        return [
            job_id for job_id, job in self.ended.items() if job.status is not JobStatus.COMPLETE
        ]

    def choose(self, items, pick):
        return items[pick % len(items)] if items else None

    def answer(self, remote_id, **told):
        """What a worker returns, if the provider still knows the job and it has not ended."""
        remote = self.provider.jobs.get(remote_id)
        if remote is not None and remote["status"] == "IN_PROGRESS":
            remote.pop("output", None)
            remote.update({name: value for name, value in told.items() if value is not None})


def known_histories():
    """Rare ones, which chance alone may not find in a short run; each yields a machine to go on
    with.
    """
    for crash in range(
        12
        # At each boundary of a first look, and the run is done before the next one.
    ):
        machine = Promise()
        machine.begin(look=False)
        machine.look(0, crash, 1)
        while machine.waiting():
            machine.a_fast_worker_is_done_before_anybody_looks(0)
        yield machine
    # Until the policy has no attempt left.
    for code in WORKER_CODES:
        machine = Promise()
        machine.begin()
        for _ in range(3):
            while machine.waiting():
                machine.a_worker_fails_at_once(0, code)
            machine.look(120, None, 1)
            machine.look(120, None, 1)
        machine.no_accepted_job_is_lost_and_none_moves_after_its_end()
        machine.retry(0)
        yield machine
    yield from known_troubles()


def known_troubles():
    """The same, of the provider and the workers."""
    for end in ("forget", "platform-failure", "cancelled-by-user"):
        machine = Promise()
        machine.begin()
        machine.provider_starts_a_worker(0)
        machine.worker_looks_at_the_fence(0)
        machine.worker_is_given_up_after_its_last_look(0, end)
        yield machine
    for faults in (
        ["execute-and-time-out"],
        ["500"] * 4,
        ["400"],
        # In doubt, and no worker ever shows up.
    ):
        machine = Promise()
        machine.begin(look=False)
        machine.faults = faults
        for _ in range(6):
            machine.look(130, None, 1)
        yield machine
    # An output that is gone before anybody looks.
    machine = Promise()
    machine.begin()
    machine.provider_starts_a_worker(0)
    machine.executions[0].looked = True
    machine.commit(machine.executions[0], "output", lose=True)
    yield machine
    # A cancel before the first look, and a job that is submitted twice.
    machine = Promise()
    machine.begin(look=False)
    machine.cancel(next(iter(machine.accepted)), None)
    for _ in range(2):
        machine.submit("k1", REQUEST, None)
    machine.lists()
    machine.look(1, None, 1)
    machine.provider_starts_a_worker(0)
    machine.provider_delivers_again(0)
    yield machine
    # A provider goes away for good: with a job that waits there, and with one that runs.
    for is_running in (False, True):
        machine = Promise()
        machine.begin()
        if is_running:
            machine.provider_starts_a_worker(0)
            machine.executions[0].over = True
        machine.provider_is_away("runpod", 0)
        yield machine
    # The other provider takes what was tried in vain, whatever the settings become.
    machine = Promise()
    machine.begin()
    machine.a_worker_fails_at_once(0, ErrorCode.WORKER_LOST)
    machine.look(40, None, 1)
    machine.settings_change(2)
    machine.look(40, None, 1)
    yield machine
    # A cancel that the provider does not hear.
    machine = Promise()
    machine.begin()
    machine.provider_starts_a_worker(0)
    machine.cancel(next(iter(machine.accepted)), None)
    machine.faults = ["refuse"] * 4
    machine.look(1, None, 1)
    machine.look(130, None, 1)
    yield machine


def failure(code):
    code = ErrorCode(code)
    return {"error_code": code, "retryable": code.retryable}


def test_the_promise_holds_on_random_histories(database_url, measured):
    """Every edge of the transition table, every error code, and each kind of trouble seen; then the
    promise means something.
    """
    Promise.store = store = JobStore(open_engine(database_url))
    Promise.coverage = seen = Coverage()
    try:
        for machine in known_histories():
            machine.teardown()
        run_state_machine_as_test(
            Promise,
            settings=hypothesis_settings(
                max_examples=80 if database_url.startswith("sqlite") else 40,
                stateful_step_count=60,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        store.close()
    told = ", ".join(f"{count} {status}" for status, count in sorted(seen.ends.items()))
    measured(
        f"{database_url.split(':')[0]}: {sum(seen.ends.values())} jobs, 0 lost, 0 published "
        f"twice ({told}); {seen.crashes} crashes, "
        f"{seen.second_deliveries} second deliveries, {seen.late_commits} late commits, "
        f"{seen.orphans} looks at orphans, {seen.replays} replays, "
        f"{seen.retries} retries; {seen.changes} changes of the settings, {seen.moved} jobs tried "
        f"at both providers, {seen.out_of_reach} out of reach"
    )
    edges = {(before, after) for before, legal in LEGAL_TRANSITIONS.items() for after in legal}
    assert edges - seen.edges == set()
    assert set(ErrorCode) - {ErrorCode.CANCELLED} - seen.codes == set()
    assert min(seen.crashes, seen.second_deliveries, seen.late_commits, seen.orphans) > 0
    assert min(seen.replays, seen.retries, seen.listings) > 0
    assert min(seen.changes, seen.moved, seen.out_of_reach) > 0
    assert seen.ends[JobStatus.COMPLETE] > 20
