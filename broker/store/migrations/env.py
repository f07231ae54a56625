"""Runs the migrations on the connection that database.py opened, inside its transaction."""

from alembic import context
from sqlmodel import SQLModel

import broker.store.tables  # noqa: F401  # registers the tables

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
