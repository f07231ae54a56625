"""The routes of older clients, over the same service: each with its own names and four statuses.

A cancelled job has the status `error` and the error "Cancelled by user". A job that names a project
but no video takes the project's newest finished framing, multi_clip or upscale export, which those
clients call its working video.
"""

import json
import uuid
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response

from broker import ids
from broker.api import requests
from broker.api.compat.forms import read_form
from broker.engine.service import JobService
from broker.errors import AlreadyFinished, InvalidRequest, NotFound
from broker.jobs.model import Job
from broker.services.uploads import UploadService
from broker.store.jobs import JobFilter
from schemas.compat.aliases import (
    ExportCancelled,
    ExportJob,
    ExportJobList,
    ExportList,
    ExportStarted,
    ExportStatus,
    ExportSummary,
    RemoteStatus,
    RemoteWord,
    StartRequest,
    UpscaleAccepted,
    UpscaleFields,
)
from schemas.jobs import JobRequest, JobStatus, JobType, JobView
from schemas.uploads import DownloadQuery

_WORKING = (JobType.FRAMING, JobType.MULTI_CLIP, JobType.UPSCALE)
_OPEN = JobFilter(status=(JobStatus.PENDING, JobStatus.PROCESSING))
LISTED = 100
#: The provider of those clients.
_MODAL = "modal"


async def start(request: Request) -> Response:
    """Start an export (first API). Params stand beside `project_id`, or under `params`."""
    job_type = _job_type(request)
    fields = await requests.body(request, StartRequest)
    user, service = requests.user(request), requests.service(request)
    key = fields.input_key or await _working_video(
        service, user, fields.project_id, job_type, fields.params
    )
    text = json.dumps({**fields.job_fields, "type": job_type, "input_key": key})
    # The fields may take thirty times the text's memory, and the text may wait for its turn.
    del fields
    job = await requests.validated(JobRequest, text)
    stored, _ = await service.submit(
        user, job, requests.idempotency_key(request), traceparent=requests.traceparent(request)
    )
    return requests.json(ExportStarted(job_id=stored.id, status=JobStatus.PROCESSING))


async def status(request: Request) -> Response:
    """Get an export (first API)."""
    _job_type(request)
    return requests.json(ExportStatus.of(await _job(request)))


async def jobs(request: Request) -> Response:
    """List your newest exports (first API)."""
    page = await requests.service(request).page(requests.user(request), JobFilter(), None, LISTED)
    return requests.json(
        ExportJobList(jobs=[ExportJob.of(requests.view(request, job)) for job in page.jobs])
    )


async def active(request: Request) -> Response:
    """List your exports that have not ended, for a page that is loaded again."""
    page = await requests.service(request).page(requests.user(request), _OPEN, None, LISTED)
    return requests.json(
        ExportList(exports=[ExportSummary.of(requests.view(request, job)) for job in page.jobs])
    )


async def remote_status(request: Request) -> Response:
    """Get whether an export runs, and its outcome."""
    return requests.json(RemoteStatus.of(await _job(request)))


async def modal_status(request: Request) -> Response:
    """Get whether an export runs at Modal, and its outcome, which Modal and the bucket are asked
    for now.
    """
    service = requests.service(request)
    job, attempt = await service.reconciled(requests.user(request), _job_id(request))
    word = RemoteWord.RUNNING
    if attempt is not None and attempt.provider != _MODAL:
        word = RemoteWord.NOT_MODAL
    elif attempt is not None and attempt.absent_since is not None:
        word = RemoteWord.EXPIRED
    return requests.json(RemoteStatus.of(requests.view(request, job), word))


async def cancel(request: Request) -> Response:
    """Cancel an export. 400 where it has ended already."""
    try:
        job = await requests.service(request).cancel(requests.user(request), _job_id(request))
    except AlreadyFinished as error:
        raise InvalidRequest([("", str(error))], status=400) from error
    at_modal = job.provider == _MODAL and job.provider_job_id is not None
    return requests.json(ExportCancelled(message="Export cancelled", modal_cancelled=at_modal))


async def upscale(request: Request) -> Response:
    """Submit a video and its keyframes in one form.

    The file goes to the bucket as it arrives. The job's end removes it.
    """
    user, service = requests.user(request), requests.service(request)
    # Refused before a gigabyte has arrived.
    service.check_open()
    uploads: UploadService = request.state.uploads
    file = uploads.incoming(user)
    try:
        form = await read_form(request, "video", file)
        if await file.complete() == 0:
            raise InvalidRequest([("/video", "send the video as a file")])
        fields = await requests.validated(UpscaleFields, json.dumps(form))
        given_id, text = fields.export_id, json.dumps(fields.job_fields(file.key))
        job_id = _new_job_id(user, given_id)
        # As above.
        del fields
        job = await requests.validated(JobRequest, text)
        stored = await _known(service, user, job_id)
        if stored is None:
            stored, _ = await service.submit(user, job, None, job_id, requests.traceparent(request))
    except BaseException:
        with anyio.CancelScope(shield=True):
            await file.discard()
        raise
    # A repeated form: the job has the first file.
    if stored.input_key != file.key:
        await file.discard()
    export_id = given_id or stored.id
    return requests.json(
        UpscaleAccepted(status="accepted", export_id=export_id, job_id=stored.id), 202
    )


async def _known(service: JobService, user: str, job_id: str) -> Job | None:
    try:
        return await service.job(user, job_id)
    except NotFound:
        return None


async def presigned_url(request: Request) -> Response:
    """Get a presigned URL of one of your objects (first API)."""
    key = requests.query(request, DownloadQuery).key
    uploads: UploadService = request.state.uploads
    return requests.json(await uploads.download(requests.user(request), key))


def as_job_id(user: str, export_id: str) -> str:
    """Returns the job id for a client's id: the id itself if it is a UUID, else a derived one."""
    try:
        return str(uuid.UUID(export_id))
    except ValueError:
        return ids.derived("export", user, export_id)


def _new_job_id(user: str, export_id: str | None) -> str:
    """Returns the id of a new job; raises InvalidRequest where a client may not choose it."""
    if export_id is None:
        return str(uuid.uuid4())
    job_id = as_job_id(user, export_id)
    is_ours = job_id == ids.derived("export", user, export_id)
    return job_id if is_ours else requests.as_uuid(job_id, "/export_id")


async def _working_video(
    service: JobService,
    user: str,
    project_id: int | None,
    job_type: JobType,
    params: dict[str, Any],
) -> str | None:
    if project_id is None or (job_type is JobType.MULTI_CLIP and "clips" in params):
        return None
    only = JobFilter(status=(JobStatus.COMPLETE,), type=_WORKING, project_id=project_id)
    found = await service.page(user, only, None, 1)
    if not found.jobs:
        sentence = (
            "no working video found: give an input_key, or finish a framing export of this "
            "project first"
        )
        raise InvalidRequest([("/project_id", sentence)], status=400)
    return found.jobs[0].output_key


async def _job(request: Request) -> JobView:
    service = requests.service(request)
    job = await service.job(requests.user(request), _job_id(request))
    return requests.view(request, job)


def _job_id(request: Request) -> str:
    return as_job_id(requests.user(request), request.path_params["job_id"])


def _job_type(request: Request) -> JobType:
    try:
        return JobType(request.path_params["type"])
    except ValueError:
        raise NotFound("There is no such type of export.") from None
