"""Every SQL statement about uploads, and about the objects that jobs name.

All methods block; callers run them in a thread.
"""

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine, and_, case, delete, insert, or_, select, union, update

from broker.store.tables import UploadRow, table

JOBS = table("export_jobs")
UPLOADS = table("uploads")
#: The size of an upload that its user dropped. The row stays, because its URL may still be valid:
#: the sweep removes what arrives.
DROPPED = 0


class UploadStore:
    """The files that users were given URLs for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, upload: UploadRow) -> None:
        """Stores a new upload."""
        with self._engine.begin() as connection:
            connection.execute(insert(UPLOADS).values(upload.model_dump()))

    def find(self, upload_id: str, user_id: str) -> UploadRow | None:
        """Returns one of the user's uploads; None where there is none, or it was dropped."""
        query = select(UPLOADS).where(UPLOADS.c.id == upload_id, UPLOADS.c.user_id == user_id)
        with self._engine.begin() as connection:
            row = connection.execute(query).mappings().first()
        if row is None or (row["bytes"] == DROPPED and row["completed_at"] is None):
            return None
        return UploadRow(**row)

    def complete(self, upload_id: str, size: int, now: int) -> None:
        """Accepts an upload with this size; an upload that was accepted before keeps its size."""
        new = UPLOADS.c.id == upload_id, UPLOADS.c.completed_at.is_(None)
        with self._engine.begin() as connection:
            connection.execute(update(UPLOADS).where(*new).values(completed_at=now, bytes=size))

    def set_multipart_id(self, upload_id: str, multipart_id: str) -> None:
        """Stores the id of the multipart upload that the parts belong to."""
        self._set(upload_id, multipart_id=multipart_id)

    def drop(self, upload_id: str) -> None:
        """Notes that the user dropped the upload."""
        self._set(upload_id, bytes=DROPPED)

    def refuse(self, user_id: str, key: str, size: int) -> bool:
        """Notes that an upload is too large.

        Returns:
            False where the object is no upload, or was accepted with this size under an earlier
            limit.
        """
        was_accepted = and_(UPLOADS.c.completed_at.is_not(None), UPLOADS.c.bytes == size)
        this = UPLOADS.c.user_id == user_id, UPLOADS.c.key == key, ~was_accepted
        with self._engine.begin() as connection:
            refused = update(UPLOADS).where(*this).values(bytes=size, completed_at=None)
            return connection.execute(refused).rowcount > 0

    def sizes(self, user_id: str) -> dict[str, int | None]:
        """Returns the keys of the user's uploads, each with the size that was accepted, or None."""
        accepted = case((UPLOADS.c.completed_at.is_not(None), UPLOADS.c.bytes))
        query = select(UPLOADS.c.key, accepted).where(UPLOADS.c.user_id == user_id)
        with self._engine.begin() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def users(self) -> list[str]:
        """Returns the ids of all users who have jobs or uploads."""
        query = union(select(JOBS.c.user_id), select(UPLOADS.c.user_id))
        with self._engine.begin() as connection:
            return list(connection.execute(query).scalars())

    def keys_in_use(self, user_id: str) -> set[str]:
        """Returns the keys of all objects that any of the user's jobs names."""
        named = select(JOBS.c.input_key, JOBS.c.output_key, JOBS.c.params)
        keys: set[str] = set()
        with self._engine.begin() as connection:
            for row in connection.execute(named.where(JOBS.c.user_id == user_id)):
                keys.update(filter(None, row[:2]))
                keys.update(_keys_in(json.loads(row[2])))
        return keys

    def is_needed(self, user_id: str, key: str, since: int) -> bool:
        """Whether a job with that input is open, or ended since a moment."""
        lately = or_(JOBS.c.completed_at.is_(None), JOBS.c.completed_at >= since)
        query = select(JOBS.c.id).where(JOBS.c.user_id == user_id, JOBS.c.input_key == key, lately)
        with self._engine.begin() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def forget(self, before: int) -> None:
        """Deletes the rows of uploads that were begun before a moment."""
        with self._engine.begin() as connection:
            connection.execute(delete(UPLOADS).where(UPLOADS.c.created_at < before))

    def _set(self, upload_id: str, **values: str | int) -> None:
        with self._engine.begin() as connection:
            connection.execute(update(UPLOADS).where(UPLOADS.c.id == upload_id).values(**values))


def _keys_in(params: Any) -> Iterator[str]:
    """Yields the value of each `…_key` in a job's params, at any depth."""
    if isinstance(params, list):
        for item in params:
            yield from _keys_in(item)
    elif isinstance(params, dict):
        for name, value in params.items():
            if name.endswith("_key") and isinstance(value, str):
                yield value
            else:
                yield from _keys_in(value)
