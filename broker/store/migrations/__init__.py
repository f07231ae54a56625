"""Alembic: the tables from the first release on."""
