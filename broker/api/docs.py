"""`/openapi.json`, and `/docs`: Swagger UI from a package's files, so that it works offline."""

import functools
import json
from collections.abc import Sequence
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from broker.api.headers import CLOSED
from broker.api.openapi import document
from broker.api.route import RouteSpec
from broker.settings import Settings

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Reelbroker API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/files/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="docs/files/swagger-ui-bundle.js"></script>
<script src="docs/page.js"></script>
</body>
</html>
"""
_SCRIPT = """SwaggerUIBundle({
  url: "openapi.json", dom_id: "#page", deepLinking: true, persistAuthorization: true,
  defaultModelsExpandDepth: 0, displayRequestDuration: true, validatorUrl: null,
});
"""
#: The page can load and send nothing elsewhere, whatever a document contains. Swagger UI sets
#: styles inline.
_POLICY = (
    f"{CLOSED}; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'"
)


def routes(specs: Sequence[RouteSpec], settings: Settings) -> list[BaseRoute]:
    """Returns the routes of the reference."""

    @functools.cache
    def described() -> bytes:
        return json.dumps(document(specs, settings.root_path), separators=(",", ":")).encode()

    # Not a coroutine: it is made on the first request, in a thread, for 0.2 s.
    def openapi(_: Request) -> Response:
        return Response(described(), media_type="application/json")

    async def docs(_: Request) -> Response:
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})

    async def script(_: Request) -> Response:
        return Response(_SCRIPT, media_type="text/javascript")

    bundle = str(files("fastapi_offline").joinpath("static"))
    return [
        Route("/openapi.json", openapi),
        Route("/docs", docs),
        Route("/docs/page.js", script),
        Mount("/docs/files", StaticFiles(directory=bundle)),
    ]
