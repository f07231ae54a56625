"""Authentication by an API key, an identity provider's token, or a ticket; request limits."""

import hmac

from anyio import CapacityLimiter, to_thread
from pydantic import SecretStr
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    SimpleUser,
)
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import URL
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.api.problems import problem
from broker.errors import RateLimited
from broker.services.rate_limit import RequestLimit
from broker.services.tokens import InvalidToken, TokenVerifier
from broker.settings import Settings
from broker.store.keys import Credentials, Principal

ADMIN = "admin"
_LOCAL = ("localhost", "127.0.0.1", "[::1]", "::1")


class Caller(SimpleUser):
    """The authenticated user."""

    def __init__(self, principal: Principal) -> None:
        super().__init__(principal.user_id)
        self.principal = principal


class Authentication(AuthenticationBackend):
    """Accepts `Authorization: Bearer KEY-OR-TOKEN`, and `?ticket=` on live routes.

    Without keys in the settings, the broker listens to this machine alone, and every local caller
    is the one user. Web pages of other origins are refused, also in a browser on this machine.

    Args:
        also: another key that counts as an admin's on these routes.
    """

    def __init__(self, settings: Settings, also: SecretStr | None = None) -> None:
        self._keys = [key.get_secret_value().encode() for key in (settings.api_key, also) if key]
        self._user_id = settings.user_id
        self._open = not settings.has_auth
        self._tokens = TokenVerifier(settings)
        # Threads of their own: an identity provider that hangs must not delay other requests.
        self._fetching = CapacityLimiter(4)

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, Caller]:
        """Returns the user, or raises AuthenticationError."""
        principal = await self._principal(conn)
        scopes = ["authenticated", ADMIN] if principal.admin else ["authenticated"]
        return AuthCredentials(scopes), Caller(principal)

    async def _principal(self, conn: HTTPConnection) -> Principal:
        credentials: Credentials = conn.state.credentials
        scheme, _, secret = conn.headers.get("authorization", "").partition(" ")
        secret = secret.strip()
        if scheme.lower() == "bearer" and secret:
            principal = await self._bearer(credentials, secret)
        elif ticket := _ticket(conn):
            principal = await run_in_threadpool(credentials.redeem_ticket, ticket)
        else:
            is_open = self._open and _is_local(conn)
            principal = Principal(self._user_id, admin=True) if is_open else None
        if principal is None:
            raise AuthenticationError("Send your key as `Authorization: Bearer KEY`.")
        return principal

    async def _bearer(self, credentials: Credentials, secret: str) -> Principal | None:
        if any(hmac.compare_digest(secret.encode(), key) for key in self._keys):
            return Principal(self._user_id, admin=True)
        if secret.count(".") == 2:
            try:
                if self._tokens.fetches:
                    return await to_thread.run_sync(
                        self._tokens.verify, secret, limiter=self._fetching
                    )
                return self._tokens.verify(secret)
            except InvalidToken as error:
                raise AuthenticationError(str(error)) from error
        return credentials.remembered(secret) or await run_in_threadpool(
            credentials.principal, secret
        )


def unauthenticated(conn: HTTPConnection, error: Exception) -> Response:
    """Answers a request without valid credentials."""
    return problem(conn, 401, "unauthorized", str(error), headers={"WWW-Authenticate": "Bearer"})


class Limited:
    """Limits the requests of each user; each answer has the number that is left."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        conn = HTTPConnection(scope)
        limit: RequestLimit = conn.state.limit
        left, wait = limit.take(conn.user.username)
        if left < 0:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1013})
                return
            raise RateLimited(wait)
        policy = f'"user";q={limit.per_minute};w=60'.encode()

        async def send_with_limit(message: Message) -> None:
            if message["type"] == "http.response.start":
                limits = [
                    (b"ratelimit-policy", policy),
                    (b"ratelimit", f'"user";r={left};t=60'.encode()),
                ]
                message = {**message, "headers": [*message.get("headers", []), *limits]}
            await send(message)

        await self._app(scope, receive, send_with_limit)


def _ticket(conn: HTTPConnection) -> str:
    live = conn.scope["type"] == "websocket" or conn.url.path.endswith("/events")
    return conn.query_params.get("ticket", "") if live else ""


def _is_local(conn: HTTPConnection) -> bool:
    """Whether a request names this machine, and no web page of another origin sent it."""
    origin = conn.headers.get("origin")
    names = [URL(f"http://{conn.headers.get('host', '')}").hostname]
    if origin is not None:
        names.append(URL(origin).hostname)
    return all(name in _LOCAL for name in names)
