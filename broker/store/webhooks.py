"""Every SQL statement about webhooks and the messages to them; services/webhooks.py calls them.

A message is written in the SQL transaction of the job's transition, so there is exactly one message
for each transition that a webhook wants.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Executable, RowMapping, insert, select, update

from broker.clock import iso
from broker.jobs.model import Job
from broker.store.tables import DeliveryRow, WebhookRow, table
from schemas.jobs import JobStatus
from schemas.webhooks import HookJob, HookKind, HookPayload

WEBHOOKS = table("webhooks")
DELIVERIES = table("webhook_deliveries")
_KINDS = {
    JobStatus.COMPLETE: HookKind.COMPLETE,
    JobStatus.ERROR: HookKind.ERROR,
    JobStatus.CANCELLED: HookKind.CANCELLED,
}


def enqueue(connection: Connection, job: Job, now: int) -> None:
    """Writes a message about a job's end for each of the user's webhooks of that kind."""
    kind = _KINDS[job.status]
    mine = select(WEBHOOKS.c.id, WEBHOOKS.c.kinds).where(
        WEBHOOKS.c.user_id == job.user_id, WEBHOOKS.c.disabled_at.is_(None)
    )
    wanted = [row.id for row in connection.execute(mine) if kind in row.kinds.split()]
    if not wanted:
        return
    shown = HookJob(
        **job.model_dump(include=set(HookJob.model_fields) & set(type(job).model_fields)),
        job_id=job.id,
        seq=job.version,
        metadata=json.loads(job.meta),
    )
    body = HookPayload(type=kind, timestamp=iso(now), data=shown).model_dump_json()
    message: dict[str, object] = {"job_id": job.id, "kind": kind.value, "body": body, "tries": "[]"}
    message |= {"created_at": now, "due_at": now}
    rows = [
        {"id": f"msg_{secrets.token_hex(12)}", "webhook_id": webhook_id, **message}
        for webhook_id in wanted
    ]
    connection.execute(insert(DELIVERIES), rows)


class Outbox:
    """The webhooks of all users, and the messages to them. All methods block."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, webhook: WebhookRow) -> None:
        """Stores a new webhook."""
        with self._engine.begin() as connection:
            connection.execute(insert(WEBHOOKS).values(webhook.model_dump()))

    def webhooks(self, user_id: str) -> list[WebhookRow]:
        """Returns the user's webhooks, the oldest first."""
        mine = select(WEBHOOKS).where(WEBHOOKS.c.user_id == user_id)
        return [WebhookRow(**row) for row in self._rows(mine.order_by(WEBHOOKS.c.created_at))]

    def webhook(self, webhook_id: str, user_id: str | None = None) -> WebhookRow | None:
        """Returns a webhook; with `user_id`, only that user's."""
        query = select(WEBHOOKS).where(WEBHOOKS.c.id == webhook_id)
        if user_id is not None:
            query = query.where(WEBHOOKS.c.user_id == user_id)
        rows = self._rows(query)
        return WebhookRow(**rows[0]) if rows else None

    def change(self, webhook_id: str, values: Mapping[str, Any]) -> None:
        """Writes some of a webhook's columns."""
        with self._engine.begin() as connection:
            connection.execute(update(WEBHOOKS).where(WEBHOOKS.c.id == webhook_id).values(**values))

    def due(self, now: int, limit: int, but: Sequence[str] = ()) -> list[DeliveryRow]:
        """Returns the messages that are due, the longest overdue first; skips webhooks in `but`."""
        query = select(DELIVERIES).where(
            DELIVERIES.c.due_at <= now, DELIVERIES.c.webhook_id.not_in(but)
        )
        rows = self._rows(query.order_by(DELIVERIES.c.due_at).limit(limit))
        return [DeliveryRow(**row) for row in rows]

    def claim(self, delivery: DeliveryRow, until: int) -> bool:
        """Reserves a due message until a moment; False where another broker has reserved it."""
        seen = update(DELIVERIES).where(
            DELIVERIES.c.id == delivery.id, DELIVERIES.c.due_at == delivery.due_at
        )
        with self._engine.begin() as connection:
            return connection.execute(seen.values(due_at=until)).rowcount == 1

    def conclude(
        self,
        delivery_id: str,
        claimed: int,
        made: Mapping[str, Any],
        follows: Callable[[int], Mapping[str, Any]],
    ) -> None:
        """Adds a call to a message's log, and writes what follows from so many calls.

        If the message is not as it was claimed, its user has had it sent again: that stands.
        """
        this = select(DELIVERIES).where(DELIVERIES.c.id == delivery_id).with_for_update()
        with self._engine.begin() as connection:
            row = connection.execute(this).mappings().one()
            tries = [*json.loads(row["tries"]), made]
            values = follows(len(tries)) if row["due_at"] == claimed else {}
            changed = update(DELIVERIES).where(DELIVERIES.c.id == delivery_id)
            connection.execute(changed.values(tries=json.dumps(tries), **values))

    def write(self, delivery_id: str, values: Mapping[str, Any]) -> None:
        """Writes some of a message's columns."""
        this = update(DELIVERIES).where(DELIVERIES.c.id == delivery_id)
        with self._engine.begin() as connection:
            connection.execute(this.values(**values))

    def deliveries(self, webhook_id: str, limit: int) -> list[DeliveryRow]:
        """Returns a webhook's messages, the newest first."""
        query = select(DELIVERIES).where(DELIVERIES.c.webhook_id == webhook_id)
        query = query.order_by(DELIVERIES.c.created_at.desc(), DELIVERIES.c.id).limit(limit)
        return [DeliveryRow(**row) for row in self._rows(query)]

    def delivery(self, delivery_id: str, webhook_id: str) -> DeliveryRow | None:
        """Returns one of a webhook's messages."""
        rows = self._rows(
            select(DELIVERIES).where(
                DELIVERIES.c.id == delivery_id, DELIVERIES.c.webhook_id == webhook_id
            )
        )
        return DeliveryRow(**rows[0]) if rows else None

    def _rows(self, query: Executable) -> Sequence[RowMapping]:
        with self._engine.begin() as connection:
            return connection.execute(query).mappings().all()
