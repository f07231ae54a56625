"""What concerns the broker as a whole: whether it lives, whether it is ready, and the operator's switch."""

from collections.abc import Callable

import anyio
from pydantic import BaseModel, ConfigDict, StrictBool
from starlette.requests import Request
from starlette.responses import Response

from broker.api import reading
from broker.api.problems import problem
from broker.fleet import FleetService

#: Threads of their own: whoever asks for the readiness of a broker whose bucket hangs must not use up all others'.
_checks = anyio.CapacityLimiter(4)


class DrainRequest(BaseModel):
    """The body of `POST /api/operations/drain`."""

    model_config = ConfigDict(extra="forbid")

    on: StrictBool


class Draining(BaseModel):
    draining: bool


class Health(BaseModel):
    status: str


class Readiness(Health):
    checks: dict[str, str]


async def fleet(request: Request) -> Response:
    """See how all is going: the queue, the workers, what was done and what it cost, what needs a look."""
    looks: FleetService = request.state.fleet
    return reading.json(await looks.look(reading.service(request).draining))


async def drain(request: Request) -> Response:
    """Take no new jobs and send none (`{"on": true}`), or do so again. Those that run go on."""
    asked = await reading.body(request, DrainRequest)
    await reading.service(request).drain(asked.on)
    return reading.json(Draining(draining=asked.on))


async def healthz(request: Request) -> Response:
    """The process runs and answers."""
    return reading.json(Health(status="ok"))


async def readyz(request: Request) -> Response:
    """A job sent now can be stored, and its files reached."""
    checks: dict[str, Callable[[], None]] = request.state.checks
    for name, check in checks.items():
        try:
            with anyio.fail_after(5):
                await anyio.to_thread.run_sync(check, abandon_on_cancel=True, limiter=_checks)
        except Exception as error:  # noqa: BLE001  # whatever it is, not ready is the answer
            return problem(request, 503, "not_ready", f"{name}: {error}", retryable=True)
    return reading.json(Readiness(status="ok", checks=dict.fromkeys(checks, "ok")))
