"""What operators ask for every few seconds: the jobs that ended lately."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_export_jobs_ended", "export_jobs", ["completed_at"])


def downgrade() -> None:
    op.drop_index("ix_export_jobs_ended", "export_jobs")
