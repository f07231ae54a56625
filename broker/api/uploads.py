"""Uploads over HTTP: presigned URLs for a file, and the check that it has arrived."""

from starlette.requests import Request
from starlette.responses import Response

from broker.api import requests
from broker.services.uploads import UploadService
from schemas.uploads import UploadRequest


async def begin(request: Request) -> Response:
    """Get a presigned URL to PUT a video to. Submit jobs with its `video_key` as `input_key`.

    State how many `bytes` the file has. The URL then takes exactly those. A file of 100 MB or more
    goes in `parts` of one size.
    """
    fields = await requests.body(request, UploadRequest)
    return requests.json(await _uploads(request).begin(requests.user(request), fields))


async def resume(request: Request) -> Response:
    """Get fresh URLs for the missing parts of an upload, 100 at most.

    Ask again until `parts` is empty.
    """
    user, upload_id = requests.user(request), request.path_params["upload_id"]
    return requests.json(await _uploads(request).resume(user, upload_id))


async def complete(request: Request) -> Response:
    """Complete an upload: the broker checks the file and joins its parts.

    409 names what is missing.
    """
    user, upload_id = requests.user(request), request.path_params["upload_id"]
    return requests.json(await _uploads(request).complete(user, upload_id))


async def abandon(request: Request) -> Response:
    """Drop an upload that is not complete, with the parts that have arrived."""
    await _uploads(request).abandon(requests.user(request), request.path_params["upload_id"])
    return Response(status_code=204)


def _uploads(request: Request) -> UploadService:
    uploads: UploadService = request.state.uploads
    return uploads
