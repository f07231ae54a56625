"""Keys and tickets over HTTP."""

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from broker.api import requests
from broker.api.auth import ADMIN
from broker.store.keys import TICKET_SECONDS, Credentials
from schemas.access import KeyList, KeyRequest, Me, Ticket


async def me(request: Request) -> Response:
    """Say who I am: the user whose jobs these are, and whether I may do what concerns all users."""
    return requests.json(Me(user_id=requests.user(request), admin=ADMIN in request.auth.scopes))


async def create_ticket(request: Request) -> Response:
    """Get a ticket: good once, within a minute, as `?ticket=` of an EventSource or a WebSocket, which cannot send headers."""
    ticket = await run_in_threadpool(_credentials(request).create_ticket, request.user.principal)
    return requests.json(Ticket(ticket=ticket, expires_in_seconds=TICKET_SECONDS), 201)


async def create_key(request: Request) -> Response:
    """Make an API key for a user. It is shown this once; only a hash is kept."""
    asked = await requests.body(request, KeyRequest)
    return requests.json(await run_in_threadpool(_credentials(request).create_key, asked), 201)


async def list_keys(request: Request) -> Response:
    """List all API keys, without what they are."""
    return requests.json(KeyList(keys=await run_in_threadpool(_credentials(request).keys)))


async def revoke_key(request: Request) -> Response:
    """Let an API key in no more."""
    await run_in_threadpool(_credentials(request).revoke_key, request.path_params["key_id"])
    return Response(status_code=204)


def _credentials(request: Request) -> Credentials:
    credentials: Credentials = request.state.credentials
    return credentials
