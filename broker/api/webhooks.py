"""Webhooks over HTTP: where to call when a job ends, and what came of each call."""

from starlette.requests import Request
from starlette.responses import Response

from broker.api import requests
from broker.services.webhooks import WebhookService
from schemas.webhooks import WebhookRequest


async def add(request: Request) -> Response:
    """Have a URL called when a job of yours ends: signed as Standard Webhooks says, tried for three days. The secret is shown this once."""
    asked = await requests.body(request, WebhookRequest)
    return requests.json(await _webhooks(request).add(requests.user(request), asked), 201)


async def list_all(request: Request) -> Response:
    """List your webhooks."""
    return requests.json(await _webhooks(request).list(requests.user(request)))


async def switch_off(request: Request) -> Response:
    """Have a webhook called no more. Its log stays."""
    await _webhooks(request).switch_off(requests.user(request), request.path_params["webhook_id"])
    return Response(status_code=204)


async def rotate(request: Request) -> Response:
    """Draw a new secret. For a day calls carry both signatures, so that no call is refused in between."""
    return requests.json(
        await _webhooks(request).rotate(requests.user(request), request.path_params["webhook_id"])
    )


async def deliveries(request: Request) -> Response:
    """See what was sent to a webhook, each call that was made, and what came back; the newest 100."""
    return requests.json(
        await _webhooks(request).deliveries(
            requests.user(request), request.path_params["webhook_id"]
        )
    )


async def send_again(request: Request) -> Response:
    """Send a message once more, under the same id."""
    path = request.path_params
    return requests.json(
        await _webhooks(request).send_again(
            requests.user(request), path["webhook_id"], path["delivery_id"]
        ),
        202,
    )


def _webhooks(request: Request) -> WebhookService:
    webhooks: WebhookService = request.state.webhooks
    return webhooks
