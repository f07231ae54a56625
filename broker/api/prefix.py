"""A path prefix: a proxy serves the broker below a path of a host that has other things as well."""

from starlette.types import ASGIApp, Receive, Scope, Send


class UnderPrefix:
    """Serves an app below a path, whether the proxy passes that path on or strips it.

    The settings name the path, and no header does: no request can change what links say.
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
