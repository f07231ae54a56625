"""Reading a request: its body within limits, its query, and the headers that mean something; and saying models as JSON."""

import re
from typing import TypeVar

import anyio
from pydantic import BaseModel, ValidationError
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from broker import ids
from broker.api.problems import invalid
from broker.errors import BodyTooLarge, InvalidRequest, TooSlow
from broker.service import JobService
from broker.settings import Settings

Model = TypeVar("Model", bound=BaseModel)
MAX_KEY = 255
LONGEST_WAIT = 25


async def body(request: Request, model: type[Model]) -> Model:
    """Reads the body and validates it; raises InvalidRequest, BodyTooLarge or TooSlow."""
    return validated(model, await raw_body(request))


def validated(model: type[Model], text: bytes | str) -> Model:
    """Reads JSON as a model, or raises InvalidRequest."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise invalid(error) from error


async def raw_body(request: Request) -> bytes:
    """Reads the body up to the limit, whatever Content-Length says, and as long as the settings allow."""
    settings: Settings = request.state.settings
    read = bytearray()
    try:
        with anyio.fail_after(settings.body_seconds):
            async for chunk in request.stream():
                read += chunk
                if len(read) > settings.body_limit_bytes:
                    raise BodyTooLarge(f"The body is over {settings.body_limit_bytes} bytes.")
    except TimeoutError:
        raise TooSlow(f"The body did not arrive within {settings.body_seconds:g} s.") from None
    return bytes(read)


def query(request: Request, model: type[Model]) -> Model:
    """Validates the query; a name that comes several times is a list. Raises InvalidRequest."""
    given: dict[str, object] = {}
    for name in request.query_params:
        values = request.query_params.getlist(name)
        given[name] = values if len(values) > 1 else values[0]
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise invalid(error) from error


def as_uuid(text: str, pointer: str = "/job_id") -> str:
    """Returns a UUID that a client has chosen for a job, in its usual spelling, or raises InvalidRequest."""
    try:
        return ids.chosen(text)
    except ValueError as error:
        sentence = "must be a UUID that you have drawn, of any version but 8"
        raise InvalidRequest([(pointer, sentence)]) from error


def idempotency_key(request: Request) -> str | None:
    """Returns the key of the header, which the draft wants in quotes and most clients send without."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    key = key.strip().removeprefix('"').removesuffix('"')
    if not 1 <= len(key) <= MAX_KEY or not key.isprintable():
        raise InvalidRequest([("/Idempotency-Key", f"must be 1 to {MAX_KEY} printable characters")])
    return key


def preferred_wait(request: Request) -> int | None:
    """Returns the seconds of `Prefer: wait=N` (RFC 7240), 25 at most; None where the client does not want to wait."""
    wanted = re.search(r"(?:^|[,;\s])wait=(\d{1,6})(?:$|[,;\s])", request.headers.get("prefer", ""))
    return min(int(wanted[1]), LONGEST_WAIT) if wanted else None


def service(connection: HTTPConnection) -> JobService:
    """Returns the broker's jobs."""
    jobs: JobService = connection.state.service
    return jobs


def user(connection: HTTPConnection) -> str:
    """Returns the id of the user on whose behalf the request is made."""
    return str(connection.user.username)


def traceparent(request: Request) -> str:
    """Returns whose trace the request is a part of."""
    return str(request.state.traceparent)


def json(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answers with a model."""
    return Response(model.model_dump_json(), status, headers, media_type="application/json")
