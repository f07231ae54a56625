"""Copies of the database: what is refused, and that a refusal leaves everything as it was."""

import pytest

from broker.errors import DatabaseError
from broker.store.backup import copy_database, restore_database
from broker.store.engine import open_engine

POSTGRES = "postgresql://localhost/reelbroker"


def garbage(path):
    path.write_text("this is not a database, " * 100)
    return path


def test_postgresql_is_left_to_its_own_tools(tmp_path):
    """A copy and a restore are refused without a connection."""
    for refused in (
        lambda: copy_database(POSTGRES, tmp_path / "copy.db"),
        lambda: restore_database(tmp_path / "copy.db", POSTGRES),
    ):
        with pytest.raises(DatabaseError, match="pg_dump"):
            refused()
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_not_there_has_no_copy(tmp_path):
    """The error names the file, and no empty copy appears."""
    with pytest.raises(DatabaseError, match="no database at"):
        copy_database(f"sqlite:///{tmp_path}/none.db", tmp_path / "copy.db")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_replaces_no_file(tmp_path):
    """The file that was there keeps its content."""
    open_engine(f"sqlite:///{tmp_path}/jobs.db").dispose()
    kept = tmp_path / "copy.db"
    kept.write_text("mine")
    with pytest.raises(DatabaseError, match="there already"):
        copy_database(f"sqlite:///{tmp_path}/jobs.db", kept)
    assert kept.read_text() == "mine"


def test_a_file_that_is_no_database_is_not_restored(tmp_path):
    """Nothing half-done stays beside the database, and the database is untouched."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    open_engine(url).dispose()
    before = (tmp_path / "jobs.db").read_bytes()
    with pytest.raises(DatabaseError, match="no database of ours"):
        restore_database(garbage(tmp_path / "copy.db"), url)
    assert (tmp_path / "jobs.db").read_bytes() == before
    assert not list(tmp_path.glob("*.arriving")) + list(tmp_path.glob("*.before-restore-*"))
