"""What an operator sees of all users' jobs, and the switch that lets no new job in."""

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
    """See how all is going: the queue, the workers, what was done and what it cost, what needs a look."""
    looks: Overview = request.state.fleet
    return requests.json(await looks.look(requests.service(request).draining))


async def drain(request: Request) -> Response:
    """Take no new jobs and send none (`{"on": true}`), or do so again. Those that run go on."""
    asked = await requests.body(request, DrainRequest)
    await requests.service(request).drain(asked.on)
    return requests.json(Draining(draining=asked.on))
