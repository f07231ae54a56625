"""Reads a request: its body within limits, its query and its headers. Writes models as JSON."""

import re
from typing import TypeVar

import anyio
from anyio import CapacityLimiter, to_thread
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from broker import ids
from broker.api.problems import invalid
from broker.engine.service import JobService
from broker.errors import BodyTooLarge, InvalidRequest, TooSlow
from broker.jobs import views
from broker.jobs.model import Job
from broker.settings import Settings
from schemas.jobs import JobView

Model = TypeVar("Model", bound=BaseModel)
MAX_KEY = 255
LONGEST_WAIT = 25
#: More members than any object of the API has, and more names than any query has.
MAX_MEMBERS, MAX_NAMES = 1000, 100
#: Bodies from this size on are validated in a thread.
LARGE_BYTES = 16_384
#: A large body may take fifty times its size of memory for a moment.
_large = CapacityLimiter(2)


async def body(request: Request, model: type[Model]) -> Model:
    """Reads the body and validates it; raises InvalidRequest, BodyTooLarge or TooSlow."""
    return await validated(model, await raw_body(request))


async def validated(model: type[Model], text: bytes | str) -> Model:
    """Parses JSON as a model, or raises InvalidRequest; large texts off the event loop."""
    if len(text) < LARGE_BYTES:
        return _validated(model, text)
    return await to_thread.run_sync(_validated_large, model, text, limiter=_large)


def _validated_large(model: type[Model], text: bytes | str) -> Model:
    _check_members(text)
    return _validated(model, text)


def _validated(model: type[Model], text: bytes | str) -> Model:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        wrong = invalid(error)
    # Not raised from the ValidationError, which would keep the whole input in memory.
    raise wrong


def _check_members(text: bytes | str) -> None:
    """Raises InvalidRequest for an object with very many members: Pydantic would report each."""
    try:
        found = [from_json(text)]
    except ValueError:
        # The model's own parser reports the error.
        return
    while found:
        value = found.pop()
        if isinstance(value, dict):
            if len(value) > MAX_MEMBERS:
                raise InvalidRequest([("", f"an object has more than {MAX_MEMBERS} members")])
            found.extend(value.values())
        elif isinstance(value, list):
            found.extend(value)


async def raw_body(request: Request) -> bytes:
    """Reads the body, within the limits of the settings on its size and time."""
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
    """Validates the query, or raises InvalidRequest. A repeated name is a list."""
    values: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        values.setdefault(name, []).append(value)
    if len(values) > MAX_NAMES:
        raise InvalidRequest([("", f"the query has more than {MAX_NAMES} names")])
    given = {name: several if len(several) > 1 else several[0] for name, several in values.items()}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise invalid(error) from error


def as_uuid(text: str, pointer: str = "/job_id") -> str:
    """Returns a client's UUID for a job in its usual spelling; raises InvalidRequest."""
    try:
        return ids.chosen(text)
    except ValueError as error:
        sentence = "must be a UUID that you have drawn, of any version but 8"
        raise InvalidRequest([(pointer, sentence)]) from error


def idempotency_key(request: Request) -> str | None:
    """Returns the header's key. The IETF draft wants quotes; most clients send none."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    key = key.strip().removeprefix('"').removesuffix('"')
    if not 1 <= len(key) <= MAX_KEY or not key.isprintable():
        raise InvalidRequest([("/Idempotency-Key", f"must be 1 to {MAX_KEY} printable characters")])
    return key


def preferred_wait(request: Request) -> int | None:
    """Returns the seconds of `Prefer: wait=N` (RFC 7240), 25 at most; None without the header."""
    wanted = re.search(r"(?:^|[,;\s])wait=(\d{1,6})(?:$|[,;\s])", request.headers.get("prefer", ""))
    return min(int(wanted[1]), LONGEST_WAIT) if wanted else None


def service(connection: HTTPConnection) -> JobService:
    """Returns the job service."""
    jobs: JobService = connection.state.service
    return jobs


def view(connection: HTTPConnection, job: Job) -> JobView:
    """Returns the view of a job, with the URLs of this broker."""
    settings: Settings = connection.state.settings
    return views.view(job, settings.root_path)


def user(connection: HTTPConnection) -> str:
    """Returns the id of the authenticated user."""
    return str(connection.user.username)


def traceparent(request: Request) -> str:
    """Returns the request's traceparent."""
    return str(request.state.traceparent)


def json(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answers with a model."""
    return Response(model.model_dump_json(), status, headers, media_type="application/json")
