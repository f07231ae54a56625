"""The documents of an attempt, on the real store."""

import pytest

from gpu_worker.control import ControlDocuments
from gpu_worker.errors import Cancelled, TooManyDeliveries
from schemas.worker import Progress, Result, Started, WorkerInput

TOKEN = "0" * 32
STARTED = Started(runpod_job_id="rp-1", worker_id="w", at_ms=1)


@pytest.fixture
def control(bucket, user_id):
    """The documents of an attempt; overrides by name."""

    def build(**overrides):
        fields = {"job_id": "j1", "user_id": user_id, "type": "framing", "input_key": "in.mp4"}
        job = WorkerInput.model_validate(fields | {"attempt_token": TOKEN} | overrides)
        return ControlDocuments(bucket, job)

    return build


def result(output_key):
    """A result with some facts."""
    facts = {
        "bytes": 1,
        "sha256": "0" * 64,
        "width": 2,
        "height": 2,
        "fps": 25.0,
        "frames": 1,
        "duration_seconds": 0.04,
        "video_codec": "h264",
        "audio_codec": None,
    }
    timings = {"fetch_seconds": 0, "edit_seconds": 0, "upload_seconds": 0}
    return Result.model_validate(
        {"output_key": output_key, "runpod_job_id": "rp-1", "facts": facts, "timings": timings}
    )


def test_the_first_result_stands(control, objects, user_id):
    """The second execution gets the first one's; each document lies in the attempt's folder."""
    documents = control()
    assert documents.result() is None
    documents.start(STARTED)
    assert documents.commit(result("a.mp4")) == result("a.mp4")
    assert documents.commit(result("b.mp4")) == result("a.mp4")
    assert control().result() == result("a.mp4")
    folder = f"{user_id}/jobs/j1/{TOKEN}"
    assert objects.keys(f"{user_id}/") == [f"{folder}/result.json", f"{folder}/started.json"]


def test_an_attempt_is_fenced_by_its_own_stop_document(control, objects, user_id):
    """Another attempt of the same job is not."""
    objects.put(f"{user_id}/jobs/j1/{TOKEN}/stop.json", b"{}")
    assert control().is_fenced()
    assert not control(attempt_token="1" * 32).is_fenced()


def test_a_job_from_a_console_has_no_documents(control, objects, user_id):
    """Nothing is written, and nothing fences it."""
    documents = control(attempt_token=None, output_key="out.mp4")
    documents.start(STARTED)
    assert documents.commit(result("out.mp4")) == result("out.mp4")
    assert (documents.result(), documents.is_fenced(), documents.exist) == (None, False, False)
    assert objects.keys(f"{user_id}/") == []


def test_deliveries_of_one_job_are_counted_and_then_refused(control, objects, user_id):
    """A job that kills its workers cannot run for ever on a provider that restarts without end."""
    documents, key = control(max_deliveries=2), f"{user_id}/jobs/j1/{TOKEN}/started.json"
    documents.start(STARTED)
    documents.start(STARTED)
    assert Started.model_validate_json(objects.get(key)).deliveries == 2
    with pytest.raises(TooManyDeliveries, match="lost 2 times"):
        documents.start(STARTED)
    control().start(STARTED)
    assert Started.model_validate_json(objects.get(key)).deliveries == 3


def test_a_second_run_of_one_attempt_gives_way(control, objects, user_id):
    """One submit may make two runs at the provider; the first one keeps the attempt."""
    control().start(STARTED)
    with pytest.raises(Cancelled, match="Another run"):
        control().start(STARTED.model_copy(update={"runpod_job_id": "rp-2"}))
    stored = objects.get(f"{user_id}/jobs/j1/{TOKEN}/started.json")
    assert Started.model_validate_json(stored) == STARTED


def test_progress_is_a_document_of_the_attempt(control, objects, user_id):
    """The newest one; a job from a console has none."""
    for progress in (5, 50):
        control().report(Progress(phase="processing", progress=progress))
    control(attempt_token=None, output_key="out.mp4").report(Progress(phase="done", progress=9))
    (key,) = objects.keys(f"{user_id}/")
    assert key == f"{user_id}/jobs/j1/{TOKEN}/progress.json"
    assert Progress.model_validate_json(objects.get(key)).progress == 50
