"""The page at `/`: plain files out of broker/web, which need no build, and a policy that lets it reach only us and the bucket."""

from importlib.resources import files
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from broker.api.headers import CLOSED
from broker.settings import Settings


def routes(settings: Settings) -> list[BaseRoute]:
    """Returns the page's routes."""
    folder = files("broker").joinpath("web")
    bucket = urlsplit(settings.r2_endpoint)
    # Uploads go to the bucket, and videos come from there, or from a file on the user's own disk (`blob:`).
    reached = f"'self' {bucket.scheme}://{bucket.netloc}"
    policy = (
        f"{CLOSED}; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        f"connect-src {reached}; media-src {reached} blob:"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",  # asked for with an ETag each time, so that a new broker brings its new page
    }

    async def page(_: Request) -> Response:
        return FileResponse(str(folder.joinpath("index.html")), headers=headers)

    return [Route("/", page), Mount("/web", _Files(directory=str(folder)))]


class _Files(StaticFiles):
    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "no-cache"
        return response
