"""The operator's view of all users' jobs, and the drain switch."""

from pydantic import BaseModel, ConfigDict, StrictBool
from starlette.requests import Request
from starlette.responses import Response

from broker.api import requests
from broker.ops.overview import Overview


class DrainRequest(BaseModel):
    """The body of `POST /api/operations/drain`."""

    model_config = ConfigDict(extra="forbid")

    on: StrictBool


class Draining(BaseModel):
    draining: bool


async def fleet(request: Request) -> Response:
    """Get the queue, the workers, the jobs of the last 24 hours with their cost, and stuck jobs."""
    overview: Overview = request.state.overview
    return requests.json(await overview.fleet(requests.service(request).draining))


async def drain(request: Request) -> Response:
    """Stop accepting and submitting jobs (`{"on": true}`), or resume. Jobs that run go on."""
    fields = await requests.body(request, DrainRequest)
    await requests.service(request).drain(fields.on)
    return requests.json(Draining(draining=fields.on))
