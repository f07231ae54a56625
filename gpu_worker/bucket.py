"""The bucket as the worker sees it: fetch a source, upload a result, read and commit control
documents.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import structlog
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.utils import S3_RETRYABLE_DOWNLOAD_ERRORS

from gpu_worker.errors import FileTooLarge, SourceNotFound, StorageUnavailable
from gpu_worker.media.excerpt import (
    RANGE_BYTES,
    RANGES_AT_ONCE,
    Remote,
    fetch_excerpt,
    fetch_whole,
)
from gpu_worker.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

log = structlog.get_logger(__name__)

#: R2 wants all parts but the last of one size.
_UPLOAD = TransferConfig(
    multipart_threshold=100 << 20, multipart_chunksize=16 << 20, max_concurrency=4
)
#: So many videos of a job are fetched at once, each over as many connections.
FETCHES_AT_ONCE = 4
UNREACHABLE = "The object store failed or could not be reached."
#: How often a range is asked for whose answer broke off; botocore repeats requests alone.
RANGE_TRIES = 5
#: A file up to that size is fetched whole, which is simpler and as fast.
WHOLE_BYTES = 64 << 20
#: The documents of an attempt have some hundred bytes.
DOCUMENT_BYTES = 1 << 20
_MISSING = {"404", "NoSuchKey", "NotFound"}
_EXISTS = {"412", "PreconditionFailed"}


@dataclass(frozen=True)
class _Range:
    """Some bytes of an object, the object's size, and the tag of what it holds."""

    data: bytes
    size: int
    etag: str


class Bucket:
    """One bucket of an S3-compatible store.

    Raises:
        StorageUnavailable: from every method, when the store fails or cannot be reached.
    """

    def __init__(self, client: "S3Client", name: str) -> None:
        self._client = client
        self._name = name

    def fetch(
        self,
        key: str,
        path: Path,
        max_bytes: int,
        parts: Sequence[tuple[float, float]] | None = None,
    ) -> None:
        """Downloads a video; of a long one only `parts` (seconds), where those are given and the
        file allows it.

        Raises:
            SourceNotFound: there is no such object.
            FileTooLarge: it has more than `max_bytes`.
        """
        with _answers(f"GET {key}"):
            try:
                remote = self._remote(key, max_bytes)
                if parts is not None and remote.size > WHOLE_BYTES:
                    fetched = fetch_excerpt(remote, path, parts)
                    if fetched is not None:
                        log.info("fetched_parts", bytes=fetched, of=remote.size)
                        return
                fetch_whole(remote, path)
            except ClientError as error:
                if _code(error) in _MISSING:
                    raise SourceNotFound(
                        "The video to export is not in the bucket.", key
                    ) from error
                raise

    def _remote(self, key: str, max_bytes: int) -> Remote:
        """Returns what stands for an object; its size and first bytes come with one request."""
        try:
            head = self._range(key, 0, RANGE_BYTES)
        except ClientError as error:
            if _code(error) != "InvalidRange":
                raise
            # An object without a byte has no range.
            return Remote(0, b"", lambda begin, end: b"")
        _refuse_larger(head.size, max_bytes)
        return Remote(
            head.size,
            head.data,
            lambda begin, end: self._range(key, begin, end, head.etag).data,
        )

    def _range(self, key: str, begin: int, end: int, etag: str | None = None) -> "_Range":
        """Returns the bytes of an object from `begin` to before `end`, or to its end."""
        match: dict[str, Any] = {} if etag is None else {"IfMatch": etag}
        detail = ""
        for _ in range(RANGE_TRIES):
            answer = self._client.get_object(
                Bucket=self._name, Key=key, Range=f"bytes={begin}-{end - 1}", **match
            )
            # As in `bytes 0-99/1234`.
            size = int(answer["ContentRange"].rpartition("/")[2])
            try:
                # Entered itself, the body is urllib3's, whose errors are of other classes.
                with closing(answer["Body"]) as body:
                    return _Range(body.read(), size, answer["ETag"])
            except S3_RETRYABLE_DOWNLOAD_ERRORS as error:
                detail = str(error)
        raise StorageUnavailable(UNREACHABLE, f"GET {key}: {detail}")

    def upload(self, path: Path, key: str) -> None:
        """Uploads a finished video, in equal parts where it is large."""
        with _answers(f"PUT {key}"):
            extra = {"ContentType": "video/mp4"}
            self._client.upload_file(str(path), self._name, key, ExtraArgs=extra, Config=_UPLOAD)

    def read(self, key: str, max_bytes: int = DOCUMENT_BYTES) -> bytes | None:
        """Returns a small object, or None where there is none.

        Raises:
            FileTooLarge: it has more than `max_bytes`, which are not read.
        """
        with _answers(f"GET {key}"):
            try:
                answer = self._client.get_object(Bucket=self._name, Key=key)
                with closing(answer["Body"]) as body:
                    _refuse_larger(answer["ContentLength"], max_bytes)
                    return body.read()
            except ClientError as error:
                if _code(error) in _MISSING:
                    return None
                raise

    def write(self, key: str, body: bytes) -> None:
        """Puts a small JSON document."""
        with _answers(f"PUT {key}"):
            self._client.put_object(
                Bucket=self._name, Key=key, Body=body, ContentType="application/json"
            )

    def write_once(self, key: str, body: bytes) -> bool:
        """Puts a small JSON document unless there is one; returns whether it was ours that was
        put.
        """
        with _answers(f"PUT {key}"):
            try:
                self._client.put_object(
                    Bucket=self._name,
                    Key=key,
                    Body=body,
                    ContentType="application/json",
                    IfNoneMatch="*",
                )
            except ClientError as error:
                if _code(error) in _EXISTS:
                    return False
                raise
        return True

    def delete(self, key: str) -> None:
        """Removes an object; one that is not there is fine."""
        with _answers(f"DELETE {key}"):
            self._client.delete_object(Bucket=self._name, Key=key)


def open_bucket(settings: Settings) -> Bucket:
    """Makes the client; nothing is sent yet."""
    client = boto3.client(
        "s3",
        endpoint_url=settings.r2_endpoint,
        aws_access_key_id=settings.r2_access_key_id,
        aws_secret_access_key=settings.r2_secret_access_key.get_secret_value(),
        region_name="auto",
        config=Config(
            signature_version="s3v4",
            # botocore's newer default adds checksum trailers that R2 and others refuse.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            max_pool_connections=FETCHES_AT_ONCE * RANGES_AT_ONCE,
            connect_timeout=5,
            read_timeout=60,
            # Results are committed through here: a store that restarts must not cost a finished
            # export.
            retries={"max_attempts": 8, "mode": "standard"},
            s3={"addressing_style": "path"},
        ),
    )
    return Bucket(client, settings.r2_bucket_name)


@contextmanager
def _answers(what: str) -> Iterator[None]:
    try:
        yield
    except (ClientError, BotoCoreError, S3UploadFailedError) as error:
        raise StorageUnavailable(UNREACHABLE, f"{what}: {error}") from error


def _refuse_larger(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise FileTooLarge(f"The file has {size} bytes; {max_bytes} are taken.")


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")
