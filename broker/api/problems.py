"""Errors as RFC 9457 `application/problem+json`, each with `code`, `retryable` and `request_id`."""

import http
import math
from collections.abc import Sequence
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy.exc import DataError, OperationalError, TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response

from broker.api.headers import EVERYWHERE
from broker.errors import (
    AlreadyFinished,
    BodyTooLarge,
    FileTooLarge,
    IdTaken,
    InvalidRequest,
    KeyReused,
    NotFound,
    NotRetryable,
    QuotaExceeded,
    RateLimited,
    RequestError,
    StorageError,
    TooSlow,
    Unavailable,
    UploadIncomplete,
)

log = structlog.get_logger(__name__)

#: `Retry-After`: the next job that ends frees a quota; an operator ends a drain.
QUOTA_SECONDS, CLOSED_SECONDS = 10, 30
#: The most errors that an answer lists, and characters of a pointer and of a sentence.
MAX_ERRORS, LONGEST_TEXT = 100, 300

_STATUS: dict[type[RequestError], tuple[int, str]] = {
    InvalidRequest: (422, "invalid_request"),
    BodyTooLarge: (413, "body_too_large"),
    FileTooLarge: (413, "file_too_large"),
    NotFound: (404, "not_found"),
    AlreadyFinished: (409, "already_finished"),
    NotRetryable: (409, "not_retryable"),
    UploadIncomplete: (409, "upload_incomplete"),
    TooSlow: (408, "too_slow"),
    QuotaExceeded: (429, "quota_exceeded"),
    RateLimited: (429, "rate_limited"),
    IdTaken: (409, "id_taken"),
    KeyReused: (422, "key_reused"),
}


def problem(
    request: HTTPConnection,
    status: int,
    code: str,
    detail: str,
    *,
    retryable: bool = False,
    errors: Sequence[tuple[str, str]] = (),
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Builds one problem document; `errors` are (JSON pointer into the body, sentence)."""
    body: dict[str, Any] = {
        "type": f"urn:reelbroker:problem:{code}",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "retryable": retryable,
        "request_id": request.state.request_id,
    }
    if errors:
        body["errors"] = [{"pointer": pointer, "detail": sentence} for pointer, sentence in errors]
    return JSONResponse(body, status, headers, media_type="application/problem+json")


async def refuse(request: Request, error: Exception) -> Response:
    """Answers a RequestError."""
    assert isinstance(error, RequestError)  # noqa: S101
    status, code = _STATUS[type(error)]
    errors: Sequence[tuple[str, str]] = ()
    headers = {}
    if isinstance(error, InvalidRequest):
        status, errors = error.status, error.fields
    elif status == http.HTTPStatus.TOO_MANY_REQUESTS:
        seconds = error.seconds if isinstance(error, RateLimited) else QUOTA_SECONDS
        headers["Retry-After"] = str(math.ceil(seconds))
        if isinstance(error, RateLimited):
            headers["RateLimit"] = f'"user";r=0;t={math.ceil(seconds)}'
    if isinstance(error, TooSlow | BodyTooLarge):
        # The rest of the body is not read, so the connection cannot be used again.
        headers["Connection"] = "close"
    retryable = status in (408, 429)
    return problem(
        request, status, code, str(error), errors=errors, headers=headers, retryable=retryable
    )


async def unavailable(request: Request, error: Exception) -> Response:
    """Answers a submit while the broker accepts no jobs."""
    assert isinstance(error, Unavailable)  # noqa: S101
    headers = {"Retry-After": str(CLOSED_SECONDS)}
    return problem(request, 503, error.code, str(error), retryable=True, headers=headers)


async def impossible(request: Request, error: Exception) -> Response:
    """Answers a value that the database refuses: an id with a NUL, on PostgreSQL."""
    log.warning("impossible_value", error=str(error.__cause__ or error))
    return problem(request, 404, "not_found", "There is no such thing.")


async def gone(request: Request, error: Exception) -> Response:
    """The client has disconnected."""
    return Response(status_code=400)


async def database_failed(request: Request, error: Exception) -> Response:
    log.error("database_failed", error=str(error.__cause__ or error))
    return problem(
        request, 503, "database_unavailable", "The database cannot be used now.", retryable=True
    )


async def storage_failed(request: Request, error: Exception) -> Response:
    log.error("storage_failed", error=str(error))
    return problem(
        request, 503, "storage_unavailable", "The object store cannot be reached.", retryable=True
    )


async def http_error(request: Request, error: Exception) -> Response:
    """Answers Starlette's own errors: no such route, wrong method."""
    assert isinstance(error, HTTPException)  # noqa: S101
    code = http.HTTPStatus(error.status_code).name.lower()
    headers = dict(error.headers) if error.headers else None
    return problem(request, error.status_code, code, error.detail, headers=headers)


async def crashed(request: Request, error: Exception) -> Response:
    """Answers a bug without its details; Starlette logs the traceback."""
    # Starlette sends this answer outside of all middleware.
    headers = {**EVERYWHERE, "X-Request-ID": request.state.request_id}
    detail = "Something went wrong on our side."
    return problem(request, 500, "internal", detail, retryable=True, headers=headers)


def invalid(error: ValidationError) -> InvalidRequest:
    """Turns Pydantic's first hundred errors into pointers and sentences of bounded length."""
    findings = error.errors(include_url=False, include_input=False)
    fields = [(_cut(_pointer(found)), _cut(found["msg"])) for found in findings[:MAX_ERRORS]]
    if len(findings) > MAX_ERRORS:
        fields.append(("", f"and {len(findings) - MAX_ERRORS} more errors"))
    return InvalidRequest(fields)


def _pointer(found: Any) -> str:
    path = [*found["loc"], *found.get("ctx", {}).get("at", [])]
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…"


HANDLERS: dict[Any, Any] = {
    RequestError: refuse,
    Unavailable: unavailable,
    OperationalError: database_failed,
    PoolTimeout: database_failed,
    DataError: impossible,
    ClientDisconnect: gone,
    StorageError: storage_failed,
    HTTPException: http_error,
    Exception: crashed,
}
