"""The envelope of a job: keys, types and words."""

import pytest
from pydantic import ValidationError

from schemas.jobs import ErrorCode, JobRequest, JobStatus
from schemas.uploads import UploadRequest


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/a.mp4",
        "a//b.mp4",
        "../a.mp4",
        "a/../b.mp4",
        "a/./b.mp4",
        "a/",
        "a\\b.mp4",
        "a\n.mp4",
        "a" * 513,
    ],
)
def test_a_key_stays_in_the_users_folder(key):
    """No key leads out of the folder, or is ambiguous about where it leads."""
    with pytest.raises(ValidationError) as caught:
        JobRequest(type="framing", input_key=key)
    assert [found["loc"] for found in caught.value.errors()] == [("input_key",)]


@pytest.mark.parametrize("key", ["a.mp4", "uploads/x y/ünï.mp4", "games/2024..final.mp4"])
def test_ordinary_keys_pass(key):
    """Spaces, Unicode and dots inside a name are fine."""
    assert JobRequest(type="framing", input_key=key).input_key == key


def test_the_other_spelling_of_the_input_key_is_taken():
    """Source document 004 says input_video_key."""
    assert (
        JobRequest.model_validate({"type": "framing", "input_video_key": "a.mp4"}).input_key
        == "a.mp4"
    )


def test_an_unknown_type_is_refused():
    """A type that we do not run is an error, not a guess."""
    with pytest.raises(ValidationError, match="type"):
        JobRequest.model_validate({"type": "sharpen", "input_key": "a.mp4"})


def test_only_ends_are_terminal():
    """Exactly three statuses never move again."""
    assert {status for status in JobStatus if status.is_terminal} == {
        "complete",
        "error",
        "cancelled",
    }


@pytest.mark.parametrize(
    "code", [ErrorCode.INVALID_PARAMS, ErrorCode.INVALID_MEDIA, ErrorCode.SOURCE_NOT_FOUND]
)
def test_what_the_user_must_mend_is_not_retryable(code):
    """The same bad input fails the same way."""
    assert not code.retryable


@pytest.mark.parametrize("name", ["a/b.mp4", "", "x\r\ny.mp4"])
def test_a_file_name_is_a_name(name):
    """A name with a path or a line break in it is refused."""
    with pytest.raises(ValidationError):
        UploadRequest(filename=name)
