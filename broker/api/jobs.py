"""Jobs over HTTP: one function a route reads the request, asks the service, and says it."""

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


def _several(value: object) -> object:
    return [word for word in value.split(",") if word] if isinstance(value, str) else value


class ListQuery(BaseModel):
    """The query of `GET /api/jobs`; `status` and `type` may name several, with commas between.

    `search` is looked for in the id, the inputs' keys and the metadata, whatever the case (on SQLite, of ASCII letters).
    """

    model_config = ConfigDict(extra="forbid")

    status: Annotated[tuple[JobStatus, ...], Field(fail_fast=True), BeforeValidator(_several)] = ()
    type: Annotated[tuple[JobType, ...], Field(fail_fast=True), BeforeValidator(_several)] = ()
    project_id: Annotated[int, Field(ge=0, le=2**53 - 1)] | None = None
    search: Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 50
    cursor: Annotated[str, Field(max_length=200)] | None = None


class HookBody(BaseModel):
    """What we read of a provider's call."""

    id: ProviderJobId | None = None


async def submit(request: Request) -> Response:
    """Submit a job. 202 once it is on disk; from then on it is never lost.

    Send the same again, with the same `Idempotency-Key` or under the same UUID by PUT, and it is the same job
    (`Idempotent-Replayed: true`). With `Prefer: wait=N` the answer waits up to 25 s for the job's end.
    """
    job_id = request.path_params.get("job_id")
    if job_id is not None:
        job_id = requests.as_uuid(job_id)
    key = requests.idempotency_key(request)
    asked = await requests.body(request, JobRequest)
    user, trace = requests.user(request), requests.traceparent(request)
    job, replayed = await requests.service(request).submit(user, asked, key, job_id, trace)
    return await _accepted(request, job, replayed)


async def retry(request: Request) -> Response:
    """Send a job that failed or was cancelled once more: a new job, with `retry_of`. Asking again returns the same one."""
    user, trace = requests.user(request), requests.traceparent(request)
    job, replayed = await requests.service(request).retry(
        user, request.path_params["job_id"], trace
    )
    return await _accepted(request, job, replayed)


async def get(request: Request) -> Response:
    """Look at a job. Cheap with `If-None-Match`: 304 while nothing has changed.

    With `Prefer: wait=N` the answer waits up to 25 s for a change: from the state that `If-None-Match` names, or from now.
    """
    service, user, job_id = (
        requests.service(request),
        requests.user(request),
        request.path_params["job_id"],
    )
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
    """List your jobs, newest first. `next_cursor` leads to the next page, and so does the `Link` header."""
    asked = requests.query(request, ListQuery)
    only = JobFilter(asked.status, asked.type, asked.project_id, asked.search)
    found = await requests.service(request).page(
        requests.user(request), only, asked.cursor, asked.limit
    )
    headers = {}
    if found.next_cursor is not None:
        following = request.url.include_query_params(cursor=found.next_cursor)
        headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    # In a thread: a hundred jobs may have tens of thousands of keyframes.
    return await run_in_threadpool(_page, request, found, headers)


async def cancel(request: Request) -> Response:
    """Cancel a job, and stop paying for it. 202 while the stop is under way, 200 once it is cancelled; ask as often as you like."""
    job = await requests.service(request).cancel(
        requests.user(request), request.path_params["job_id"]
    )
    return requests.json(requests.view(request, job), 200 if job.status.is_terminal else 202)


async def output(request: Request) -> Response:
    """Download the finished file: a redirect to a presigned URL, minted now."""
    url = await requests.service(request).output_url(
        requests.user(request), request.path_params["job_id"]
    )
    return RedirectResponse(url, 302, headers={"Cache-Control": "no-store"})


async def quote(request: Request) -> Response:
    """Estimate a job before sending it: GPU seconds and cost, by your own jobs like it where there are enough."""
    asked = await requests.body(request, QuoteRequest)
    quotes: QuoteService = request.state.quotes
    return requests.json(await quotes.quote(requests.user(request), asked))


async def provider_hook(request: Request) -> Response:
    """The GPU provider says that something happened to a job. Only a reason to look now: what it says is not believed."""
    raw = await requests.raw_body(request)
    try:
        told = await requests.validated(HookBody, raw)
    except InvalidRequest:  # the call counts, whatever it says
        told = HookBody()
    path = request.path_params
    await requests.service(request).hint(path["job_id"], path["token"], told.id)
    return Response('{"status":"ok"}', media_type="application/json")


def _page(request: Request, found: JobPage, headers: dict[str, str]) -> Response:
    shown = [requests.view(request, job) for job in found.jobs]
    return requests.json(JobList(jobs=shown, next_cursor=found.next_cursor), 200, headers)


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
        except SQLAlchemyError as error:  # the job is stored: nothing may say that it is not
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
    """Weak: `last_evidence` may be newer in the same version of a job."""
    return f'W/"{version}"'


def _version(etags: str) -> int | None:
    """Returns the version that an `If-None-Match` names; of several the first that can be one."""
    for etag in etags.split(","):
        number = etag.strip().removeprefix("W/").strip('"')
        if number.isascii() and number.isdecimal() and len(number) < 10:
            return int(number)
    return None
