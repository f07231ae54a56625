"""A path prefix, for a proxy that serves the broker below a path of its host."""

from starlette.types import ASGIApp, Receive, Scope, Send


class UnderPrefix:
    """Serves an app below a path, whether the proxy passes the path on or strips it.

    Only the settings name the path, so that no request's header can change links.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            path = scope["path"]
            if path != self._root_path and not path.startswith(self._root_path + "/"):
                path = self._root_path + path
            scope = {**scope, "root_path": self._root_path, "path": path}
        await self._app(scope, receive, send)
