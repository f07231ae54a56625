"""API keys and tickets over HTTP."""

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from broker.api import requests
from broker.api.auth import ADMIN
from broker.store.keys import TICKET_SECONDS, Credentials
from schemas.access import KeyList, KeyRequest, Me, Ticket


async def me(request: Request) -> Response:
    """Get the user of your key or token, and whether the user is an admin."""
    return requests.json(Me(user_id=requests.user(request), admin=ADMIN in request.auth.scopes))


async def create_ticket(request: Request) -> Response:
    """Get a ticket for an EventSource or a WebSocket, which cannot send headers.

    Send it as `?ticket=`. A ticket is valid once, within a minute.
    """
    ticket = await run_in_threadpool(_credentials(request).create_ticket, request.user.principal)
    return requests.json(Ticket(ticket=ticket, expires_in_seconds=TICKET_SECONDS), 201)


async def create_key(request: Request) -> Response:
    """Create an API key for a user. Only this answer has the key; the broker keeps a hash."""
    fields = await requests.body(request, KeyRequest)
    return requests.json(await run_in_threadpool(_credentials(request).create_key, fields), 201)


async def list_keys(request: Request) -> Response:
    """List all API keys without their secrets."""
    return requests.json(KeyList(keys=await run_in_threadpool(_credentials(request).keys)))


async def revoke_key(request: Request) -> Response:
    """Revoke an API key."""
    await run_in_threadpool(_credentials(request).revoke_key, request.path_params["key_id"])
    return Response(status_code=204)


def _credentials(request: Request) -> Credentials:
    credentials: Credentials = request.state.credentials
    return credentials
