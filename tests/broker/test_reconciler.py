"""Where a job goes by what can be seen of it. The bucket is real; the provider is steered; the clock is ours."""

import httpx
import pytest

from broker.errors import ProviderError, StorageError
from broker.models import Attempt, AttemptState
from broker.reconciler import Reconciler
from broker.runpod import RunPodClient
from broker.storage import Bucket, open_bucket
from broker.store import now_ms
from schemas.jobs import ErrorCode, JobStatus, Phase
from schemas.keys import object_key
from tests.broker.provider import Provider, Worker, refuse


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
            runpod = RunPodClient(http, "runpod-key")
            reconciler = Reconciler(self.settings, self.store, self.bucket, runpod, lambda: self.now)
            await reconciler.look_at(self.id)
        return self.job

    @property
    def job(self):
        return self.store.load(self.id)[0]

    @property
    def attempt(self):
        return self.store.load(self.id)[1]

    def worker(self, number=-1):
        return Worker(self.bucket, list(self.provider.jobs.values())[number]["sent"])

    def cancel(self):
        self.store.move(self.job, "cancel_requested", {"cancel_requested_at": self.now})


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
    assert (job.status, job.phase, job.runpod_job_id, job.attempt) == ("processing", "queued", "rp-1", 1)
    sent = scene.provider.only()["sent"]["input"]
    assert (sent["job_id"], sent["attempt_token"]) == (scene.id, scene.attempt.token)
    await scene.look()
    assert len(scene.provider.submits) == 1


async def test_an_unreachable_provider_keeps_the_job_pending(scene):
    """It goes when the provider is back, as the same attempt."""
    scene.provider.fault = refuse
    for _ in range(3):
        job = await scene.look()
    assert (job.status, job.attempt, scene.attempt.state) == (JobStatus.PENDING, 1, AttemptState.READY)
    assert "cannot be reached" in job.message
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
    assert (job.runpod_job_id, scene.attempt.state) == ("rp-1", AttemptState.SUBMITTED)


async def test_a_submit_that_timed_out_is_superseded_after_the_grace_period(scene):
    """The old attempt is fenced before the next one begins."""
    scene.provider.fault = executes_and_times_out(scene.provider)
    await scene.look()
    await scene.look(scene.settings.submit_grace_seconds + 1)
    assert scene.worker(0).told_to_stop()
    scene.provider.fault = None
    job = await scene.look(5)
    assert (job.attempt, job.runpod_job_id, len(scene.provider.submits)) == (2, "rp-2", 2)


async def test_a_broker_that_died_while_submitting_does_not_submit_again(scene):
    """Restarted, it looks for signs first."""
    attempt = Attempt(
        token="0" * 32,
        job_id=scene.id,
        number=1,
        state=AttemptState.SUBMITTING,
        endpoint_url="http://runpod/v2/embedded",
        created_at=scene.now,
        submitted_at=scene.now,
    )
    scene.store.move(scene.job, "attempt_begun", {"attempt": 1, "phase": Phase.SUBMITTING}, attempt)
    await scene.look(5)
    assert scene.provider.submits == []
    sent = {"input": {"job_id": scene.id, "user_id": scene.settings.user_id, "attempt_token": "0" * 32}}
    Worker(scene.bucket, sent).finish()
    assert (await scene.look(5)).status is JobStatus.COMPLETE


async def test_a_committed_result_completes_the_job_whatever_the_provider_says(submitted):
    """The bucket is the proof; the provider is not even asked."""
    key = submitted.worker().finish()
    submitted.provider.fault = refuse
    job = await submitted.look()
    assert (job.status, job.output_key, job.progress, job.gpu_seconds) == (JobStatus.COMPLETE, key, 100, 3.5)
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


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        pytest.param(
            {
                "status": "FAILED",
                "error": "Not a video.",
                "output": {"error_code": "invalid_media", "retryable": False},
            },
            ErrorCode.INVALID_MEDIA,
            id="the-worker-says-why",
        ),
        pytest.param({"status": "TIMED_OUT"}, ErrorCode.EXECUTION_TIMEOUT, id="too-long"),
    ],
)
async def test_what_another_try_would_not_mend_is_an_error_at_once(submitted, answer, code):
    """One attempt, the worker's own sentence."""
    submitted.provider.only().update(answer)
    job = await submitted.look()
    assert (job.status, job.error_code, job.attempt) == (JobStatus.ERROR, code, 1)
    if "error" in answer:
        assert job.error == answer["error"]


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
            {"status": "FAILED", "error": "x", "output": {"error_code": "cancelled", "retryable": False}},
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
    assert job.error_code == answer.get("output", {}).get("error_code", ErrorCode.WORKER_LOST)
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
    assert (await submitted.look(submitted.settings.cancel_grace_seconds + 1)).status is JobStatus.CANCELLED


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
    assert scene.attempt.runpod_job_id == "rp-1"
    assert (await scene.look()).status is JobStatus.CANCELLED
    assert scene.provider.only()["status"] == "CANCELLED"
