"""Webhooks over HTTP: URLs that the broker calls when a job ends, and the log of the calls."""

from starlette.requests import Request
from starlette.responses import Response

from broker.api import requests
from broker.services.webhooks import WebhookService
from schemas.webhooks import WebhookRequest


async def add(request: Request) -> Response:
    """Register a URL that the broker calls when one of your jobs ends.

    Calls are signed by Standard Webhooks, and retried for three days. Only this answer has the
    secret.
    """
    fields = await requests.body(request, WebhookRequest)
    return requests.json(await _webhooks(request).add(requests.user(request), fields), 201)


async def list_all(request: Request) -> Response:
    """List your webhooks."""
    return requests.json(await _webhooks(request).list(requests.user(request)))


async def switch_off(request: Request) -> Response:
    """Disable a webhook. Its log stays."""
    await _webhooks(request).switch_off(*_path(request))
    return Response(status_code=204)


async def rotate(request: Request) -> Response:
    """Replace a webhook's secret.

    For a day, calls carry the signatures of both secrets.
    """
    return requests.json(await _webhooks(request).rotate(*_path(request)))


async def deliveries(request: Request) -> Response:
    """List the newest 100 messages to a webhook, with their calls and the answers."""
    return requests.json(await _webhooks(request).deliveries(*_path(request)))


async def send_again(request: Request) -> Response:
    """Send a message again, under the same id."""
    delivery_id = request.path_params["delivery_id"]
    return requests.json(await _webhooks(request).send_again(*_path(request), delivery_id), 202)


def _path(request: Request) -> tuple[str, str]:
    """Returns the user, and the id of the webhook in the path."""
    return requests.user(request), request.path_params["webhook_id"]


def _webhooks(request: Request) -> WebhookService:
    webhooks: WebhookService = request.state.webhooks
    return webhooks
