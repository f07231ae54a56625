"""One function a route: read the request, ask the service, say it in HTTP."""

import uuid
from collections.abc import Callable
from typing import Annotated, TypeVar

import anyio
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from broker.api.problems import invalid, problem
from broker.errors import BodyTooLarge, InvalidRequest
from broker.runpod import RemoteId
from broker.service import JobService
from broker.settings import Settings
from broker.store import JobFilter
from schemas.jobs import JobRequest, JobStatus, JobType, JobView, UploadRequest

Model = TypeVar("Model", bound=BaseModel)
POLL_AFTER_SECONDS = "2"
MAX_KEY = 255


class ListQuery(BaseModel):
    """The query of `GET /api/jobs`."""

    model_config = ConfigDict(extra="forbid")

    status: JobStatus | None = None
    type: JobType | None = None
    project_id: Annotated[int, Field(ge=0)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 50
    cursor: Annotated[str, Field(max_length=200)] | None = None


class HookBody(BaseModel):
    """What we read of a provider's call."""

    id: RemoteId | None = None


class DrainRequest(BaseModel):
    """The body of `POST /api/operations/drain`."""

    model_config = ConfigDict(extra="forbid")

    on: bool


async def submit_job(request: Request) -> Response:
    """`POST /api/jobs` with an optional `Idempotency-Key`; `PUT /api/jobs/{uuid}`. 202 once the job is on disk."""
    job_id = request.path_params.get("job_id")
    if job_id is not None:
        job_id = _uuid(job_id)
    key = _idempotency_key(request)
    asked = await _body(request, JobRequest)
    job, replayed = await _service(request).submit(_user(request), asked, key, job_id)
    headers = {"Location": job.urls.self, "Retry-After": POLL_AFTER_SECONDS}
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    return _json(job, 202, headers)


async def get_job(request: Request) -> Response:
    """`GET /api/jobs/{id}`."""
    return _shown(await _service(request).get(_user(request), request.path_params["job_id"]))


async def list_jobs(request: Request) -> Response:
    """`GET /api/jobs`."""
    try:
        query = ListQuery.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise invalid(error) from error
    only = JobFilter(query.status, query.type, query.project_id)
    return _json(await _service(request).page(_user(request), only, query.cursor, query.limit))


async def cancel_job(request: Request) -> Response:
    """`POST /api/jobs/{id}/cancel`: 202 while the stop is under way, 200 once the job is cancelled."""
    job = await _service(request).cancel(_user(request), request.path_params["job_id"])
    return _json(job, 200 if job.status.is_terminal else 202)


async def job_output(request: Request) -> Response:
    """`GET /api/jobs/{id}/output`: 302 to a fresh presigned URL."""
    url = await _service(request).output_url(_user(request), request.path_params["job_id"])
    return RedirectResponse(url, 302, headers={"Cache-Control": "no-store"})


async def upload_url(request: Request) -> Response:
    """`POST /api/videos/upload-url`."""
    return _json(_service(request).upload_ticket(_user(request), await _body(request, UploadRequest)))


async def runpod_hook(request: Request) -> Response:
    """`POST /hooks/runpod/{job_id}/{token}`: the provider says that something happened. Only a reason to look."""
    body = await _bytes(request)
    try:
        told = HookBody.model_validate_json(body)
    except ValidationError:  # the call counts, whatever it says
        told = HookBody()
    path = request.path_params
    await _service(request).hint(path["job_id"], path["token"], told.id)
    return JSONResponse({"status": "ok"})


async def drain(request: Request) -> Response:
    """`POST /api/operations/drain`: `{"on": true}` holds new jobs back, `false` sends them again."""
    asked = await _body(request, DrainRequest)
    await _service(request).drain(asked.on)
    return JSONResponse({"draining": asked.on})


async def healthz(request: Request) -> Response:
    """`GET /healthz`: the process runs and answers."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """`GET /readyz`: a job sent now can be stored, and its files reached."""
    checks: dict[str, Callable[[], None]] = request.state.checks
    for name, check in checks.items():
        try:
            with anyio.fail_after(5):
                await run_in_threadpool(check)
        except Exception as error:  # noqa: BLE001  # whatever it is, not ready is the answer
            return problem(request, 503, "not_ready", f"{name}: {error}", retryable=True)
    return JSONResponse({"status": "ok", "checks": dict.fromkeys(checks, "ok")})


async def _body(request: Request, model: type[Model]) -> Model:
    """Reads the body up to the limit, whatever Content-Length says, and validates it."""
    try:
        return model.model_validate_json(await _bytes(request))
    except ValidationError as error:
        raise invalid(error) from error


async def _bytes(request: Request) -> bytes:
    settings: Settings = request.state.settings
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > settings.body_limit_bytes:
            raise BodyTooLarge(f"The body is over {settings.body_limit_bytes} bytes.")
    return bytes(body)


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise InvalidRequest([("/job_id", "must be a UUID that you have drawn")]) from error


def _idempotency_key(request: Request) -> str | None:
    """Returns the key of the header, which the draft wants in quotes and most clients send without."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    key = key.strip().removeprefix('"').removesuffix('"')
    if not 1 <= len(key) <= MAX_KEY or not key.isprintable():
        raise InvalidRequest([("/Idempotency-Key", f"must be 1 to {MAX_KEY} printable characters")])
    return key


def _shown(job: JobView) -> Response:
    return _json(job, 200, {} if job.status.is_terminal else {"Retry-After": POLL_AFTER_SECONDS})


def _json(body: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), status, headers, media_type="application/json")


def _service(request: Request) -> JobService:
    service: JobService = request.state.service
    return service


def _user(request: Request) -> str:
    return str(request.user.username)
