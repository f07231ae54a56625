"""Who may ask: API keys, and one-use tickets for what cannot send a header."""

from typing import Annotated

from pydantic import Field, StrictBool, StringConstraints

from schemas.jobs import Wire
from schemas.keys import UserId


class KeyRequest(Wire):
    """The body of `POST /api/keys`."""

    user_id: UserId
    name: Annotated[str, StringConstraints(max_length=100)] = ""
    admin: StrictBool = False


class KeyView(Wire):
    id: str
    user_id: str
    name: str
    admin: bool
    created_at: str
    revoked_at: str | None


class NewKey(KeyView):
    """As it is shown once: only a hash of `key` is kept."""

    key: str


class KeyList(Wire):
    keys: list[KeyView]


class Me(Wire):
    """Who is asking, and whether for all users."""

    user_id: UserId
    admin: bool


class Ticket(Wire):
    """Good once, for an EventSource or a WebSocket: `?ticket=…`."""

    ticket: str
    expires_in_seconds: Annotated[int, Field(gt=0)]
