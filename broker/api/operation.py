"""What a route is: one entry of the table in routes.py, from which both the router and the OpenAPI document are made."""

import enum
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.authentication import requires
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

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

    def route(self, below: str) -> Route:
        """Returns the operation's route within a mount."""
        endpoint = requires(ADMIN)(self.endpoint) if self.access is Access.ADMIN else self.endpoint
        return Route(self.path.removeprefix(below), endpoint, methods=[self.method])
