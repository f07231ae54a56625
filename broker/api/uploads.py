"""Uploads over HTTP: URLs to put a file to, and the word that it is there."""

from starlette.requests import Request
from starlette.responses import Response

from broker.api import requests
from broker.services.uploads import UploadService
from schemas.uploads import UploadRequest


async def begin(request: Request) -> Response:
    """Get a presigned URL to PUT a video to; name the `video_key` as a job's `input_key` afterwards.

    Say how many `bytes` it has: then the URL takes exactly those, and from 100 MB on the file goes in `parts` of one size.
    """
    asked = await requests.body(request, UploadRequest)
    return requests.json(await _uploads(request).begin(requests.user(request), asked))


async def resume(request: Request) -> Response:
    """Get fresh URLs for what has not arrived yet of an upload, for 100 parts at most; ask again until `parts` is empty."""
    return requests.json(
        await _uploads(request).resume(requests.user(request), request.path_params["upload_id"])
    )


async def complete(request: Request) -> Response:
    """Say that an upload is there: it is checked, and parts are joined. 409 says what is missing."""
    return requests.json(
        await _uploads(request).complete(requests.user(request), request.path_params["upload_id"])
    )


async def abandon(request: Request) -> Response:
    """Drop an upload that is not complete, and what has arrived of it."""
    await _uploads(request).abandon(requests.user(request), request.path_params["upload_id"])
    return Response(status_code=204)


def _uploads(request: Request) -> UploadService:
    uploads: UploadService = request.state.uploads
    return uploads
