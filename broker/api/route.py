"""What a route is: one entry of the table in routes.py, from which both the router and the OpenAPI document are made."""

import enum
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.authentication import requires
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from broker.api.auth import ADMIN

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
#: What an answer's body is: a model, a media type, or nothing.
Answer = type[BaseModel] | str | None


class Access(enum.Enum):
    """Who may call an operation."""

    PUBLIC = "public"
    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True)
class Operation:
    """One method on one path.

    Args:
        path: with `{names}`, as in OpenAPI and in Starlette alike.
        answers: by status, when all is well.
        problems: the statuses of problem documents that it may answer beside those that any may.
        headers: the request headers that mean something to it.
        form: its body is this multipart form.
    """

    method: str
    path: str
    endpoint: Endpoint
    answers: Mapping[int, Answer]
    tag: str
    access: Access = Access.USER
    body: type[BaseModel] | None = None
    form: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    problems: tuple[int, ...] = ()
    headers: tuple[str, ...] = ()

    @property
    def guarded(self) -> Endpoint:
        """The endpoint, for those who may call it."""
        return requires(ADMIN)(self.endpoint) if self.access is Access.ADMIN else self.endpoint


class Resource:
    """All operations on one path, as an ASGI app: of a path that fits, no other route is asked."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._endpoints = {operation.method: operation.guarded for operation in operations}
        if "GET" in self._endpoints:
            self._endpoints["HEAD"] = self._endpoints["GET"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get(scope["method"])
        if endpoint is None:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(self._endpoints))})
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


def resources(
    operations: Sequence[Operation], below: str = "", behind: Sequence[Middleware] = ()
) -> list[Route]:
    """Returns a route for each path, within a mount, behind middleware."""
    by_path: dict[str, list[Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path.removeprefix(below), []).append(operation)
    return [Route(path, Resource(on_it), middleware=behind) for path, on_it in by_path.items()]
