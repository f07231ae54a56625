"""The first release's tables: jobs, attempts, events."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INT64: sa.types.TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
FLOAT64: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "export_jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("project_id", INT64, nullable=True),
        sa.Column("game_id", INT64, nullable=True),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("progress", sa.Integer(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("input_key", sa.Text(), nullable=True),
        sa.Column("output_key", sa.Text(), nullable=True),
        sa.Column("params", sa.Text(), nullable=False),
        sa.Column("meta", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("runpod_job_id", sa.Text(), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("gpu_seconds", FLOAT64, nullable=True),
        sa.Column("evidence_source", sa.Text(), nullable=True),
        sa.Column("evidence_at", INT64, nullable=True),
        sa.Column("created_at", INT64, nullable=False),
        sa.Column("started_at", INT64, nullable=True),
        sa.Column("completed_at", INT64, nullable=True),
        sa.Column("cancel_requested_at", INT64, nullable=True),
        sa.Column("due_at", INT64, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "(status = 'complete') = (output_key IS NOT NULL)",
            name=op.f("ck_export_jobs_output_when_complete"),
        ),
        sa.CheckConstraint(
            "(status = 'error') = (error_code IS NOT NULL)",
            name=op.f("ck_export_jobs_code_when_error"),
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'processing', 'complete', 'error', 'cancelled')",
            name=op.f("ck_export_jobs_status_known"),
        ),
        sa.CheckConstraint(
            "progress BETWEEN 0 AND 100", name=op.f("ck_export_jobs_progress_percent")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_export_jobs")),
        sqlite_strict=True,
    )
    op.create_index("ix_export_jobs_due", "export_jobs", ["status", "due_at"], unique=False)
    op.create_index(
        "ix_export_jobs_user", "export_jobs", ["user_id", "created_at", "id"], unique=False
    )
    op.create_table(
        "job_attempts",
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("endpoint_url", sa.Text(), nullable=False),
        sa.Column("runpod_job_id", sa.Text(), nullable=True),
        sa.Column("created_at", INT64, nullable=False),
        sa.Column("submitted_at", INT64, nullable=True),
        sa.Column("absent_since", INT64, nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id"], ["export_jobs.id"], name=op.f("fk_job_attempts_job_id")
        ),
        sa.PrimaryKeyConstraint("token", name=op.f("pk_job_attempts")),
        sa.UniqueConstraint("job_id", "number", name=op.f("uq_job_attempts_job_id_number")),
        sqlite_strict=True,
    )
    op.create_table(
        "job_events",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at", INT64, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["export_jobs.id"], name=op.f("fk_job_events_job_id")),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("pk_job_events")),
        sqlite_strict=True,
    )


def downgrade() -> None:
    op.drop_table("job_events")
    op.drop_table("job_attempts")
    op.drop_table("export_jobs")
