"""Where a job goes by what can be seen of it. The bucket is real; the provider is steered; the
clock is ours.
"""

import httpx
import pytest

from broker.bucket import Bucket, open_bucket
from broker.clock import now_ms
from broker.engine.core import make_core
from broker.errors import ProviderError, StorageError
from broker.jobs.model import Attempt, AttemptState, EventKind, JobChange
from broker.jobs.place import Place
from broker.providers.registry import Providers, make_providers
from broker.providers.runpod import RunPod
from broker.store.uploads import UploadStore
from schemas.jobs import ErrorCode, JobStatus, Phase
from schemas.keys import object_key
from tests.broker.provider import Provider, Vague, Worker, refuse


class Scene:
    """One job, one reconciler, one provider."""

    def __init__(self, settings, store, job):
        self.settings = settings
        self.store = store
        self.provider = Provider()
        self.bucket = open_bucket(settings)
        self.now = now_ms()
        self.id = store.add(job.model_copy(update={"user_id": settings.user_id})).id
        self.bucket.write(object_key(settings.user_id, job.input_key), b"a video")

    async def look(self, seconds_later=0.0):
        """One look at the job, as by a broker that has just been started."""
        self.now += int(seconds_later * 1000)
        async with httpx.AsyncClient(transport=self.provider) as http:
            providers = make_providers(self.settings, http)
            core = make_core(
                self.settings,
                self.store,
                UploadStore(self.store._engine),
                self.bucket,
                providers,
                lambda: self.now,
            )
            await core.reconciler.reconcile(self.id)
        return self.job

    @property
    def job(self):
        return self.store.load(self.id)[0]

    @property
    def attempt(self):
        return self.store.load(self.id)[1][-1]

    def worker(self, number=-1):
        return Worker(self.bucket, list(self.provider.jobs.values())[number]["sent"])

    def cancel(self):
        self.store.transition(
            self.job,
            EventKind.CANCEL_REQUESTED,
            JobChange.model_validate({"cancel_requested_at": self.now}),
        )


@pytest.fixture
def scene(settings, store, make_job):
    """A scene with a job that nobody has looked at yet."""
    return Scene(settings(), store, make_job())


@pytest.fixture
async def submitted(scene):
    """A scene with a job that the provider has."""
    await scene.look()
    return scene


async def test_a_new_job_is_submitted_once(scene):
    """The provider gets token and deadlines; the job gets the provider's id."""
    job = await scene.look()
    assert (job.status, job.phase, job.provider_job_id, job.attempt) == (
        "processing",
        "queued",
        "rp-1",
        1,
    )
    sent = scene.provider.only()["sent"]["input"]
    assert (sent["job_id"], sent["attempt_token"]) == (scene.id, scene.attempt.token)
    await scene.look()
    assert len(scene.provider.submits) == 1


async def test_an_unreachable_provider_keeps_the_job_pending(scene):
    """It goes when the provider is back, as the same attempt."""
    scene.provider.fault = refuse
    for _ in range(3):
        job = await scene.look()
    assert (job.status, job.attempt, scene.attempt.state) == (
        JobStatus.PENDING,
        1,
        AttemptState.READY,
    )
    assert "cannot be reached" in job.message
    scene.provider.fault = lambda _: httpx.Response(429)
    assert "takes no more jobs for the moment" in (await scene.look()).message
    scene.provider.fault = None
    job = await scene.look()
    assert (job.status, job.attempt) == (JobStatus.PROCESSING, 1)


async def test_a_refused_job_is_an_error(scene):
    """The same request would be refused again."""
    scene.provider.fault = lambda _: httpx.Response(400)
    job = await scene.look()
    assert (job.status, job.error_code) == (JobStatus.ERROR, ErrorCode.PROVIDER_REFUSED)


def executes_and_times_out(provider):
    """A fault: the job is queued, but the caller never hears of it."""

    def fault(request):
        if request.url.path.endswith("/run"):
            provider.carry_out(request)
            raise httpx.ReadTimeout("no answer", request=request)

    return fault


async def test_a_submit_that_timed_out_is_adopted_when_its_worker_shows_up(scene):
    """An unknown submit is never repeated while it may be running."""
    scene.provider.fault = executes_and_times_out(scene.provider)
    job = await scene.look()
    assert (job.status, scene.attempt.state) == (JobStatus.PROCESSING, AttemptState.SUBMITTING)
    await scene.look(5)
    assert len(scene.provider.submits) == 1
    scene.worker().start("rp-1")
    job = await scene.look(5)
    assert (job.provider_job_id, scene.attempt.state) == ("rp-1", AttemptState.SUBMITTED)


async def test_a_submit_that_timed_out_is_superseded_after_the_grace_period(scene):
    """The old attempt is fenced before the next one begins."""
    scene.provider.fault = executes_and_times_out(scene.provider)
    await scene.look()
    await scene.look(scene.settings.submit_grace_seconds + 1)
    assert scene.worker(0).told_to_stop()
    scene.provider.fault = None
    job = await scene.look(5)
    assert (job.attempt, job.provider_job_id, len(scene.provider.submits)) == (2, "rp-2", 2)


async def test_a_broker_that_died_while_submitting_does_not_submit_again(scene):
    """Restarted, it looks for signs first."""
    attempt = Attempt(
        token="0" * 32,
        job_id=scene.id,
        number=1,
        state=AttemptState.SUBMITTING,
        provider="runpod",
        target="http://runpod/v2/embedded",
        created_at=scene.now,
        submitted_at=scene.now,
    )
    scene.store.transition(
        scene.job,
        EventKind.ATTEMPT_BEGUN,
        JobChange.model_validate({"attempt": 1, "phase": Phase.SUBMITTING}),
        attempt,
    )
    await scene.look(5)
    assert scene.provider.submits == []
    sent = {
        "input": {"job_id": scene.id, "user_id": scene.settings.user_id, "attempt_token": "0" * 32}
    }
    Worker(scene.bucket, sent).finish()
    assert (await scene.look(5)).status is JobStatus.COMPLETE


async def test_a_committed_result_completes_the_job_whatever_the_provider_says(submitted):
    """The bucket is the proof; the provider is asked for the bill, at most."""
    key = submitted.worker().finish()
    submitted.provider.fault = refuse
    job = await submitted.look()
    assert (job.status, job.output_key, job.progress, job.gpu_seconds) == (
        JobStatus.COMPLETE,
        key,
        100,
        3.5,
    )
    assert job.evidence_source == "bucket:result.json"
    assert submitted.attempt.state is AttemptState.ENDED


async def test_an_ended_job_never_moves_again(submitted):
    """Later looks at it change nothing."""
    submitted.worker().finish()
    job = await submitted.look()
    submitted.provider.only()["status"] = "FAILED"
    assert await submitted.look() == job


async def test_a_result_without_its_output_is_not_a_success(submitted):
    """The job goes again rather than point at a file of another size."""
    submitted.worker().finish(claimed_bytes=999)
    job = await submitted.look()
    assert (job.status, job.output_key) == (JobStatus.PROCESSING, None)
    assert "Trying again" in job.message


async def test_completed_without_a_result_is_not_a_success(submitted):
    """RunPod's word alone completes nothing."""
    submitted.provider.only().update(status="COMPLETED", output={"output_key": "x.mp4"})
    job = await submitted.look()
    assert (job.status, submitted.attempt.state) == (JobStatus.PROCESSING, AttemptState.SUPERSEDED)


async def test_progress_is_shown_and_never_falls(submitted):
    """A late message does not take the bar back."""
    remote = submitted.provider.only()
    seen = []
    for told in (10, 40, 30, 41):
        remote.update(status="IN_PROGRESS", output={"phase": "processing", "progress": told})
        seen.append((await submitted.look()).progress)
    assert seen == [10, 40, 40, 41]
    assert submitted.job.started_at is not None


async def test_nonsense_for_progress_is_no_progress(submitted):
    """A worker of another version cannot break the broker."""
    submitted.provider.only().update(status="IN_PROGRESS", output=["?"])
    job = await submitted.look()
    assert (job.phase, job.progress) == (Phase.STARTING, 0)


async def test_a_provider_in_trouble_changes_nothing(submitted):
    """5xx at status time is no news."""
    before = submitted.job
    submitted.provider.fault = lambda _: httpx.Response(503)
    with pytest.raises(ProviderError):
        await submitted.look()
    assert submitted.job == before


async def test_a_bucket_in_trouble_changes_nothing(submitted, settings):
    """Without the proof nothing is decided."""
    before = submitted.job
    submitted.bucket = open_bucket(settings(R2_ENDPOINT="http://127.0.0.1:9"))
    submitted.provider.only()["status"] = "COMPLETED"
    with pytest.raises(StorageError):
        await submitted.look()
    assert submitted.job == before


async def test_a_forgotten_job_is_lost_only_if_it_stays_forgotten(submitted):
    """One 404 is noted; only a lasting one begins the next attempt."""
    forgotten = submitted.provider.jobs.copy()
    submitted.provider.jobs.clear()
    await submitted.look()
    assert (await submitted.look(5)).attempt == 1
    submitted.provider.jobs.update(forgotten)
    await submitted.look(5)
    submitted.provider.jobs.clear()
    await submitted.look(submitted.settings.lost_after_seconds)
    assert submitted.attempt.state is AttemptState.SUBMITTED
    await submitted.look(submitted.settings.lost_after_seconds + 1)
    assert submitted.attempt.state is AttemptState.SUPERSEDED


async def test_a_result_is_found_after_the_provider_forgot(submitted):
    """RunPod keeps results for 30 minutes; the bucket keeps them."""
    worker = submitted.worker()
    submitted.provider.jobs.clear()
    await submitted.look()
    worker.finish()
    assert (await submitted.look(86_400)).status is JobStatus.COMPLETE


async def test_what_another_try_would_not_mend_is_an_error_at_once(submitted):
    """One attempt, the worker's own sentence."""
    output = {"error_code": "invalid_media", "retryable": False}
    submitted.provider.only().update(status="FAILED", error="Not a video.", output=output)
    job = await submitted.look()
    assert (job.status, job.error_code, job.attempt) == (
        JobStatus.ERROR,
        ErrorCode.INVALID_MEDIA,
        1,
    )
    assert job.error == "Not a video."


class TestTimedOut:
    """RunPod's TIMED_OUT: expired in the queue, lost with its worker, or longer than it may be."""

    async def test_a_run_that_reached_its_limit_is_an_error_at_once(self, submitted):
        """The same would take as long again."""
        ran = submitted.attempt.timeout_seconds
        submitted.provider.only().update(status="TIMED_OUT", executionTime=ran * 1000)
        job = await submitted.look(ran)
        assert (job.status, job.error_code) == (JobStatus.ERROR, ErrorCode.EXECUTION_TIMEOUT)

    async def test_what_no_worker_took_goes_once_more(self, submitted):
        """It expired before pickup, whatever the clock says."""
        submitted.provider.only().update(status="TIMED_OUT")
        await submitted.look(86_400)
        assert submitted.attempt.error_code is ErrorCode.QUEUE_TIMEOUT

    @pytest.mark.parametrize("told", [{"executionTime": 42_000}, {}], ids=["billed", "not-billed"])
    async def test_a_run_that_ended_before_its_limit_was_lost(self, submitted, told):
        """A worker took it and did not report back: another one may."""
        submitted.worker().start("rp-1")
        submitted.provider.only().update(status="IN_PROGRESS")
        await submitted.look(600)
        submitted.provider.only().update(status="TIMED_OUT", **told)
        await submitted.look(60)
        assert submitted.attempt.error_code is ErrorCode.WORKER_LOST

    async def test_a_start_that_was_at_no_look_counts(self, submitted):
        """`started.json` tells of it; its clock is the worker's, and may be wrong."""
        Worker(submitted.bucket, submitted.provider.only()["sent"]).start("rp-1")
        submitted.provider.only().update(status="TIMED_OUT")
        await submitted.look(60)
        assert submitted.attempt.error_code is ErrorCode.WORKER_LOST

    async def test_the_start_of_an_attempt_before_says_nothing(self, scene):
        """The job keeps its first start; each attempt has its own."""
        await scene.look()
        scene.provider.only().update(status="IN_PROGRESS")
        await scene.look(5)
        scene.provider.only().update(status="FAILED", error="lost")
        await scene.look(5)
        job = await scene.look(30)
        assert (job.attempt, job.started_at is not None, scene.attempt.started_at) == (
            2,
            True,
            None,
        )
        scene.provider.jobs["rp-2"].update(status="TIMED_OUT")
        await scene.look(60)
        assert scene.attempt.error_code is ErrorCode.QUEUE_TIMEOUT


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"status": "FAILED", "error": "job timed out after 1 retries"}, id="platform"),
        pytest.param(
            {
                "status": "FAILED",
                "error": "x",
                "output": {"error_code": "storage_unavailable", "retryable": True},
            },
            id="worker",
        ),
        pytest.param(
            {
                "status": "FAILED",
                "error": "x",
                "output": {"error_code": "cancelled", "retryable": False},
            },
            id="fenced-by-a-move-that-lost",
        ),
    ],
)
async def test_what_another_try_may_mend_is_tried_until_the_attempts_are_used_up(scene, answer):
    """Three attempts, each fenced, each with a token of its own; then an error that says so."""
    for number in (1, 2, 3):
        job = await scene.look(120)
        assert job.attempt == number
        list(scene.provider.jobs.values())[-1].update(answer)
        job = await scene.look()
    assert job.status is JobStatus.ERROR
    assert "after 3 attempts" in job.error
    told = answer.get("output", {}).get("error_code", "cancelled")
    assert job.error_code == (ErrorCode.WORKER_LOST if told == "cancelled" else told)
    tokens = {remote["sent"]["input"]["attempt_token"] for remote in scene.provider.jobs.values()}
    assert len(tokens) == 3
    assert all(scene.worker(n).told_to_stop() for n in range(3))


async def test_an_attempt_that_cannot_be_fenced_is_not_replaced(submitted, monkeypatch):
    """Two workers must never both be allowed to publish."""
    submitted.provider.only()["status"] = "COMPLETED"

    def broken(self, key, body):
        raise StorageError("PUT failed")

    monkeypatch.setattr(Bucket, "write", broken)
    with pytest.raises(StorageError):
        await submitted.look()
    assert submitted.attempt.state is AttemptState.SUBMITTED


async def test_a_cancel_before_dispatch_is_done_at_once(scene):
    """The provider never hears of the job."""
    scene.cancel()
    job = await scene.look()
    assert (job.status, scene.provider.calls) == (JobStatus.CANCELLED, [])


async def test_a_cancel_stops_the_run_at_the_provider(submitted):
    """Fence and cancel, then the end."""
    submitted.cancel()
    job = await submitted.look()
    assert (job.status, submitted.provider.only()["status"]) == (JobStatus.CANCELLED, "CANCELLED")
    assert submitted.worker().told_to_stop()


async def test_a_result_that_was_committed_wins_over_a_cancel(submitted):
    """The work is done and paid; it is not thrown away."""
    submitted.worker().finish()
    submitted.cancel()
    job = await submitted.look()
    assert (job.status, job.cancel_requested_at is not None) == (JobStatus.COMPLETE, True)


async def test_a_cancel_without_an_answer_ends_on_the_fence_alone(submitted):
    """The provider may be down for long; the worker is fenced all the same."""
    submitted.cancel()
    submitted.provider.fault = refuse
    assert (await submitted.look()).status is JobStatus.PROCESSING
    assert (
        await submitted.look(submitted.settings.cancel_grace_seconds + 1)
    ).status is JobStatus.CANCELLED


async def test_a_job_cancelled_in_the_providers_console_is_cancelled(submitted):
    """Somebody who stops a runaway job there does not want it back."""
    submitted.provider.only()["status"] = "CANCELLED"
    assert (await submitted.look()).status is JobStatus.CANCELLED


async def test_a_cancel_during_the_submit_keeps_the_providers_id(scene):
    """The id that came too late is what the cancel needs."""

    def cancel_meanwhile(request):
        if request.url.path.endswith("/run"):
            scene.cancel()

    scene.provider.fault = cancel_meanwhile
    await scene.look()
    assert scene.attempt.provider_job_id == "rp-1"
    assert (await scene.look()).status is JobStatus.CANCELLED
    assert scene.provider.only()["status"] == "CANCELLED"


async def test_a_missing_source_costs_no_gpu(scene):
    """The bucket is asked before the provider."""
    scene.bucket.delete(object_key(scene.settings.user_id, scene.job.input_key))
    job = await scene.look()
    assert (job.status, job.error_code) == (JobStatus.ERROR, ErrorCode.SOURCE_NOT_FOUND)
    assert (job.input_key in job.error, scene.provider.calls) == (True, [])


async def test_deadlines_fit_the_job(scene):
    """Computed, sent, and kept with the attempt."""
    await scene.look()
    policy = scene.provider.only()["sent"]["policy"]
    assert 600_000 <= policy["executionTimeout"] < 7_200_000
    assert policy["ttl"] == scene.attempt.ttl_seconds * 1000


async def test_the_provider_is_told_where_to_call(settings, store, make_job):
    """With a public address: an URL that nobody can guess."""
    scene = Scene(settings(REELBROKER_PUBLIC_URL="https://broker.example/"), store, make_job())
    await scene.look()
    wanted = f"https://broker.example/hooks/runpod/{scene.id}/{scene.attempt.token}"
    assert scene.provider.only()["sent"]["webhook"] == wanted


async def test_a_webhook_names_the_run_of_a_submit_in_doubt(scene):
    """The id that it brings is adopted if the provider knows it, and forgotten if not."""
    scene.provider.fault = executes_and_times_out(scene.provider)
    await scene.look()
    scene.provider.fault = None
    reconciler = make_core(
        scene.settings,
        scene.store,
        UploadStore(scene.store._engine),
        scene.bucket,
        None,
        lambda: scene.now,
    ).reconciler
    token = scene.attempt.token
    assert not await reconciler.hint(scene.id, "0" * 32, "rp-1")
    assert await reconciler.hint(scene.id, token, "rp-7")
    await scene.look()
    assert scene.attempt.state is AttemptState.SUBMITTING
    assert await reconciler.hint(scene.id, token, "rp-1")
    await scene.look()
    assert (scene.attempt.state, scene.job.provider_job_id) == (AttemptState.SUBMITTED, "rp-1")
    assert len(scene.provider.submits) == 1


async def test_a_hint_brings_the_next_look_forward(submitted):
    """Only that of an open job."""
    reconciler = make_core(
        submitted.settings,
        submitted.store,
        UploadStore(submitted.store._engine),
        submitted.bucket,
        None,
        lambda: submitted.now,
    ).reconciler
    assert submitted.job.due_at > submitted.now
    await reconciler.hint(submitted.id, submitted.attempt.token, None)
    assert submitted.job.due_at == submitted.now


async def test_a_hint_during_a_look_is_not_put_off_by_it(submitted):
    """The look may have read the bucket before what the hint is about was there."""
    reconciler = make_core(
        submitted.settings,
        submitted.store,
        UploadStore(submitted.store._engine),
        submitted.bucket,
        None,
        lambda: submitted.now,
    ).reconciler
    await reconciler.hint(submitted.id, submitted.attempt.token, None)
    looking = submitted.job
    await reconciler.hint(submitted.id, submitted.attempt.token, None)
    assert submitted.store.touch(looking, submitted.now + 600_000) is None
    assert submitted.job.due_at <= submitted.now


async def test_an_idle_endpoint_does_not_have_the_job(scene):
    """Seen empty twice, some seconds apart: no need to sit out the grace period."""
    scene.provider.fault = lambda request: (
        httpx.Response(502) if request.url.path.endswith("/run") else None
    )
    await scene.look()
    await scene.look(5)
    assert scene.attempt.state is AttemptState.SUBMITTING
    await scene.look(12)
    assert scene.attempt.state is AttemptState.SUPERSEDED
    scene.provider.fault = None
    job = await scene.look(5)
    assert (job.attempt, len(scene.provider.jobs)) == (2, 1)


async def test_a_queue_that_was_seen_empty_is_no_word_on_the_run(scene):
    """Seen empty once, then adopted, then one 404: that is the first absence, and fences nobody."""
    scene.provider.fault = executes_and_times_out(scene.provider)
    await scene.look()
    sent = scene.provider.only()["sent"]
    # The queue does not show it yet.
    scene.provider.jobs.clear()
    scene.provider.fault = None
    await scene.look(5)
    scene.provider.fault = lambda request: (
        httpx.Response(503) if "/health" in request.url.path else None
    )
    with pytest.raises(ProviderError):
        await scene.look(40)
    worker = Worker(scene.bucket, sent)
    worker.start("rp-1")
    await scene.look()
    attempt = scene.attempt
    assert (attempt.state, attempt.queue_empty_since, attempt.absent_since) == (
        "submitted",
        None,
        None,
    )
    await scene.look()
    assert (scene.attempt.state, worker.told_to_stop()) == (AttemptState.SUBMITTED, False)
    assert scene.attempt.absent_since == scene.now


async def test_a_busy_endpoint_may_have_the_job(scene):
    """Something waits there: it could be ours."""
    scene.provider.fault = executes_and_times_out(scene.provider)
    await scene.look()
    for _ in range(4):
        await scene.look(20)
    assert scene.attempt.state is AttemptState.SUBMITTING


async def test_a_job_that_expired_in_the_queue_goes_once_more(submitted):
    """404 after the ttl, and no worker ever had it; the second time it is an error."""
    for attempt in (1, 2):
        submitted.provider.jobs.clear()
        await submitted.look(submitted.attempt.ttl_seconds + 1)
        job = await submitted.look(submitted.settings.lost_after_seconds + 1)
        if attempt == 1:
            assert submitted.attempt.error_code is ErrorCode.QUEUE_TIMEOUT
            await submitted.look(60)
    assert (job.status, job.error_code, job.attempt) == (
        JobStatus.ERROR,
        ErrorCode.QUEUE_TIMEOUT,
        2,
    )


async def test_out_of_memory_is_tried_once_more(scene):
    """Perhaps on a larger GPU; then it is an error."""
    failure = {"error_code": "out_of_memory", "retryable": True}
    for number in (1, 2):
        job = await scene.look(120)
        assert job.attempt == number
        list(scene.provider.jobs.values())[-1].update(status="FAILED", error="x", output=failure)
        job = await scene.look()
    assert (job.status, job.error_code) == (JobStatus.ERROR, ErrorCode.OUT_OF_MEMORY)


async def test_what_was_committed_while_it_was_given_up_counts(submitted):
    """The worker was past its last look at the fence: no second GPU is paid."""
    worker = submitted.worker()
    submitted.provider.only().update(status="FAILED", error="lost")
    await submitted.look()
    assert submitted.attempt.state is AttemptState.SUPERSEDED
    key = worker.finish()
    job = await submitted.look(120)
    assert (job.status, job.output_key, len(submitted.provider.submits)) == (
        JobStatus.COMPLETE,
        key,
        1,
    )


async def test_what_was_committed_just_before_the_last_fence_counts_too(
    settings, store, make_job, monkeypatch
):
    """No attempt is left, but the work is done."""
    scene = Scene(settings(REELBROKER_MAX_ATTEMPTS="1"), store, make_job(max_attempts=1))
    scene.provider.fault = executes_and_times_out(scene.provider)
    await scene.look()
    write = Bucket.write

    def commit_first(self, key, body):
        monkeypatch.setattr(Bucket, "write", write)
        scene.worker().finish()
        write(self, key, body)

    monkeypatch.setattr(Bucket, "write", commit_first)
    job = await scene.look(scene.settings.submit_grace_seconds + 1)
    assert (job.status, job.error_code) == (JobStatus.COMPLETE, None)


@pytest.mark.parametrize(
    ("workers", "said", "stalled"),
    [
        ({}, "scaled to zero", True),
        ({"unhealthy": 2}, "unhealthy", True),
        ({"throttled": 3}, "no GPU free", False),
        ({"initializing": 1}, "starting", False),
        ({"idle": 0, "running": 3}, "Waiting for a GPU worker", False),
        ({"idle": 0, "running": 3, "ready": 3}, "Waiting for a GPU worker", False),
        ({"idle": 2, "running": 1}, "GPU workers are idle, but none takes the job", True),
    ],
)
async def test_a_queue_says_why_it_waits(submitted, workers, said, stalled):
    """After a while; slow and stuck are told apart, and nothing fails for being old."""
    submitted.provider.workers = workers
    assert (await submitted.look(5)).stalled_since is None
    assert "idle" not in (await submitted.look(60)).message
    job = await submitted.look(submitted.settings.stalled_after_seconds)
    assert said in job.message
    assert (job.stalled_since is not None, job.status) == (stalled, JobStatus.PROCESSING)
    submitted.provider.only().update(
        status="IN_PROGRESS", output={"phase": "processing", "progress": 5}
    )
    assert (await submitted.look(20)).stalled_since is None


async def test_a_run_without_progress_is_called_stalled_and_goes_on(submitted):
    """It says so, does not fail, and takes it back when there is progress."""
    remote = submitted.provider.only()
    remote.update(status="IN_PROGRESS", output={"phase": "processing", "progress": 5})
    await submitted.look()
    later = submitted.settings.stalled_after_seconds + 1
    job = await submitted.look(later)
    assert job.stalled_since is not None
    assert "no progress" in job.message
    assert await submitted.look(later) == job.model_copy(
        update={"due_at": submitted.job.due_at, "evidence_at": submitted.job.evidence_at}
    )
    remote["output"]["progress"] = 6
    job = await submitted.look()
    assert (job.stalled_since, job.message) == (None, "Editing frames")


async def test_a_draining_broker_sends_nothing_and_follows_what_runs(scene, submitted, make_job):
    """Held where it is, said once; sent when the drain is over."""
    other = scene.store.add(make_job(user_id=scene.settings.user_id))
    async with httpx.AsyncClient(transport=scene.provider) as http:
        providers = make_providers(scene.settings, http)
        core = make_core(
            scene.settings,
            scene.store,
            UploadStore(scene.store._engine),
            scene.bucket,
            providers,
            lambda: scene.now,
        )
        core.drain.is_on = True
        for _ in range(3):
            await core.reconciler.reconcile(other.id)
        held = scene.store.find(other.id)
        assert (held.status, held.attempt, len(scene.provider.submits)) == (JobStatus.PENDING, 0, 1)
        assert len(scene.store.events(other.id)) == 2
        scene.worker().finish()
        await core.reconciler.reconcile(scene.id)
        assert scene.job.status is JobStatus.COMPLETE
        core.drain.is_on = False
        await core.reconciler.reconcile(other.id)
    assert len(scene.provider.submits) == 2


async def test_started_json_tells_a_running_job_from_a_queued_one(submitted):
    """The job is queued until the worker has written it; then `progress.json` counts."""
    scene = submitted
    async with httpx.AsyncClient(transport=scene.provider) as http:
        place = Place(RunPod.name, scene.settings.runpod_endpoint_url)
        providers = Providers({RunPod.name: Vague(http, "runpod-key")}, [place])
        core = make_core(
            scene.settings,
            scene.store,
            UploadStore(scene.store._engine),
            scene.bucket,
            providers,
            lambda: scene.now,
        )
        scene.provider.only()["status"] = "IN_PROGRESS"
        await core.reconciler.reconcile(scene.id)
        assert (scene.job.phase, scene.attempt.started_at) == (Phase.QUEUED, None)
        scene.worker().start("rp-1")
        await core.reconciler.reconcile(scene.id)
        assert scene.job.phase is Phase.STARTING
        assert scene.attempt.started_at is not None
        scene.worker().report(phase="processing", progress=40)
        await core.reconciler.reconcile(scene.id)
        assert (scene.job.phase, scene.job.progress) == (Phase.PROCESSING, 40)
        scene.worker().finish()
        await core.reconciler.reconcile(scene.id)
    assert scene.job.status is JobStatus.COMPLETE


class TestOrphans:
    """What was given up may still run there, and be paid for."""

    async def release(self, scene, seconds_later=0.0):
        scene.now += int(seconds_later * 1000)
        async with httpx.AsyncClient(transport=scene.provider) as http:
            providers = make_providers(scene.settings, http)
            core = make_core(
                scene.settings,
                scene.store,
                UploadStore(scene.store._engine),
                scene.bucket,
                providers,
                lambda: scene.now,
            )
            for _, orphan in scene.store.orphans(scene.now):
                await core.orphans.release(orphan.token)

    async def test_a_cancel_that_nobody_answered_goes_on_at_the_provider(self, submitted):
        """Until the provider says that the run is over; what it cost is kept."""
        submitted.cancel()
        submitted.provider.fault = refuse
        await submitted.look(submitted.settings.cancel_grace_seconds + 1)
        assert submitted.job.status is JobStatus.CANCELLED
        assert [attempt.provider_job_id for _, attempt in submitted.store.orphans()] == ["rp-1"]
        with pytest.raises(ProviderError):
            await self.release(submitted)
        submitted.provider.fault = None
        submitted.provider.only()["executionTime"] = 4200
        await self.release(submitted, 60)
        assert submitted.provider.only()["status"] == "CANCELLED"
        assert (submitted.store.orphans(), submitted.attempt.gpu_seconds) == ([], 4.2)

    async def test_a_run_that_was_never_known_is_found_by_its_first_document(self, scene):
        """A submit in doubt, given up, and then a worker takes it after all."""
        scene.provider.fault = executes_and_times_out(scene.provider)
        await scene.look()
        await scene.look(scene.settings.submit_grace_seconds + 1)
        scene.provider.fault = None
        await self.release(scene)
        assert len(scene.store.orphans()) == 1
        scene.worker(0).start("rp-1")
        await self.release(scene, 60)
        assert (scene.store.orphans(), scene.provider.only()["status"]) == ([], "CANCELLED")

    async def test_a_run_that_was_never_seen_is_let_go_with_its_ttl(self, scene):
        """By then the provider has deleted it."""
        scene.provider.fault = executes_and_times_out(scene.provider)
        await scene.look()
        await scene.look(scene.settings.submit_grace_seconds + 1)
        scene.provider.fault = None
        await self.release(scene, scene.attempt.ttl_seconds + 1)
        assert scene.store.orphans() == []

    async def test_a_finished_run_is_no_orphan(self, submitted):
        """Nor is one that failed by itself."""
        submitted.worker().finish()
        await submitted.look()
        assert submitted.store.orphans() == []


async def test_a_job_costs_what_all_its_attempts_took(settings, store, make_job):
    """As the provider bills them, where it still tells; by the price of the GPU that the worker
    names.
    """
    scene = Scene(settings(REELBROKER_GPU_PRICES={"NVIDIA L4": 0.5, "*": 0.1}), store, make_job())
    await scene.look()
    first = scene.provider.only()
    first |= {
        "status": "FAILED",
        "executionTime": 4000,
        "error": "x",
        "output": {"error_code": "internal", "retryable": True},
    }
    await scene.look(5)
    assert (await scene.look(30)).attempt == 2
    scene.worker().finish(gpu="NVIDIA L4")
    second = scene.provider.jobs["rp-2"]
    second |= {"status": "COMPLETED", "executionTime": 6500, "output": {}}
    job = await scene.look(5)
    assert (job.status, job.gpu_seconds, job.cost_usd) == (JobStatus.COMPLETE, 10.5, 5.25)
