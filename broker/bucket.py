"""The bucket: presigned URLs, sizes, and small control documents.

The same boto3 code serves Cloudflare R2 and the embedded SeaweedFS. Media does not pass through
here. All methods but the presigning ones block; callers run them in a thread.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import boto3
import botocore.loaders
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from broker.errors import StorageError
from broker.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, CORSRuleTypeDef, LifecycleRuleTypeDef

CONNECT_SECONDS, READ_SECONDS = 5, 20
_MISSING = {"404", "NoSuchKey", "NotFound", "NoSuchUpload"}
_MISSING |= {"NoSuchCORSConfiguration", "NoSuchLifecycleConfiguration"}
#: boto3's names of the headers that a presigned PUT may be bound to.
_PARAMS = {"Content-Type": "ContentType", "If-None-Match": "IfNoneMatch"}
#: The name of the broker's rules among the bucket's.
RULE = "reelbroker"


@dataclass(frozen=True)
class Found:
    """An object in a listing."""

    key: str
    bytes: int
    modified_at: int  #: milliseconds since the epoch


@dataclass(frozen=True)
class ArrivedPart:
    """A part of a multipart upload that has arrived."""

    bytes: int
    etag: str


@dataclass(frozen=True)
class Unfinished:
    """A multipart upload that is neither complete nor dropped."""

    key: str
    multipart_id: str
    begun_at: int  #: milliseconds since the epoch


class Bucket:
    """One bucket of an S3-compatible store.

    Args:
        on_error: called with the HTTP method of each failed call.

    Raises:
        StorageError: from every method, where the store fails. A missing object is None.
    """

    def __init__(
        self, client: "S3Client", name: str, on_error: Callable[[str], None] = lambda method: None
    ) -> None:
        self._on_error = on_error
        self._client = client
        self._name = name

    def presigned_get(self, key: str, file_name: str, seconds: int) -> str:
        """Returns a URL that downloads `key` as `file_name`, valid for `seconds`."""
        disposition = f"attachment; filename*=UTF-8''{quote(file_name)}"
        return self._client.generate_presigned_url(
            "get_object",
            Params={"Bucket": self._name, "Key": key, "ResponseContentDisposition": disposition},
            ExpiresIn=seconds,
        )

    def presigned_put(
        self, key: str, seconds: int, headers: Mapping[str, str], length: int | None = None
    ) -> str:
        """Returns a URL that takes a PUT of `key` with exactly these headers and `length` bytes.

        Args:
            headers: `Content-Type`; with `If-None-Match: *` the URL answers a second file with 412.
            length: None: any length.
        """
        signed: dict[str, Any] = {_PARAMS[name]: value for name, value in headers.items()}
        if length is not None:
            signed["ContentLength"] = length
        return self._client.generate_presigned_url(
            "put_object", Params={"Bucket": self._name, "Key": key, **signed}, ExpiresIn=seconds
        )

    def begin_parts(self, key: str, content_type: str) -> str:
        """Begins a multipart upload; returns the store's id for it."""
        with self._answers("POST", key):
            begun = self._client.create_multipart_upload(
                Bucket=self._name, Key=key, ContentType=content_type
            )
            return begun["UploadId"]
        raise StorageError(f"the bucket {self._name} does not exist")

    def presigned_part(
        self, key: str, multipart_id: str, number: int, length: int, seconds: int
    ) -> str:
        """Returns a URL that takes one part of exactly `length` bytes."""
        params = {"Bucket": self._name, "Key": key, "UploadId": multipart_id, "PartNumber": number}
        return self._client.generate_presigned_url(
            "upload_part", Params={**params, "ContentLength": length}, ExpiresIn=seconds
        )

    def put_part(self, key: str, multipart_id: str, number: int, body: bytes) -> None:
        """Puts one part. R2 requires that all parts but the last have one size."""
        with self._answers("PUT", key):
            self._client.upload_part(
                Bucket=self._name, Key=key, UploadId=multipart_id, PartNumber=number, Body=body
            )

    def parts(self, key: str, multipart_id: str) -> dict[int, ArrivedPart] | None:
        """Returns the parts that have arrived, by number; None where there is no such upload."""
        arrived: dict[int, ArrivedPart] = {}
        with self._answers("LIST", key):
            pages = self._client.get_paginator("list_parts").paginate(
                Bucket=self._name, Key=key, UploadId=multipart_id
            )
            for page in pages:
                for part in page.get("Parts", []):
                    arrived[part["PartNumber"]] = ArrivedPart(part["Size"], part["ETag"])
            return arrived
        return None

    def join_parts(self, key: str, multipart_id: str, arrived: dict[int, ArrivedPart]) -> None:
        """Joins the parts to one object; idempotent."""
        parts: list[CompletedPartTypeDef] = [
            {"PartNumber": number, "ETag": part.etag} for number, part in sorted(arrived.items())
        ]
        with self._answers("POST", key):
            self._client.complete_multipart_upload(
                Bucket=self._name,
                Key=key,
                UploadId=multipart_id,
                MultipartUpload={"Parts": parts},
            )

    def drop_parts(self, key: str, multipart_id: str) -> None:
        """Drops a multipart upload and its parts."""
        with self._answers("DELETE", key):
            self._client.abort_multipart_upload(Bucket=self._name, Key=key, UploadId=multipart_id)

    def unfinished(self, prefix: str) -> Iterator[Unfinished]:
        """Yields the unfinished multipart uploads below a prefix."""
        with self._answers("LIST", prefix):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._name, Prefix=prefix
            )
            for page in pages:
                for item in page.get("Uploads", []):
                    begun_at = int(item["Initiated"].timestamp() * 1000)
                    yield Unfinished(item["Key"], item["UploadId"], begun_at)

    def set_up(self, origins: Sequence[str]) -> None:
        """Sets the bucket's rules; keeps its other rules.

        Web pages of these origins may put and get by presigned URL. The bucket drops unfinished
        multipart uploads after a day.
        """
        abort: LifecycleRuleTypeDef = {
            "ID": RULE,
            "Status": "Enabled",
            "Filter": {"Prefix": ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
        }
        with self._answers("PUT", "the bucket's rules"):
            if origins:
                rules = [rule for rule in self._cors() if rule.get("ID") != RULE]
                self._client.put_bucket_cors(
                    Bucket=self._name,
                    CORSConfiguration={"CORSRules": [*rules, {"ID": RULE, **cors_rule(origins)}]},
                )
            others = [rule for rule in self._lifecycle() if rule.get("ID") != RULE]
            self._client.put_bucket_lifecycle_configuration(
                Bucket=self._name, LifecycleConfiguration={"Rules": [*others, abort]}
            )

    def _cors(self) -> list[Any]:
        with self._answers("GET", "the bucket's rules"):
            return [*self._client.get_bucket_cors(Bucket=self._name)["CORSRules"]]
        return []

    def _lifecycle(self) -> list[Any]:
        with self._answers("GET", "the bucket's rules"):
            return [*self._client.get_bucket_lifecycle_configuration(Bucket=self._name)["Rules"]]
        return []

    def size(self, key: str) -> int | None:
        """Returns the object's size in bytes, or None."""
        with self._answers("HEAD", key):
            return self._client.head_object(Bucket=self._name, Key=key)["ContentLength"]
        return None

    def read(self, key: str, limit: int = 65_536) -> bytes | None:
        """Returns the first `limit` bytes of an object, or None."""
        with self._answers("GET", key):
            answer = self._client.get_object(Bucket=self._name, Key=key)
            # Entered itself, the body is urllib3's, whose errors are of other classes.
            with closing(answer["Body"]) as body:
                data = body.read(limit)
            # A line that is lost in the middle of an answer is no error of a read with a limit.
            if len(data) < min(limit, answer["ContentLength"]):
                raise self._failed("GET", key, "the answer broke off")
            return data
        return None

    def write(self, key: str, body: bytes) -> None:
        """Puts a small JSON document."""
        with self._answers("PUT", key):
            self._client.put_object(
                Bucket=self._name, Key=key, Body=body, ContentType="application/json"
            )

    def delete(self, key: str) -> None:
        """Removes an object; a missing object counts as removed."""
        with self._answers("DELETE", key):
            self._client.delete_object(Bucket=self._name, Key=key)

    def listed(self, prefix: str) -> Iterator[Found]:
        """Yields all objects below a prefix, in the order of their keys."""
        with self._answers("LIST", prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._name, Prefix=prefix
            ):
                for item in page.get("Contents", []):
                    yield Found(
                        item["Key"], item["Size"], int(item["LastModified"].timestamp() * 1000)
                    )

    @contextmanager
    def _answers(self, method: str, key: str) -> Iterator[None]:
        """Suppresses "no such object", for code after the `with`; raises StorageError otherwise."""
        try:
            yield
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in _MISSING:
                raise self._failed(method, key, error) from error
        except BotoCoreError as error:
            raise self._failed(method, key, error) from error

    def _failed(self, method: str, key: str, why: object) -> StorageError:
        self._on_error(method)
        return StorageError(f"{method} {key}: {why}")

    def check(self) -> None:
        """Raises StorageError unless the bucket exists and may be used."""
        with self._answers("HEAD", "the bucket"):
            self._client.head_bucket(Bucket=self._name)
            return
        raise StorageError(f"the bucket {self._name} does not exist")


def cors_rule(origins: Sequence[str]) -> "CORSRuleTypeDef":
    """Returns the rule that allows web pages of these origins to use presigned URLs."""
    return {
        "AllowedOrigins": list(origins),
        "AllowedMethods": ["GET", "HEAD", "PUT"],
        "AllowedHeaders": ["*"],
        "ExposeHeaders": ["ETag"],
        "MaxAgeSeconds": 3600,
    }


def _moment(text: str) -> datetime:
    """Parses a time of a listing (ISO 8601) or of a header (RFC 9110)."""
    return datetime.fromisoformat(text) if text[:1].isdigit() else parsedate_to_datetime(text)


@functools.cache
def _loader() -> botocore.loaders.Loader:
    """Returns what keeps the description of S3: each new one would parse a megabyte of JSON."""
    return botocore.loaders.create_loader()


def open_bucket(
    settings: Settings, on_error: Callable[[str], None] = lambda method: None
) -> Bucket:
    """Makes the client; nothing is sent yet."""
    session = botocore.session.get_session()
    session.register_component("data_loader", _loader())
    parsers = session.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=_moment)
    client = boto3.Session(botocore_session=session).client(
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
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"max_attempts": 2, "mode": "standard"},
            max_pool_connections=32,
            # With the next line, and with _moment, a call costs a quarter less CPU time.
            user_agent="reelbroker",
            parameter_validation=False,
            s3={"addressing_style": "path"},
        ),
    )
    return Bucket(client, settings.r2_bucket_name, on_error)
