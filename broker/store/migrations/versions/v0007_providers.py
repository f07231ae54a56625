"""Attempts name their provider, its target and id, and the plan and part that they make."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_RENAMED = {"endpoint_url": "target", "runpod_job_id": "provider_job_id"}


def upgrade() -> None:
    for before, after in _RENAMED.items():
        op.alter_column("job_attempts", before, new_column_name=after)
    # Until now there was one provider, and no export was split.
    op.add_column(
        "job_attempts", sa.Column("provider", sa.Text(), nullable=False, server_default="runpod")
    )
    op.add_column("job_attempts", sa.Column("plan", sa.Text(), nullable=True))
    op.add_column(
        "job_attempts", sa.Column("part", sa.Integer(), nullable=False, server_default="0")
    )


def downgrade() -> None:
    for name in ("part", "plan", "provider"):
        op.drop_column("job_attempts", name)
    for before, after in _RENAMED.items():
        op.alter_column("job_attempts", after, new_column_name=before)
