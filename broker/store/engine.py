"""Opening the database: SQLite with one connection in one process, or PostgreSQL; and copies of it.

SQLite 3.7.0 to 3.51.2 can corrupt a WAL database where two connections write and checkpoint at once, so a lock on a file
beside it lets one process in, and the pool has one connection (docs/decisions/0003-one-sqlite-connection.md). Others may
read meanwhile: a reader neither writes nor checkpoints.
"""

import contextlib
import fcntl
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.exc import DatabaseError as DriverError
from sqlalchemy.pool import NullPool

from broker.errors import DatabaseError, DatabaseInUse


def sqlite_path(database_url: str) -> Path | None:
    """Returns the file of a SQLite URL; None for another database."""
    url = make_url(database_url)
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def _postgres(database_url: str, **options: Any) -> Engine:
    try:
        url = make_url(database_url).set(drivername="postgresql+psycopg")
        # Said, since a database that was made without a locale (SQL_ASCII) would have psycopg return bytes.
        return create_engine(url.update_query_dict({"client_encoding": "utf8"}), **options)
    except ModuleNotFoundError as error:
        raise DatabaseError(
            "PostgreSQL needs its driver: pip install 'reelbroker[postgres]'"
        ) from error


def open_engine(database_url: str) -> Engine:
    """Opens the database to write, and brings its tables to this release's shape.

    Raises:
        DatabaseInUse: another process has the SQLite file.
        DatabaseError: it cannot be used, or a newer release has made it.
    """
    path = sqlite_path(database_url)
    if path is None:
        return _migrated(_postgres(database_url, pool_pre_ping=True))
    lock = _locked(path)
    _make_private(path)
    engine = create_engine(
        database_url,
        pool_size=1,
        max_overflow=0,
        connect_args={"check_same_thread": False, "timeout": 5.0},
    )
    event.listen(engine, "connect", _prepare_sqlite)
    # pysqlite would begin lazily and as a reader; a later upgrade to writer fails at once, whatever the timeout.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    event.listen(engine, "engine_disposed", lambda _: lock.close())
    return _migrated(engine)


@contextlib.contextmanager
def reading(database_url: str) -> Iterator[Engine]:
    """Opens the database to read, also beside a running broker.

    Raises:
        DatabaseError: there is none, or it cannot be used.
    """
    path = sqlite_path(database_url)
    if path is None:
        options = {"options": "-c default_transaction_read_only=on"}
        engine = _postgres(database_url, connect_args=options, poolclass=NullPool)
    else:
        if not path.exists():
            raise DatabaseError(f"there is no database at {path}")
        engine = create_engine("sqlite://", creator=lambda: _readonly(path), poolclass=NullPool)
    try:
        with _said_plainly():
            yield engine
    finally:
        engine.dispose()


def copy_database(database_url: str, target: Path) -> None:
    """Makes a consistent copy of a SQLite database, also of one that is being written to.

    Raises:
        DatabaseError: the copy cannot be made, is damaged, or the target is there already.
    """
    path = sqlite_path(database_url)
    if path is None:
        raise DatabaseError("PostgreSQL has tools of its own for this: pg_dump and pg_restore")
    if not path.exists():
        raise DatabaseError(f"there is no database at {path}")
    if target.exists():
        raise DatabaseError(f"{target} is there already")
    _make_private(target)
    with (
        contextlib.closing(_readonly(path)) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        try:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, complete in itself
        except sqlite3.DatabaseError as error:
            raise DatabaseError(f"{path} is no database of ours: {error}") from error
        check_integrity(copy)


def restore_database(source: Path, database_url: str) -> None:
    """Puts a copy in the place of the database, which is kept under another name if there is one.

    Raises:
        DatabaseInUse: a broker runs on it.
        DatabaseError: the copy is damaged, or no database of ours.
    """
    path = sqlite_path(database_url)
    if path is None:
        raise DatabaseError("PostgreSQL has tools of its own for this: pg_dump and pg_restore")
    with _locked(path):
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
        told = connection.execute("PRAGMA integrity_check").fetchone()[0]
        connection.execute("SELECT count(*) FROM export_jobs")
    except sqlite3.DatabaseError as error:
        raise DatabaseError(f"this is no database of ours: {error}") from error
    if told != "ok":
        raise DatabaseError(f"the database is damaged: {told}")


def _readonly(path: Path) -> sqlite3.Connection:
    """Opens a SQLite file that may be in use; a WAL that nobody has open needs a writer, who then does nothing else."""
    for mode in ("ro", "rw"):
        connection = sqlite3.connect(f"file:{path}?mode={mode}", uri=True, timeout=5.0)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.OperationalError:
            connection.close()
            continue
        except sqlite3.DatabaseError as error:
            connection.close()
            raise DatabaseError(f"{path} is no database of ours: {error}") from error
        connection.execute("PRAGMA query_only=ON")
        return connection
    raise DatabaseError(f"{path} cannot be opened")


def _locked(path: Path) -> Any:
    beside = path.with_name(path.name + ".lock")
    _make_private(beside)
    lock = beside.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise DatabaseInUse(
            f"{path} is in use by another process: a running broker, perhaps"
        ) from error
    return lock


def _make_private(path: Path) -> None:
    """Makes the file, where it is not there yet, for its owner alone; SQLite gives its `-wal` and `-shm` the same mode.

    It holds the secrets of webhooks. The mode of a file that is there already is its operator's choice.
    """
    try:
        path.touch(mode=0o600)
    except OSError as error:
        raise DatabaseError(f"{path} cannot be opened: {error.strerror}") from error


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _migrated(engine: Engine) -> Engine:
    """Brings the tables to this release's shape; an engine that fails is closed."""
    with contextlib.ExitStack() as failed:
        failed.callback(engine.dispose)
        _migrate(engine)
        failed.pop_all()
    return engine


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", "broker.store:migrations")
    try:
        with _said_plainly(), engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:  # a revision that we do not know
        raise DatabaseError(
            f"the database was made by a newer release than this one ({error})"
        ) from error


@contextlib.contextmanager
def _said_plainly() -> Iterator[None]:
    """Turns what a driver says into an error of ours, of one line."""
    try:
        yield
    except DriverError as error:
        raise DatabaseError(
            f"the database cannot be used: {str(error.orig).splitlines()[0]}"
        ) from error
