"""The bucket as the worker sees it: fetch a source, upload a result, read and commit control
documents.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import structlog
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from gpu_worker.errors import FileTooLarge, SourceNotFound, StorageUnavailable
from gpu_worker.media.excerpt import fetch_excerpt
from gpu_worker.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

log = structlog.get_logger(__name__)

#: R2 wants all parts but the last of one size.
_TRANSFER = TransferConfig(
    multipart_threshold=100 << 20, multipart_chunksize=16 << 20, max_concurrency=4
)
#: A file up to that size is fetched whole, which is simpler and as fast.
WHOLE_BYTES = 64 << 20
#: The documents of an attempt have some hundred bytes.
DOCUMENT_BYTES = 1 << 20
_MISSING = {"404", "NoSuchKey", "NotFound"}
_EXISTS = {"412", "PreconditionFailed"}


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
                head = self._client.head_object(Bucket=self._name, Key=key)
                size = head["ContentLength"]
                _refuse_larger(size, max_bytes)

                def read_range(begin: int, end: int) -> bytes:
                    wanted = f"bytes={begin}-{end - 1}"
                    answer = self._client.get_object(
                        Bucket=self._name, Key=key, Range=wanted, IfMatch=head["ETag"]
                    )
                    return answer["Body"].read()

                if parts is not None and size > WHOLE_BYTES:
                    fetched = fetch_excerpt(read_range, size, path, parts)
                    if fetched is not None:
                        log.info("fetched_parts", bytes=fetched, of=size)
                        return
                self._client.download_file(self._name, key, str(path), Config=_TRANSFER)
            except ClientError as error:
                if _code(error) in _MISSING:
                    raise SourceNotFound(
                        "The video to export is not in the bucket.", key
                    ) from error
                raise

    def upload(self, path: Path, key: str) -> None:
        """Uploads a finished video, in equal parts where it is large."""
        with _answers(f"PUT {key}"):
            extra = {"ContentType": "video/mp4"}
            self._client.upload_file(str(path), self._name, key, ExtraArgs=extra, Config=_TRANSFER)

    def read(self, key: str, max_bytes: int = DOCUMENT_BYTES) -> bytes | None:
        """Returns a small object, or None where there is none.

        Raises:
            FileTooLarge: it has more than `max_bytes`, which are not read.
        """
        with _answers(f"GET {key}"):
            try:
                answer = self._client.get_object(Bucket=self._name, Key=key)
                with answer["Body"] as body:
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
        raise StorageUnavailable(
            "The object store failed or could not be reached.", f"{what}: {error}"
        ) from error


def _refuse_larger(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise FileTooLarge(f"The file has {size} bytes; {max_bytes} are taken.")


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")
