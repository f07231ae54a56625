"""Jobs over HTTP: each function reads a request, calls a service, and answers."""

from typing import Annotated

import structlog
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from broker.api import requests
from broker.engine.service import JobPage
from broker.errors import InvalidRequest
from broker.jobs.model import Job
from broker.providers.base import ProviderJobId
from broker.services.quotes import QuoteService
from broker.store.jobs import JobFilter
from schemas.jobs import JobList, JobRequest, JobStatus, JobType, QuoteRequest

log = structlog.get_logger(__name__)

POLL_AFTER_SECONDS = "2"


def _split(value: object) -> object:
    return [word for word in value.split(",") if word] if isinstance(value, str) else value


class ListQuery(BaseModel):
    """The query of `GET /api/jobs`; `status` and `type` take several values with commas between.

    `search` finds ids, inputs' keys and metadata, ignoring case (on SQLite, of ASCII letters).
    """

    model_config = ConfigDict(extra="forbid")

    status: Annotated[tuple[JobStatus, ...], Field(fail_fast=True), BeforeValidator(_split)] = ()
    type: Annotated[tuple[JobType, ...], Field(fail_fast=True), BeforeValidator(_split)] = ()
    project_id: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    search: Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 50
    cursor: Annotated[str, Field(max_length=200)] | None = None


class HookBody(BaseModel):
    """The part of a provider's webhook call that the broker reads."""

    id: ProviderJobId | None = None


async def submit(request: Request) -> Response:
    """Submit a job. 202 means that the job is on disk and cannot be lost.

    A second request with the same `Idempotency-Key`, or by PUT under the same UUID, returns the
    same job (`Idempotent-Replayed: true`). With `Prefer: wait=N`, the answer waits up to 25 s for
    the job's end.
    """
    job_id = request.path_params.get("job_id")
    if job_id is not None:
        job_id = requests.as_uuid(job_id)
    key = requests.idempotency_key(request)
    fields = await requests.body(request, JobRequest)
    user, trace = requests.user(request), requests.traceparent(request)
    job, replayed = await requests.service(request).submit(user, fields, key, job_id, trace)
    return await _accepted(request, job, replayed)


async def retry(request: Request) -> Response:
    """Submit a job that failed or was cancelled again, as a new job with `retry_of`.

    A second retry returns the same new job.
    """
    user, job_id = _path(request)
    trace = requests.traceparent(request)
    job, replayed = await requests.service(request).retry(user, job_id, trace)
    return await _accepted(request, job, replayed)


async def get(request: Request) -> Response:
    """Get a job. With `If-None-Match`, the answer is 304 while nothing has changed.

    With `Prefer: wait=N`, the answer waits up to 25 s for a change since the state that
    `If-None-Match` names, or since now.
    """
    service, (user, job_id) = requests.service(request), _path(request)
    known, wait = request.headers.get("if-none-match"), requests.preferred_wait(request)
    if wait is not None:
        seen = _version(known) if known is not None else await service.version(user, job_id)
        job = await service.wait(user, job_id, seen, wait)
        applied = {"Preference-Applied": f"wait={wait}"}
        if known is not None and seen == job.version:
            return Response(status_code=304, headers=_headers(job.version) | applied)
        return _shown(request, job, applied)
    if known is not None and _version(known) == (version := await service.version(user, job_id)):
        return Response(status_code=304, headers=_headers(version))
    return _shown(request, await service.job(user, job_id))


async def page(request: Request) -> Response:
    """List your jobs, the newest first. `next_cursor` and the `Link` header name the next page."""
    query, user = requests.query(request, ListQuery), requests.user(request)
    only = JobFilter(query.status, query.type, query.project_id, query.search)
    found = await requests.service(request).page(user, only, query.cursor, query.limit)
    headers = {}
    if found.next_cursor is not None:
        following = request.url.include_query_params(cursor=found.next_cursor)
        headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    # In a thread: a hundred jobs may have tens of thousands of keyframes.
    return await run_in_threadpool(_page, request, found, headers)


async def cancel(request: Request) -> Response:
    """Cancel a job, and stop paying for it.

    202 while the job stops, 200 once it is cancelled. You may repeat the request.
    """
    job = await requests.service(request).cancel(*_path(request))
    return requests.json(requests.view(request, job), 200 if job.status.is_terminal else 202)


async def output(request: Request) -> Response:
    """Download the finished file: a redirect to a fresh presigned URL."""
    url = await requests.service(request).output_url(*_path(request))
    return RedirectResponse(url, 302, headers={"Cache-Control": "no-store"})


async def quote(request: Request) -> Response:
    """Estimate a job's GPU seconds and cost, by your jobs like it where there are enough."""
    fields = await requests.body(request, QuoteRequest)
    quotes: QuoteService = request.state.quotes
    return requests.json(await quotes.quote(requests.user(request), fields))


async def provider_hook(request: Request) -> Response:
    """Take a webhook call of the GPU provider.

    The broker reconciles the job at once, and believes nothing else of the call.
    """
    raw = await requests.raw_body(request)
    try:
        call = await requests.validated(HookBody, raw)
    except InvalidRequest:
        # The call counts, whatever its body.
        call = HookBody()
    path = request.path_params
    await requests.service(request).hint(path["job_id"], path["token"], call.id)
    return Response('{"status":"ok"}', media_type="application/json")


def _page(request: Request, found: JobPage, headers: dict[str, str]) -> Response:
    shown = [requests.view(request, job) for job in found.jobs]
    return requests.json(JobList(jobs=shown, next_cursor=found.next_cursor), 200, headers)


def _path(request: Request) -> tuple[str, str]:
    """Returns the user, and the id of the job in the path."""
    return requests.user(request), request.path_params["job_id"]


async def _accepted(request: Request, job: Job, replayed: bool) -> Response:
    service = requests.service(request)
    location = requests.view(request, job).urls.self
    headers = {"Location": location, "Retry-After": POLL_AFTER_SECONDS}
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    wait = requests.preferred_wait(request)
    if wait is not None:
        try:
            job = await service.wait(job.user_id, job.id, None, wait)
            headers["Preference-Applied"] = f"wait={wait}"
        except SQLAlchemyError as error:
            # The job is stored, so the answer must not be an error.
            log.error("wait_failed", job_id=job.id, error=str(error))
    return requests.json(requests.view(request, job), 202, headers | {"ETag": _etag(job.version)})


def _shown(request: Request, job: Job, headers: dict[str, str] | None = None) -> Response:
    headers = _headers(job.version) | (headers or {})
    if not job.status.is_terminal:
        headers["Retry-After"] = POLL_AFTER_SECONDS
    return requests.json(requests.view(request, job), 200, headers)


def _headers(version: int) -> dict[str, str]:
    return {"ETag": _etag(version), "Cache-Control": "private, no-cache"}


def _etag(version: int) -> str:
    """Returns a weak ETag: `last_evidence` may change within a version."""
    return f'W/"{version}"'


def _version(etags: str) -> int | None:
    """Returns the version that an `If-None-Match` names; of several, the first valid one."""
    for etag in etags.split(","):
        number = etag.strip().removeprefix("W/").strip('"')
        if number.isascii() and number.isdecimal() and len(number) < 10:
            return int(number)
    return None
