"""Jobs name their newest attempt's provider, and Modal's id of it; attempts, since when their
provider has not answered.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_NEW = ("provider", "modal_call_id")


def upgrade() -> None:
    for name in _NEW:
        op.add_column("export_jobs", sa.Column(name, sa.Text(), nullable=True))
    moment = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("job_attempts", sa.Column("unreachable_since", moment, nullable=True))
    # Until now there was one provider.
    op.execute("UPDATE export_jobs SET provider = 'runpod' WHERE runpod_job_id IS NOT NULL")


def downgrade() -> None:
    op.drop_column("job_attempts", "unreachable_since")
    for name in reversed(_NEW):
        op.drop_column("export_jobs", name)
