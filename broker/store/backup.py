"""Copies of a SQLite database. PostgreSQL has tools of its own: pg_dump and pg_restore."""

import contextlib
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from broker.errors import DatabaseError
from broker.store.engine import locked, make_private, open_readonly, sqlite_path


def copy_database(database_url: str, target: Path) -> None:
    """Makes a consistent copy of a SQLite database, also while a broker writes to it.

    Raises:
        DatabaseError: the copy cannot be made, is damaged, or the target exists.
    """
    path = sqlite_path(database_url)
    if path is None:
        raise DatabaseError("PostgreSQL has tools of its own for this: pg_dump and pg_restore")
    if not path.exists():
        raise DatabaseError(f"there is no database at {path}")
    if target.exists():
        raise DatabaseError(f"{target} is there already")
    make_private(target)
    with (
        contextlib.closing(open_readonly(path)) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        try:
            source.backup(copy)
            # Without a WAL, the copy is one file.
            copy.execute("PRAGMA journal_mode=DELETE")
        except sqlite3.DatabaseError as error:
            raise DatabaseError(f"{path} is no database of ours: {error}") from error
        check_integrity(copy)


def restore_database(source: Path, database_url: str) -> None:
    """Replaces the database with a copy; renames an existing database.

    Raises:
        DatabaseInUse: a broker runs on the database.
        DatabaseError: the copy is damaged, or is no database of a broker.
    """
    path = sqlite_path(database_url)
    if path is None:
        raise DatabaseError("PostgreSQL has tools of its own for this: pg_dump and pg_restore")
    with locked(path):
        arriving = path.with_name(path.name + ".arriving")
        arriving.unlink(missing_ok=True)
        try:
            copy_database(f"sqlite:///{source}", arriving)
        except BaseException:
            arriving.unlink(missing_ok=True)
            raise
        now = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        for old in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
            if old.exists():
                old.rename(old.with_name(f"{old.name}.before-restore-{now}"))
        arriving.rename(path)


def check_integrity(connection: sqlite3.Connection) -> None:
    """Raises DatabaseError where SQLite finds damage."""
    try:
        found = connection.execute("PRAGMA integrity_check").fetchone()[0]
        connection.execute("SELECT count(*) FROM export_jobs")
    except sqlite3.DatabaseError as error:
        raise DatabaseError(f"this is no database of ours: {error}") from error
    if found != "ok":
        raise DatabaseError(f"the database is damaged: {found}")
