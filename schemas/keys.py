"""Where objects are: a user's folder, and keys below it."""

from typing import Annotated

from pydantic import AfterValidator, StringConstraints
from pydantic_core import PydanticCustomError

#: What neither a key nor a name of a file may have in it, for a pattern: characters that steer a
#: terminal or turn text around.
STEERING = r"\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069"
#: A bucket takes keys of 1024 bytes; a user's folder and its `/` are a part of them.
MAX_KEY_BYTES = 1024 - 65
#: SeaweedFS keeps each part of a key as the name of a file.
MAX_NAME_BYTES = 255


def _confined(key: str) -> str:
    if key.startswith("/") or any(part in ("", ".", "..") for part in key.split("/")):
        raise PydanticCustomError(
            "key", "a key is relative to your folder: no leading `/`, no empty, `.` or `..` part"
        )
    return key


def _storable(key: str) -> str:
    if len(key.encode()) > MAX_KEY_BYTES:
        raise PydanticCustomError("key", "a key has 959 bytes in UTF-8 at most")
    if any(len(part.encode()) > MAX_NAME_BYTES for part in key.split("/")):
        raise PydanticCustomError(
            "key", "a part of a key, between `/`, has 255 bytes in UTF-8 at most"
        )
    return key


#: A key below the user's folder; the object's key is `{user_id}/{key}`.
ObjectKey = Annotated[
    str,
    StringConstraints(min_length=1, max_length=512, pattern=rf"^[^{STEERING}\\]+$"),
    AfterValidator(_confined),
    AfterValidator(_storable),
]
#: The folder, below the user's, of files that came with a job and go with it.
TEMPORARY = "temp"
UserId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


def object_key(user_id: str, key: str) -> str:
    """Returns the bucket's key for a key relative to the user's folder."""
    return f"{user_id}/{key}"
