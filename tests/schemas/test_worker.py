"""What crosses RunPod and the bucket."""

import pytest
from pydantic import ValidationError

from schemas.keys import object_key
from schemas.worker import Progress, WorkerInput, attempt_folder

JOB = {"job_id": "j1", "user_id": "u1", "type": "framing", "input_key": "a.mp4"}


@pytest.mark.parametrize("where", [{}, {"attempt_token": "0" * 32, "output_key": "out.mp4"}])
def test_the_worker_must_know_exactly_one_place_to_write_to(where):
    """A job has an attempt token or an output key."""
    with pytest.raises(ValidationError, match="attempt_token"):
        WorkerInput.model_validate(JOB | where)


@pytest.mark.parametrize("where", [{"attempt_token": "0" * 32}, {"output_key": "out.mp4"}])
def test_either_place_will_do(where):
    """The broker sends a token; the RunPod console an output key."""
    assert WorkerInput.model_validate(JOB | where).job_id == "j1"


@pytest.mark.parametrize("user_id", ["", "a/b", "..", "a" * 65])
def test_a_user_id_cannot_lead_out_of_its_folder(user_id):
    """The user id is the first part of every key."""
    with pytest.raises(ValidationError):
        WorkerInput.model_validate(JOB | {"output_key": "o.mp4", "user_id": user_id})


def test_a_newer_worker_may_say_more():
    """A broker understands documents with fields that it does not know."""
    assert Progress.model_validate({"phase": "processing", "progress": 5, "eta": 3}).progress == 5


def test_only_the_broker_says_100():
    """A worker is not done until its result was seen in the bucket."""
    with pytest.raises(ValidationError):
        Progress(phase="uploading", progress=100)


def test_keys_are_built_in_one_place():
    """The folder of an attempt is part of the contract."""
    assert object_key("u1", attempt_folder("j1", "ab")) == "u1/jobs/j1/ab"
