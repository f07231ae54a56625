"""A route: one entry of the table in routes.py, which the router and the OpenAPI document share."""

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
#: The body of an answer: a model, a media type, or none.
Answer = type[BaseModel] | str | None


class Access(enum.Enum):
    """Who may call a route."""

    PUBLIC = "public"
    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True)
class RouteSpec:
    """One method on one path.

    Args:
        path: with `{names}`, as in OpenAPI and in Starlette.
        answers: by status, on success.
        problems: the statuses of problem documents, without those that every route may answer.
        headers: the request headers that the route reads.
        form: the fields of its multipart form.
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
    """All methods of one path, as an ASGI app: the first path that matches answers."""

    def __init__(self, specs: Iterable[RouteSpec]) -> None:
        self._endpoints = {spec.method: spec.guarded for spec in specs}
        if "GET" in self._endpoints:
            self._endpoints["HEAD"] = self._endpoints["GET"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get(scope["method"])
        if endpoint is None:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(self._endpoints))})
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


def resources(
    specs: Sequence[RouteSpec], below: str = "", behind: Sequence[Middleware] = ()
) -> list[Route]:
    """Returns a Starlette route for each path, within the mount `below`, behind middleware."""
    by_path: dict[str, list[RouteSpec]] = {}
    for spec in specs:
        by_path.setdefault(spec.path.removeprefix(below), []).append(spec)
    return [Route(path, Resource(on_it), middleware=behind) for path, on_it in by_path.items()]
