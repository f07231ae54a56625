"""Where objects are: a user's folder, and keys below it."""

from typing import Annotated

from pydantic import AfterValidator, StringConstraints
from pydantic_core import PydanticCustomError


def _confined(key: str) -> str:
    if key.startswith("/") or any(part in ("", ".", "..") for part in key.split("/")):
        raise PydanticCustomError(
            "key", "a key is relative to your folder: no leading `/`, no empty, `.` or `..` part"
        )
    return key


#: A key below the user's folder; the object's key is `{user_id}/{key}`.
ObjectKey = Annotated[
    str,
    StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f\\]+$"),
    AfterValidator(_confined),
]
#: The folder, below the user's, of files that came with a job and go with it.
TEMPORARY = "temp"
UserId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


def object_key(user_id: str, key: str) -> str:
    """Returns the bucket's key for a key relative to the user's folder."""
    return f"{user_id}/{key}"
