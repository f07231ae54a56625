"""The documents of an attempt, on the real store."""

import pytest

from gpu_worker.control import ControlDocuments
from schemas.worker import Result, Started, WorkerInput

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
