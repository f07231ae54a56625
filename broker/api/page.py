"""The page at `/`: the files of broker/web, with a policy that admits the broker and the bucket."""

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
    # The page uploads to the bucket. Videos come from there, or from the user's disk (`blob:`).
    reached = f"'self' {bucket.scheme}://{bucket.netloc}"
    policy = (
        f"{CLOSED}; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        f"connect-src {reached}; media-src {reached} blob:"
    )
    # The browser revalidates by ETag, so that a new broker's page is loaded.
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}

    async def page(_: Request) -> Response:
        return FileResponse(str(folder.joinpath("index.html")), headers=headers)

    return [Route("/", page), Mount("/web", _Files(directory=str(folder)))]


class _Files(StaticFiles):
    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "no-cache"
        return response
