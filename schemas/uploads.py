"""How a file gets into the bucket: straight from the client, by presigned URLs."""

from typing import Annotated

from pydantic import AfterValidator, Field, Strict, StringConstraints
from pydantic_core import PydanticCustomError

from schemas.jobs import Wire
from schemas.keys import STEERING, ObjectKey

MAX_BYTES = 5 * 2**40  #: of one object in S3 and R2
MAX_PARTS = 10_000


def _named(filename: str) -> str:
    if filename in (".", ".."):
        raise PydanticCustomError("filename", "this is no name of a file")
    return filename


class UploadRequest(Wire):
    """The body of `POST /api/videos/upload-url`. With `bytes`, the URL takes exactly so many, and
    large files go in parts.
    """

    filename: Annotated[
        str,
        StringConstraints(min_length=1, max_length=255, pattern=rf"^[^{STEERING}/\\]+$"),
        AfterValidator(_named),
    ]
    content_type: Annotated[str, StringConstraints(pattern=r"^video/[a-z0-9.+-]{1,64}$")] = (
        "video/mp4"
    )
    bytes: Annotated[int, Strict(), Field(gt=0, le=MAX_BYTES)] | None = None
    # Sent by older clients; the key that we answer with is what matters.
    job_id: str | None = None


class Part(Wire):
    """One part of a multipart upload: PUT `bytes` of the file from `offset` on, and keep the
    answer's `ETag`.
    """

    number: int
    offset: int
    bytes: int
    upload_url: str


class UploadTicket(Wire):
    """Where and how to PUT the file, with `headers`; name `video_key` as the job's `input_key`
    afterwards.

    `upload_url` is null where the file goes in `parts`, which are all of one size but the last, and
    where it has arrived. It takes one file: 412 means that one is there, of an earlier try perhaps,
    so go on to `complete_url`, which checks its size.
    """

    upload_id: str
    video_key: str
    upload_url: str | None
    method: str
    headers: dict[str, str]
    parts: list[Part]  #: those that have not arrived yet
    complete_url: str  #: POST here when all is sent: it is checked, and parts are joined
    completed: bool
    expires_in_seconds: int


class Uploaded(Wire):
    """A file that has arrived whole."""

    upload_id: str
    video_key: str
    bytes: int


class DownloadQuery(Wire):
    """The query of `GET /api/storage/presigned-url`."""

    key: ObjectKey


class DownloadUrl(Wire):
    """A presigned URL of one of the user's own objects."""

    url: str
    expires_in: int
