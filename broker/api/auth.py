"""Who is asking: one bearer key, which stands for one user."""

import hmac

from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, SimpleUser
from starlette.requests import HTTPConnection
from starlette.responses import Response

from broker.api.problems import problem
from broker.settings import Settings


class BearerKey(AuthenticationBackend):
    """Accepts `Authorization: Bearer KEY` with the key of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._key = settings.api_key.get_secret_value().encode()
        self._user_id = settings.user_id

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser]:
        """Returns the user, or raises AuthenticationError."""
        scheme, _, key = conn.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self._key):
            raise AuthenticationError("Send your key as `Authorization: Bearer KEY`.")
        return AuthCredentials(["authenticated"]), SimpleUser(self._user_id)


def unauthenticated(conn: HTTPConnection, error: Exception) -> Response:
    """Answers a request without a valid key."""
    return problem(conn, 401, "unauthorized", str(error), headers={"WWW-Authenticate": "Bearer"})
