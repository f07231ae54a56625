"""The database as a whole: how it is set up, who may open it, copies of it, and older shapes of
it.
"""

import os
import sqlite3
import stat

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text
from sqlalchemy.exc import InternalError
from sqlmodel import SQLModel

from broker.errors import DatabaseError, DatabaseInUse
from broker.jobs.model import EventKind, JobChange
from broker.store.backup import copy_database, restore_database
from broker.store.engine import open_engine, reading
from broker.store.jobs import JobStore


def test_a_wrong_type_is_refused_by_the_table(tmp_path, make_job):
    """STRICT tables stop what SQLite would otherwise store."""
    store = JobStore(open_engine(f"sqlite:///{tmp_path}/jobs.db"))
    store.add(make_job())
    store.close()
    with (
        sqlite3.connect(f"{tmp_path}/jobs.db") as raw,
        pytest.raises(sqlite3.IntegrityError, match="INTEGER"),
    ):
        raw.execute("UPDATE export_jobs SET progress = 'half'")
    raw.close()


def test_the_file_is_set_up_to_lose_nothing(tmp_path):
    """Write-ahead log, full sync, foreign keys, and one connection only."""
    engine = open_engine(f"sqlite:///{tmp_path}/jobs.db")
    with engine.begin() as connection:
        told = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert told == ["wal", 2, 1, 5000]
    assert engine.pool.size() == 1
    engine.dispose()


@pytest.mark.abuse
def test_a_database_and_its_copies_are_the_owners_alone(tmp_path, make_job):
    """Secrets of webhooks are in them: the file, its log, its lock, a copy, and what a copy is
    restored to.
    """
    before = os.umask(0o022)
    try:
        url = f"sqlite:///{tmp_path}/jobs.db"
        store = JobStore(open_engine(url))
        store.add(make_job())
        copy_database(url, tmp_path / "copy.db")
        running = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        store.close()
        restore_database(tmp_path / "copy.db", url)
        restored = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert {"jobs.db", "jobs.db-wal", "jobs.db-shm", "jobs.db.lock", "copy.db"} <= running.keys()
    assert {*running.values(), *restored.values()} == {0o600}


def test_the_migrations_make_the_tables_that_the_models_describe(database_url):
    """Nobody has changed a model and forgotten the migration."""
    engine = open_engine(database_url)
    with engine.connect() as connection:
        difference = compare_metadata(MigrationContext.configure(connection), SQLModel.metadata)
    engine.dispose()
    assert difference == []


ALEMBIC = Config()
ALEMBIC.set_main_option("script_location", "broker.store:migrations")


@pytest.mark.parametrize(
    "revision", [one.revision for one in ScriptDirectory.from_config(ALEMBIC).walk_revisions()]
)
def test_a_database_of_every_revision_is_brought_forward_with_its_jobs(database_url, revision):
    """With a job and an attempt in it, on which the broker goes on."""
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        ALEMBIC.attributes["connection"] = connection
        # The empty database on PostgreSQL is a copy of one that has our tables.
        change = command.upgrade if engine.dialect.name == "sqlite" else command.downgrade
        change(ALEMBIC, revision)
        job = {
            "id": "j",
            "user_id": "u",
            "type": "framing",
            "status": "processing",
            "phase": "queued",
            "progress": 7,
            "message": "m",
            "input_key": "a.mp4",
            "params": "{}",
            "meta": "{}",
            "attempt": 1,
            "max_attempts": 3,
            "created_at": 5,
            "due_at": 6,
            "version": 2,
        }
        columns = ", ".join(job)
        places = ", ".join(f":{name}" for name in job)
        connection.execute(text(f"INSERT INTO export_jobs ({columns}) VALUES ({places})"), job)
        target = "endpoint_url" if revision < "0007" else "target"
        connection.execute(
            text(
                f"INSERT INTO job_attempts (token, job_id, number, state, {target}, created_at)"
                " VALUES ('t', 'j', 1, 'submitted', 'http://x', 5)"
            )
        )
    engine.dispose()
    store = JobStore(open_engine(database_url))
    job, (attempt,) = store.load("j")
    assert (job.progress, job.stalled_since, attempt.state, attempt.orphan_due_at) == (
        7,
        None,
        "submitted",
        None,
    )
    assert (attempt.provider, attempt.target, attempt.part) == ("runpod", "http://x", 0)
    assert store.transition(job, EventKind.PROGRESS, JobChange(progress=8), attempt).progress == 8
    store.close()


def test_a_second_process_is_kept_out(tmp_path):
    """Two writers on one WAL file are how SQLite 3.40 breaks it; closed, the file is free again."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    first = open_engine(url)
    with pytest.raises(DatabaseInUse):
        open_engine(url)
    first.dispose()
    open_engine(url).dispose()


def test_a_database_of_a_newer_release_is_left_alone(database_url):
    """An older broker, put back after an update, says what is the matter, and changes nothing."""
    engine = open_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(DatabaseError, match=r"newer release.*9999"):
        open_engine(database_url)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///{}/no/folder.db",
        "sqlite:///{}/folder",
        "sqlite:///{}/damaged",
        "postgresql://reelbroker:secret@127.0.0.1:9/none",
    ],
    ids=["no folder", "not a file", "damaged", "no server"],
)
def test_a_database_that_cannot_be_used_says_why(tmp_path, url):
    """In a line, without the password; who only reads hears the same."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "damaged").write_text("this is not a database, " * 100)
    for opening in (open_engine, read):
        with pytest.raises(DatabaseError, match=r"no database|cannot be (used|opened): .") as told:
            opening(url.format(tmp_path))
        assert "secret" not in str(told.value)
        assert "\n" not in str(told.value)


def read(url):
    with reading(url) as engine, engine.connect() as connection:
        connection.execute(text("SELECT * FROM export_jobs"))


def test_others_may_read_meanwhile(tmp_path, make_job):
    """What is committed is seen; nothing can be written."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    store = JobStore(open_engine(url))
    job = store.add(make_job())
    with reading(url) as engine:
        reader = JobStore(engine)
        assert reader.find(job.id) == job
        with pytest.raises(Exception, match=r"readonly"):
            reader.set_flag("x", True)
    store.close()
    # Also when nobody has it open.
    with reading(url) as engine:
        assert JobStore(engine).find(job.id) == job


def test_a_backup_is_whole_and_can_be_restored(tmp_path, make_job):
    """Taken while jobs come in; afterwards the database is what it was, and the newer one is kept
    beside it.
    """
    url = f"sqlite:///{tmp_path}/jobs.db"
    store = JobStore(open_engine(url))
    before = [store.add(make_job()) for _ in range(50)]
    copy_database(url, tmp_path / "copy.db")
    after = store.add(make_job())
    with pytest.raises(DatabaseInUse):
        restore_database(tmp_path / "copy.db", url)
    store.close()
    restore_database(tmp_path / "copy.db", url)
    store = JobStore(open_engine(url))
    assert store.open_jobs() == [job.id for job in before]
    assert store.find(after.id) is None
    assert [event.kind for event in store.events(before[0].id)] == ["accepted"]
    store.close()
    assert len(list(tmp_path.glob("jobs.db.before-restore-*"))) == 1


@pytest.mark.parametrize("body", [b"", b"no database", b"SQLite format 3\0" + b"x" * 4000])
def test_what_is_no_database_is_not_restored(tmp_path, make_job, body):
    """The database that is there stays there."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    store = JobStore(open_engine(url))
    job = store.add(make_job())
    store.close()
    (tmp_path / "bad.db").write_bytes(body)
    with pytest.raises(DatabaseError):
        restore_database(tmp_path / "bad.db", url)
    store = JobStore(open_engine(url))
    assert store.find(job.id) == job
    store.close()


def test_postgresql_of_any_encoding_will_do(new_postgres, make_job):
    """A cluster that was made without a locale has SQL_ASCII; what is written comes back."""
    url = new_postgres()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE DATABASE plain ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"
        )
    store = JobStore(open_engine(f"{url.rpartition('/')[0]}/plain"))
    store.add(make_job(id="1", message="déjà vu 🎬"))
    assert store.find("1").message == "déjà vu 🎬"
    store.close()


def test_who_reads_postgresql_changes_nothing(new_postgres):
    """Neither rows, nor the shape of tables that an older broker is using."""
    url = new_postgres()
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0002'"))
    with reading(url) as reader:
        with reader.begin() as connection:
            assert (
                connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
                == "0002"
            )
        with pytest.raises(InternalError, match="read-only"), reader.begin() as connection:
            connection.execute(text("DELETE FROM export_jobs"))
    engine.dispose()
