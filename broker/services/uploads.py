"""Uploads from a client to the bucket: one PUT, or equal parts for a large file.

The broker returns presigned URLs and never sees the bytes. The bucket lists the parts that have
arrived, so a client resumes an interrupted upload with the missing ones.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from starlette.concurrency import run_in_threadpool

from broker.bucket import ArrivedPart, Bucket
from broker.clock import DAY_MS, now_ms
from broker.errors import BodyTooLarge, FileTooLarge, InvalidRequest, NotFound, UploadIncomplete
from broker.settings import Settings
from broker.store.tables import UploadRow
from broker.store.uploads import UploadStore
from schemas.keys import MAX_NAME_BYTES, TEMPORARY, object_key
from schemas.uploads import MAX_PARTS, DownloadUrl, Part, Uploaded, UploadRequest, UploadTicket

#: From so many bytes on, a file is uploaded in parts.
IN_PARTS_FROM = 100_000_000
PART_BYTES = 16 * 2**20
#: How many URLs a ticket has; the client requests further ones later.
PARTS_AT_ONCE = 100
#: How much of its suffix a shortened name keeps.
MAX_SUFFIX_BYTES = 16


class IncomingFile:
    """A file that passes through the broker into the bucket, with at most one part in memory.

    Call `complete`, or `discard` to remove what has arrived.
    """

    def __init__(self, bucket: Bucket, user_id: str, key: str, most_bytes: int) -> None:
        self.key = key
        self._bucket = bucket
        self._whole = object_key(user_id, key)
        self._most = most_bytes
        self._multipart_id: str | None = None
        self._part = bytearray()
        self._parts = 0
        self._bytes = 0

    async def write(self, data: bytes) -> None:
        """Takes the next bytes; raises BodyTooLarge or StorageError."""
        self._bytes += len(data)
        if self._bytes > self._most:
            raise BodyTooLarge(f"The file is over {self._most} bytes.")
        self._part += data
        while len(self._part) >= PART_BYTES:
            await self._put(bytes(self._part[:PART_BYTES]))
            del self._part[:PART_BYTES]

    async def complete(self) -> int:
        """Joins the parts to an object, and returns its size; an empty file makes no object."""
        if self._bytes == 0:
            return 0
        if self._part:
            await self._put(bytes(self._part))
        if self._multipart_id is not None:
            arrived = await run_in_threadpool(self._bucket.parts, self._whole, self._multipart_id)
            await run_in_threadpool(
                self._bucket.join_parts, self._whole, self._multipart_id, arrived or {}
            )
            self._multipart_id = None
        return self._bytes

    async def discard(self) -> None:
        """Removes the object, or its parts."""
        if self._multipart_id is not None:
            await run_in_threadpool(self._bucket.drop_parts, self._whole, self._multipart_id)
        elif self._parts:
            await run_in_threadpool(self._bucket.delete, self._whole)

    async def _put(self, body: bytes) -> None:
        if self._multipart_id is None:
            self._multipart_id = await run_in_threadpool(
                self._bucket.begin_parts, self._whole, "video/mp4"
            )
        self._parts += 1
        await run_in_threadpool(
            self._bucket.put_part, self._whole, self._multipart_id, self._parts, body
        )


@dataclass(frozen=True, eq=False)
class UploadService:
    """The uploads and downloads of all users, for one user at a time."""

    settings: Settings
    uploads: UploadStore
    bucket: Bucket
    clock: Callable[[], int] = now_ms

    async def begin(self, user_id: str, request: UploadRequest) -> UploadTicket:
        """Returns URLs to PUT a video to, under a new key.

        Raises:
            InvalidRequest: the file is too large.
        """
        return await run_in_threadpool(self._begin, user_id, request)

    def _begin(self, user_id: str, request: UploadRequest) -> UploadTicket:
        most = self.settings.max_upload_bytes
        if request.bytes is not None and request.bytes > most:
            raise InvalidRequest([("/bytes", f"a file may have {most} bytes at most")])
        upload_id = str(uuid.uuid4())
        upload = UploadRow(
            id=upload_id,
            user_id=user_id,
            key=f"uploads/{upload_id}/{_shortened(request.filename)}",
            content_type=request.content_type,
            bytes=request.bytes,
            created_at=self.clock(),
        )
        if request.bytes is not None and request.bytes >= IN_PARTS_FROM:
            whole = object_key(user_id, upload.key)
            upload.multipart_id = self.bucket.begin_parts(whole, upload.content_type)
        # An older client, which sends `job_id`, puts with its content type alone.
        ticket = self._ticket(upload, once="job_id" not in request.model_fields_set)
        self.uploads.add(upload)
        return ticket

    async def resume(self, user_id: str, upload_id: str) -> UploadTicket:
        """Returns fresh URLs for what has not arrived yet.

        Raises:
            NotFound: no such upload, or it began too long ago.
            FileTooLarge: the file arrived, and was refused.
        """
        return await run_in_threadpool(self._resume, user_id, upload_id)

    def _resume(self, user_id: str, upload_id: str) -> UploadTicket:
        upload = self._upload(user_id, upload_id)
        if upload.completed_at is None:
            # A later URL would outlive the row, without which the sweep does not find the file.
            if upload.created_at < self.clock() - self.settings.keep_uploads_days * DAY_MS:
                raise NotFound(f"The upload {upload_id[:64]} is too old; begin another one.")
            self._check_size(upload, upload.bytes or 0)
        return self._ticket(upload, has_arrived=self._is_there(upload))

    def _is_there(self, upload: UploadRow) -> bool:
        """Whether the file of a single PUT has arrived."""
        if upload.completed_at is not None or upload.multipart_id is not None:
            return False
        return self.bucket.size(object_key(upload.user_id, upload.key)) is not None

    async def complete(self, user_id: str, upload_id: str) -> Uploaded:
        """Checks that the whole file is in the bucket, and joins its parts; idempotent.

        Raises:
            NotFound: no such upload.
            UploadIncomplete: the message names what is missing.
            FileTooLarge: the file was too large, and is removed.
        """
        return await run_in_threadpool(self._complete, user_id, upload_id)

    def _complete(self, user_id: str, upload_id: str) -> Uploaded:
        upload = self._upload(user_id, upload_id)
        key = object_key(user_id, upload.key)
        if upload.multipart_id is not None and upload.completed_at is None:
            arrived = self.bucket.parts(key, upload.multipart_id)
            # Otherwise the parts were joined before, or the bucket has dropped them.
            if arrived is not None:
                if missing := _missing(upload, arrived):
                    first = missing[0][0]
                    raise UploadIncomplete(
                        f"{len(missing)} parts are missing; the first is part {first}."
                    )
                self.bucket.join_parts(key, upload.multipart_id, arrived)
        size = self.bucket.size(key)
        if upload.completed_at is None:
            self._check_size(upload, max(size or 0, upload.bytes or 0))
        if size is None:
            raise UploadIncomplete("The file is not in the bucket.")
        if upload.bytes not in (None, size):
            raise UploadIncomplete(
                f"The file has {size} bytes in the bucket, and not {upload.bytes}."
            )
        self.uploads.complete(upload_id, size, self.clock())
        return Uploaded(upload_id=upload_id, video_key=upload.key, bytes=size)

    def _check_size(self, upload: UploadRow, size: int) -> None:
        """Removes a file over the limit, refuses its upload, and raises FileTooLarge."""
        most = self.settings.max_upload_bytes
        if size <= most:
            return
        self.uploads.refuse(upload.user_id, upload.key, size)
        self.bucket.delete(object_key(upload.user_id, upload.key))
        raise FileTooLarge(
            f"The file has {size} bytes, and may have {most} at most. It is removed."
        )

    async def abandon(self, user_id: str, upload_id: str) -> None:
        """Drops an upload that is not complete, with what has arrived; raises NotFound."""
        await run_in_threadpool(self._abandon, user_id, upload_id)

    def _abandon(self, user_id: str, upload_id: str) -> None:
        upload = self._upload(user_id, upload_id)
        if upload.completed_at is not None:
            return
        key = object_key(user_id, upload.key)
        if upload.multipart_id is not None:
            self.bucket.drop_parts(key, upload.multipart_id)
        elif upload.key not in self.uploads.keys_in_use(user_id):
            self.bucket.delete(key)
        self.uploads.drop(upload_id)

    def incoming(self, user_id: str) -> IncomingFile:
        """Returns a temporary file to write into; the end of its job removes it."""
        key = f"{TEMPORARY}/{uuid.uuid4()}/source.mp4"
        return IncomingFile(self.bucket, user_id, key, self.settings.max_upload_bytes)

    async def download(self, user_id: str, key: str) -> DownloadUrl:
        """Returns a presigned URL of one of the user's objects, or raises NotFound."""
        whole = object_key(user_id, key)
        if await run_in_threadpool(self.bucket.size, whole) is None:
            raise NotFound("There is no such object.")
        seconds = self.settings.url_lifetime_seconds
        url = self.bucket.presigned_get(whole, key.rpartition("/")[2], seconds)
        return DownloadUrl(url=url, expires_in=seconds)

    def _upload(self, user_id: str, upload_id: str) -> UploadRow:
        upload = self.uploads.find(upload_id, user_id)
        if upload is None:
            raise NotFound(f"There is no upload {upload_id[:64]}.")
        return upload

    def _ticket(
        self, upload: UploadRow, once: bool = True, has_arrived: bool = False
    ) -> UploadTicket:
        seconds = self.settings.url_lifetime_seconds
        key = object_key(upload.user_id, upload.key)
        url, headers, parts = None, {}, []
        if upload.completed_at is not None or has_arrived:
            pass
        elif upload.multipart_id is None:
            headers = {"Content-Type": upload.content_type} | (
                {"If-None-Match": "*"} if once else {}
            )
            url = self.bucket.presigned_put(key, seconds, headers, upload.bytes)
        else:
            multipart_id, missing = self._still_missing(upload, key, upload.multipart_id)
            parts = [
                self._part(key, multipart_id, *part, seconds) for part in missing[:PARTS_AT_ONCE]
            ]
        return UploadTicket(
            upload_id=upload.id,
            video_key=upload.key,
            upload_url=url,
            method="PUT",
            headers=headers,
            parts=parts,
            complete_url=f"{self.settings.root_path}/api/videos/uploads/{upload.id}/complete",
            completed=upload.completed_at is not None,
            expires_in_seconds=seconds,
        )

    def _still_missing(
        self, upload: UploadRow, key: str, multipart_id: str
    ) -> tuple[str, list[tuple[int, int, int]]]:
        """Returns the multipart upload's id and its missing parts.

        If the bucket has dropped the upload, a new one begins.
        """
        arrived = self.bucket.parts(key, multipart_id)
        if arrived is None:
            if self.bucket.size(key) == upload.bytes:
                return multipart_id, []
            multipart_id, arrived = self.bucket.begin_parts(key, upload.content_type), {}
            self.uploads.set_multipart_id(upload.id, multipart_id)
        return multipart_id, _missing(upload, arrived)

    def _part(
        self, key: str, multipart_id: str, number: int, offset: int, length: int, seconds: int
    ) -> Part:
        url = self.bucket.presigned_part(key, multipart_id, number, length, seconds)
        return Part(number=number, offset=offset, bytes=length, upload_url=url)


def _shortened(filename: str) -> str:
    """Returns a name that fits into a key, with its suffix, cut between two characters."""
    if len(filename.encode()) <= MAX_NAME_BYTES:
        return filename
    suffix = PurePosixPath(filename).suffix.encode()[:MAX_SUFFIX_BYTES]
    stem = filename.encode()[: MAX_NAME_BYTES - len(suffix)]
    return stem.decode(errors="ignore") + suffix.decode(errors="ignore")


def _plan(upload: UploadRow) -> list[tuple[int, int, int]]:
    """Returns (number, offset, bytes) of each part; R2 wants one size for all but the last."""
    total = upload.bytes or 0
    size = max(PART_BYTES, -(-total // MAX_PARTS // 2**20) * 2**20)
    return [
        (number, offset, min(size, total - offset))
        for number, offset in enumerate(range(0, total, size), start=1)
    ]


def _missing(upload: UploadRow, arrived: dict[int, ArrivedPart]) -> list[tuple[int, int, int]]:
    sizes = {number: part.bytes for number, part in arrived.items()}
    return [part for part in _plan(upload) if sizes.get(part[0]) != part[2]]
