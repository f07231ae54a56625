"""Opens the database: SQLite with one connection in one process, or PostgreSQL.

SQLite 3.7.0 to 3.51.2 can corrupt a WAL database where two connections write and checkpoint at
once. So a lock file admits one process, and the pool has one connection
(docs/decisions/0003-one-sqlite-connection.md). Others may read meanwhile: a reader neither writes
nor checkpoints. store/backup.py copies and restores a SQLite database.
"""

import contextlib
import fcntl
import sqlite3
from collections.abc import Iterator
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
        # A database without a locale (SQL_ASCII) would make psycopg return bytes.
        return create_engine(url.update_query_dict({"client_encoding": "utf8"}), **options)
    except ModuleNotFoundError as error:
        raise DatabaseError(
            "PostgreSQL needs its driver: pip install 'reelbroker[postgres]'"
        ) from error


def open_engine(database_url: str) -> Engine:
    """Opens the database to write, and migrates its tables to this release.

    Raises:
        DatabaseInUse: another process has the SQLite file.
        DatabaseError: the database cannot be used, or a newer release has migrated it.
    """
    path = sqlite_path(database_url)
    if path is None:
        return _migrated(_postgres(database_url, pool_pre_ping=True))
    lock = locked(path)
    make_private(path)
    engine = create_engine(
        database_url,
        pool_size=1,
        max_overflow=0,
        connect_args={"check_same_thread": False, "timeout": 5.0},
    )
    event.listen(engine, "connect", _prepare_sqlite)
    # pysqlite would begin lazily, as a reader. The later upgrade to a writer fails at once,
    # whatever the timeout.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    event.listen(engine, "engine_disposed", lambda _: lock.close())
    return _migrated(engine)


@contextlib.contextmanager
def reading(database_url: str) -> Iterator[Engine]:
    """Opens the database to read, also while a broker runs.

    Raises:
        DatabaseError: there is no database, or it cannot be used.
    """
    path = sqlite_path(database_url)
    if path is None:
        options = {"options": "-c default_transaction_read_only=on"}
        engine = _postgres(database_url, connect_args=options, poolclass=NullPool)
    else:
        if not path.exists():
            raise DatabaseError(f"there is no database at {path}")
        engine = create_engine("sqlite://", creator=lambda: open_readonly(path), poolclass=NullPool)
    try:
        with _plain_errors():
            yield engine
    finally:
        engine.dispose()


def open_readonly(path: Path) -> sqlite3.Connection:
    """Opens a SQLite file that may be in use. Only a writer can open a WAL that nobody has open."""
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


def locked(path: Path) -> Any:
    beside = path.with_name(path.name + ".lock")
    make_private(beside)
    lock = beside.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise DatabaseInUse(
            f"{path} is in use by another process: a running broker, perhaps"
        ) from error
    return lock


def make_private(path: Path) -> None:
    """Creates a missing file for its owner alone; SQLite gives `-wal` and `-shm` the same mode.

    The database holds the secrets of webhooks. The operator chooses the mode of an existing file.
    """
    try:
        path.touch(mode=0o600)
    except OSError as error:
        raise DatabaseError(f"{path} cannot be opened: {error.strerror}") from error


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # open_engine's listener sends BEGIN.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _migrated(engine: Engine) -> Engine:
    """Migrates the tables; closes the engine where that fails."""
    with contextlib.ExitStack() as failed:
        failed.callback(engine.dispose)
        _migrate(engine)
        failed.pop_all()
    return engine


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", "broker.store:migrations")
    try:
        with _plain_errors(), engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        # The database has a revision that this release does not have.
        raise DatabaseError(
            f"the database was made by a newer release than this one ({error})"
        ) from error


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Turns a driver's error into a DatabaseError of one line."""
    try:
        yield
    except DriverError as error:
        raise DatabaseError(
            f"the database cannot be used: {str(error.orig).splitlines()[0]}"
        ) from error
