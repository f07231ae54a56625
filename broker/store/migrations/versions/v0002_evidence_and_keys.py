"""What retries, orphans and idempotency need to remember."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INT64: sa.types.TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
FLOAT64: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")
JOB_COLUMNS: tuple[tuple[str, sa.types.TypeEngine[Any]], ...] = (
    ("progressed_at", INT64),
    ("stalled_since", INT64),
    ("fingerprint", sa.Text()),
)
ATTEMPT_COLUMNS: tuple[tuple[str, sa.types.TypeEngine[Any]], ...] = (
    ("ttl_seconds", sa.Integer()),
    ("error_code", sa.Text()),
    ("ended_at", INT64),
    ("gpu_seconds", FLOAT64),
    ("orphan_due_at", INT64),
)


def upgrade() -> None:
    for name, kind in JOB_COLUMNS:
        op.add_column("export_jobs", sa.Column(name, kind, nullable=True))
    for name, kind in ATTEMPT_COLUMNS:
        op.add_column("job_attempts", sa.Column(name, kind, nullable=True))
    op.create_index("ix_job_attempts_orphan_due", "job_attempts", ["orphan_due_at"])
    op.create_table(
        "idempotency_keys",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("created_at", INT64, nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["export_jobs.id"], name=op.f("fk_idempotency_keys_job_id")
        ),
        sa.PrimaryKeyConstraint("user_id", "key", name=op.f("pk_idempotency_keys")),
        sqlite_strict=True,
    )
    op.create_index("ix_idempotency_keys_age", "idempotency_keys", ["created_at"])
    op.create_table(
        "broker_flags",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("since", INT64, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_broker_flags")),
        sqlite_strict=True,
    )


def downgrade() -> None:
    op.drop_table("broker_flags")
    op.drop_table("idempotency_keys")
    op.drop_index("ix_job_attempts_orphan_due", "job_attempts")
    for name, _ in reversed(ATTEMPT_COLUMNS):
        op.drop_column("job_attempts", name)
    for name, _ in reversed(JOB_COLUMNS):
        op.drop_column("export_jobs", name)
