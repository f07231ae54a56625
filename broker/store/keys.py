"""API keys and one-use tickets; only their hashes are kept.

Keys and tickets have 192 random bits, so one round of SHA-256 is enough.
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
#: How long a key is valid without a query. This broker forgets a key that it revokes at once.
CACHED_MS = 5_000


@dataclass(frozen=True)
class Principal:
    """The user of a request. An admin may also do what concerns all users.

    Args:
        key_id: of the API key that was sent with the request, or for the ticket.
        until_ms: when the token expires that was sent.
    """

    user_id: str
    admin: bool = False
    key_id: str | None = None
    until_ms: int | None = None


class Credentials:
    """API keys and tickets. All methods but `remembered` block."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cache: dict[str, tuple[int, Principal]] = {}

    def create_key(self, request: KeyRequest) -> NewKey:
        """Creates a key. Only this call returns it."""
        key, key_id, now = (
            f"rb_{secrets.token_urlsafe(24)}",
            f"key_{secrets.token_hex(8)}",
            now_ms(),
        )
        fields = request.model_dump()
        row = fields | {"admin": int(request.admin), "sha256": _hash(key), "created_at": now}
        with self._engine.begin() as connection:
            connection.execute(insert(KEYS).values(id=key_id, **row))
        return NewKey(**fields, id=key_id, created_at=iso(now), revoked_at=None, key=key)

    def keys(self) -> list[KeyView]:
        """Returns all keys without their secrets, the oldest first."""
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
        """Revokes a key; raises NotFound where there is none."""
        still = update(KEYS).where(KEYS.c.id == key_id, KEYS.c.revoked_at.is_(None))
        with self._engine.begin() as connection:
            if connection.execute(select(KEYS.c.id).where(KEYS.c.id == key_id)).first() is None:
                raise NotFound(f"There is no key {key_id[:64]}.")
            connection.execute(still.values(revoked_at=now_ms()))
        self._cache.clear()

    def remembered(self, key: str) -> Principal | None:
        """Returns the user of a key that was valid a moment ago; does not block."""
        until, principal = self._cache.get(_hash(key), (0, None))
        return principal if now_ms() < until else None

    def principal(self, key: str) -> Principal | None:
        """Returns the user of a key, or None."""
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
        """Whether the principal's token has not expired, and its key is not revoked."""
        if principal.until_ms is not None and principal.until_ms <= now_ms():
            return False
        if principal.key_id is None:
            return True
        valid = select(KEYS.c.id).where(KEYS.c.id == principal.key_id, KEYS.c.revoked_at.is_(None))
        with self._engine.begin() as connection:
            return connection.execute(valid).first() is not None

    def create_ticket(self, principal: Principal) -> str:
        """Creates a ticket: valid once, within a minute, and no longer than its key or token.

        The ticket carries the key's id and the token's end. The hash covers the whole ticket.
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
        """Returns the user of a ticket, and deletes the ticket."""
        this = TICKETS.c.sha256 == _hash(ticket)
        with self._engine.begin() as connection:
            row = connection.execute(select(TICKETS).where(this)).first()
            if row is None or connection.execute(delete(TICKETS).where(this)).rowcount == 0:
                return None
        # A ticket of an older broker has neither.
        key_id, until = [*ticket.split("."), "", ""][1:3]
        principal = Principal(
            row.user_id, key_id=key_id or None, until_ms=int(until) if until else None
        )
        return principal if row.expires_at > now_ms() and self.holds(principal) else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
