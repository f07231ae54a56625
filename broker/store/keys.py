"""Who is asking: API keys and one-use tickets, of which only hashes are kept.

They are drawn with 192 bits, so that one round of SHA-256 is enough: there is nothing to guess.
"""

import hashlib
import secrets
from dataclasses import dataclass

from sqlalchemy import Engine, delete, insert, select, update

from broker.clock import iso, now_ms
from broker.errors import NotFound
from broker.store.tables import table
from schemas.access import KeyRequest, KeyView, NewKey

KEYS = table("api_keys")
TICKETS = table("access_tickets")
TICKET_SECONDS = 60
#: For so long a key is believed without asking the database; one revoked by this broker, not a moment.
CACHED_MS = 5_000


@dataclass(frozen=True)
class Principal:
    """On whose behalf a request is made; an admin may also do what concerns all users.

    Args:
        key_id: the API key that was shown, here or for the ticket; it may be revoked while a stream is open.
        until_ms: when the token expires that was shown.
    """

    user_id: str
    admin: bool = False
    key_id: str | None = None
    until_ms: int | None = None


class Credentials:
    """API keys and tickets in the database. All methods block; `remembered` alone does not."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cache: dict[str, tuple[int, Principal]] = {}

    def create_key(self, asked: KeyRequest) -> NewKey:
        """Draws a key; it cannot be shown again."""
        key, key_id, now = (
            "rb_" + secrets.token_urlsafe(24),
            "key_" + secrets.token_hex(8),
            now_ms(),
        )
        values = asked.model_dump() | {"admin": int(asked.admin)}
        with self._engine.begin() as connection:
            connection.execute(
                insert(KEYS).values(id=key_id, sha256=_hash(key), created_at=now, **values)
            )
        return NewKey(
            **asked.model_dump(), id=key_id, created_at=iso(now), revoked_at=None, key=key
        )

    def keys(self) -> list[KeyView]:
        """Returns all keys, the oldest first, without what they are."""
        with self._engine.begin() as connection:
            rows = connection.execute(select(KEYS).order_by(KEYS.c.created_at, KEYS.c.id)).all()
        return [
            KeyView(
                id=row.id,
                user_id=row.user_id,
                name=row.name,
                admin=bool(row.admin),
                created_at=iso(row.created_at),
                revoked_at=iso(row.revoked_at) if row.revoked_at else None,
            )
            for row in rows
        ]

    def revoke_key(self, key_id: str) -> None:
        """Lets a key in no more; raises NotFound where there is none."""
        still = update(KEYS).where(KEYS.c.id == key_id, KEYS.c.revoked_at.is_(None))
        with self._engine.begin() as connection:
            if connection.execute(select(KEYS.c.id).where(KEYS.c.id == key_id)).first() is None:
                raise NotFound(f"There is no key {key_id[:64]}.")
            connection.execute(still.values(revoked_at=now_ms()))
        self._cache.clear()

    def remembered(self, key: str) -> Principal | None:
        """Returns whom a key stands for if it was asked for a moment ago."""
        until, principal = self._cache.get(_hash(key), (0, None))
        return principal if now_ms() < until else None

    def principal(self, key: str) -> Principal | None:
        """Returns whom a key stands for, or None."""
        valid = select(KEYS.c.id, KEYS.c.user_id, KEYS.c.admin).where(
            KEYS.c.sha256 == _hash(key), KEYS.c.revoked_at.is_(None)
        )
        with self._engine.begin() as connection:
            row = connection.execute(valid).first()
        if row is None:
            return None
        if len(self._cache) > 10_000:
            self._cache.clear()
        principal = Principal(row.user_id, bool(row.admin), key_id=row.id)
        self._cache[_hash(key)] = (now_ms() + CACHED_MS, principal)
        return principal

    def holds(self, principal: Principal) -> bool:
        """Whether what was shown for a principal still lets it in: the token has not expired, and nobody has revoked the key."""
        if principal.until_ms is not None and principal.until_ms <= now_ms():
            return False
        if principal.key_id is None:
            return True
        valid = select(KEYS.c.id).where(KEYS.c.id == principal.key_id, KEYS.c.revoked_at.is_(None))
        with self._engine.begin() as connection:
            return connection.execute(valid).first() is not None

    def create_ticket(self, principal: Principal) -> str:
        """Draws a ticket that lets the user in once, within a minute, and for no longer than what was shown for it.

        What that was stands in the ticket itself: nobody can change it, since only the hash of the whole lets anybody in.
        """
        until = "" if principal.until_ms is None else str(principal.until_ms)
        ticket, now = f"{secrets.token_urlsafe(24)}.{principal.key_id or ''}.{until}", now_ms()
        values = {
            "sha256": _hash(ticket),
            "user_id": principal.user_id,
            "expires_at": now + TICKET_SECONDS * 1000,
        }
        with self._engine.begin() as connection:
            connection.execute(delete(TICKETS).where(TICKETS.c.expires_at < now))
            connection.execute(insert(TICKETS).values(values))
        return ticket

    def redeem_ticket(self, ticket: str) -> Principal | None:
        """Returns whom a ticket lets in; the second time nobody."""
        this = TICKETS.c.sha256 == _hash(ticket)
        with self._engine.begin() as connection:
            row = connection.execute(select(TICKETS).where(this)).first()
            if row is None or connection.execute(delete(TICKETS).where(this)).rowcount == 0:
                return None
        # One that was drawn by an older broker has neither.
        key_id, until = [*ticket.split("."), "", ""][1:3]
        principal = Principal(
            row.user_id, key_id=key_id or None, until_ms=int(until) if until else None
        )
        return principal if row.expires_at > now_ms() and self.holds(principal) else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
