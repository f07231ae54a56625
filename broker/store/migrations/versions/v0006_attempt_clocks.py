"""When a worker took an attempt, and how long it may run: what a timeout means depends on both."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_COLUMNS = {
    "queue_empty_since": sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
    "started_at": sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
    "timeout_seconds": sa.Integer(),
}


def upgrade() -> None:
    for name, kind in _COLUMNS.items():
        op.add_column("job_attempts", sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    for name in _COLUMNS:
        op.drop_column("job_attempts", name)
