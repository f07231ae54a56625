"""Webhooks and what is to be told to them: SQL only. webhooks.py makes the calls.

A message is written in the transaction of the move that it tells of, so none is lost and none is told of a move that never was.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, insert, select, update

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
    """Writes a message to each of the user's webhooks that wants to hear of a job's end."""
    kind = _KINDS[job.status]
    mine = select(WEBHOOKS.c.id, WEBHOOKS.c.kinds).where(
        WEBHOOKS.c.user_id == job.user_id, WEBHOOKS.c.disabled_at.is_(None)
    )
    wanted = [row.id for row in connection.execute(mine) if kind in row.kinds.split()]
    if not wanted:
        return
    told = HookJob(
        **job.model_dump(include=set(HookJob.model_fields) & set(type(job).model_fields)),
        job_id=job.id,
        seq=job.version,
        metadata=json.loads(job.meta),
    )
    body = HookPayload(type=kind, timestamp=iso(now), data=told).model_dump_json()
    rows = [
        {
            "id": f"msg_{secrets.token_hex(12)}",
            "webhook_id": webhook_id,
            "job_id": job.id,
            "kind": kind.value,
            "body": body,
            "tries": "[]",
            "created_at": now,
            "due_at": now,
        }
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
        mine = select(WEBHOOKS).where(WEBHOOKS.c.user_id == user_id).order_by(WEBHOOKS.c.created_at)
        with self._engine.begin() as connection:
            return [_webhook(row) for row in connection.execute(mine).mappings()]

    def webhook(self, webhook_id: str, user_id: str | None = None) -> WebhookRow | None:
        """Returns a webhook, of the user if one is given."""
        query = select(WEBHOOKS).where(WEBHOOKS.c.id == webhook_id)
        if user_id is not None:
            query = query.where(WEBHOOKS.c.user_id == user_id)
        with self._engine.begin() as connection:
            row = connection.execute(query).mappings().first()
        return _webhook(row) if row else None

    def change(self, webhook_id: str, values: Mapping[str, Any]) -> None:
        """Writes some of a webhook's columns."""
        with self._engine.begin() as connection:
            connection.execute(update(WEBHOOKS).where(WEBHOOKS.c.id == webhook_id).values(**values))

    def due(self, now: int, limit: int, but: Sequence[str] = ()) -> list[DeliveryRow]:
        """Returns the messages that are to be sent by now, longest overdue first, those to the webhooks in `but` left out."""
        query = select(DELIVERIES).where(
            DELIVERIES.c.due_at <= now, DELIVERIES.c.webhook_id.not_in(but)
        )
        query = query.order_by(DELIVERIES.c.due_at)
        with self._engine.begin() as connection:
            return [_delivery(row) for row in connection.execute(query.limit(limit)).mappings()]

    def claim(self, delivery: DeliveryRow, until: int) -> bool:
        """Takes a due message in hand, so that nobody else sends it meanwhile; False where somebody has."""
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
        """Adds a call to a message's log; what `follows` from so many calls only counts where the message is still as it was claimed.

        Somebody may have had it sent again meanwhile; that stands.
        """
        this = select(DELIVERIES).where(DELIVERIES.c.id == delivery_id).with_for_update()
        with self._engine.begin() as connection:
            row = connection.execute(this).mappings().one()
            tries = [*json.loads(row["tries"]), made]
            values = follows(len(tries)) if row["due_at"] == claimed else {}
            changed = update(DELIVERIES).where(DELIVERIES.c.id == delivery_id)
            connection.execute(changed.values(tries=json.dumps(tries), **values))

    def write(self, delivery_id: str, values: Mapping[str, Any]) -> None:
        """Writes what became of a message."""
        with self._engine.begin() as connection:
            connection.execute(
                update(DELIVERIES).where(DELIVERIES.c.id == delivery_id).values(**values)
            )

    def deliveries(self, webhook_id: str, limit: int) -> list[DeliveryRow]:
        """Returns a webhook's messages, the newest first."""
        query = select(DELIVERIES).where(DELIVERIES.c.webhook_id == webhook_id)
        query = query.order_by(DELIVERIES.c.created_at.desc(), DELIVERIES.c.id).limit(limit)
        with self._engine.begin() as connection:
            return [_delivery(row) for row in connection.execute(query).mappings()]

    def delivery(self, delivery_id: str, webhook_id: str) -> DeliveryRow | None:
        """Returns one of a webhook's messages."""
        query = select(DELIVERIES).where(
            DELIVERIES.c.id == delivery_id, DELIVERIES.c.webhook_id == webhook_id
        )
        with self._engine.begin() as connection:
            row = connection.execute(query).mappings().first()
        return _delivery(row) if row else None


def _webhook(row: RowMapping) -> WebhookRow:
    return WebhookRow(**row)


def _delivery(row: RowMapping) -> DeliveryRow:
    return DeliveryRow(**row)
