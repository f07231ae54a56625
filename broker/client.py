"""A client of the broker, sync and async, typed by the schemas' models.

    from broker.client import AsyncClient, Client

    with Client(url, key) as reelbroker:
        key = reelbroker.upload(Path("clip.mp4"))
        job = reelbroker.submit({"type": "framing", "input_key": key})
        for job in reelbroker.watch(job.job_id):
            print(job.progress, job.message)
        reelbroker.download(job, Path("out.mp4"))

`AsyncClient` has the same methods, to `await`, and `async for` over `watch`. Flows hold the rules
of both. A flow is a generator without I/O: it yields a request and receives the answer. The two
clients only carry flows out. The broker accepts each request twice (a submit carries an idempotency
key), so flows retry what fails on the way.
"""

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

import httpx
from pydantic import BaseModel, ValidationError

from schemas.jobs import EventView, JobList, JobRequest, JobStatus, JobView, Quote, Snapshot
from schemas.uploads import Uploaded, UploadTicket

P = ParamSpec("P")
T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)
#: Receives the number of bytes of each piece that a transfer moves.
OnProgress = Callable[[int], None]
JobFields = JobRequest | Mapping[str, Any]
#: Waits between tries. A longer `Retry-After` of the broker counts instead.
RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
RETRY_STATUSES = {408, 425, 429, 500, 502, 503, 504}
TIMEOUT = httpx.Timeout(60.0, connect=10.0)
PIECE_BYTES = 1 << 18
CONTENT_TYPES = {".mov": "video/quicktime", ".webm": "video/webm", ".mkv": "video/x-matroska"}
_now = time.monotonic


class ClientError(Exception):
    """The broker or the bucket refuses a request, or its answer makes no sense."""


@dataclass(eq=False)
class ApiError(ClientError):
    """The broker's problem document."""

    status: int
    code: str
    detail: str
    retryable: bool = False
    #: (JSON pointer, sentence) of each wrong field.
    errors: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.detail + "".join(f"\n  {where or '/'}: {text}" for where, text in self.errors)


@dataclass(frozen=True)
class Slice:
    """A part of a file, as the body of a request."""

    path: Path
    offset: int
    length: int
    on_progress: OnProgress | None = None

    def __iter__(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            left = self.length
            while left and (piece := file.read(min(PIECE_BYTES, left))):
                left -= len(piece)
                yield piece
                if self.on_progress is not None:
                    self.on_progress(len(piece))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = iter(self)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece


class Download:
    """A file that a client fetches: complete under its name, or absent."""

    def __init__(self, path: Path, on_progress: OnProgress | None = None) -> None:
        self.path, self._on_progress = path, on_progress
        self._partial = path.with_name(path.name + ".part")

    def begin(self) -> None:
        self._hash = hashlib.sha256()
        self._partial.write_bytes(b"")

    def write(self, piece: bytes) -> None:
        with self._partial.open("ab") as file:
            file.write(piece)
        self._hash.update(piece)
        if self._on_progress is not None:
            self._on_progress(len(piece))

    def finish(self, sha256: str | None) -> Path:
        """Renames the complete file. Raises ClientError when the file differs from the job's."""
        if sha256 is not None and self._hash.hexdigest() != sha256:
            self._partial.unlink()
            raise ClientError(f"{self.path} did not arrive whole: its SHA-256 is not the job's")
        self._partial.rename(self.path)
        return self.path


@dataclass(frozen=True)
class Request:
    """One request. `url` is a path of the broker or, without the key, an address in the bucket."""

    method: str
    url: str
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Slice | None = None
    #: An error status that this request accepts.
    accepts: int | None = None
    #: Receives the answer's body. None keeps the body in memory.
    into: Download | None = None
    #: How long a client waits before sending.
    delay: float = 0.0


Answer = httpx.Response | httpx.TransportError
Flow = Generator[Request, Answer, T]


# ── flows ───────────────────────────────────────────────────────────────────────────────────────


def _submit(job: JobFields, *, key: str | None = None) -> Flow[JobView]:
    """Sends a job. The broker never loses a job that this call returns."""
    headers = {"Idempotency-Key": key or str(uuid.uuid4())}
    return _ask(JobView, Request("POST", "/api/jobs", json=_fields(job), headers=headers))


def _quote(job: JobFields, *, source_seconds: float | None = None) -> Flow[Quote]:
    """Estimates a job."""
    length = {} if source_seconds is None else {"source_seconds": source_seconds}
    return _ask(Quote, Request("POST", "/api/jobs/quote", json=_fields(job) | length))


def _get(job_id: str) -> Flow[JobView]:
    """Returns a job."""
    return _ask(JobView, Request("GET", f"/api/jobs/{job_id}"))


def _jobs(*, limit: int = 50, cursor: str | None = None, **filters: Any) -> Flow[JobList]:
    """Returns a page of jobs, newest first; `status`, `type` and `project_id` filter the jobs."""
    query = {"limit": limit, "cursor": cursor} | filters
    given = {name: value for name, value in query.items() if value is not None}
    return _ask(JobList, Request("GET", "/api/jobs", params=given))


def _cancel(job_id: str) -> Flow[JobView]:
    """Requests a cancel."""
    return _ask(JobView, Request("POST", f"/api/jobs/{job_id}/cancel"))


def _retry(job_id: str) -> Flow[JobView]:
    """Sends a failed job again; returns the new job."""
    return _ask(JobView, Request("POST", f"/api/jobs/{job_id}/retry"))


def _upload(
    path: Path, *, name: str | None = None, on_progress: OnProgress | None = None
) -> Flow[str]:
    """Puts a video into the bucket, in parts when the file is large; returns its key."""
    size = path.stat().st_size
    content_type = CONTENT_TYPES.get(path.suffix.lower(), "video/mp4")
    body: dict[str, Any] = {"filename": name or path.name, "content_type": content_type}
    if size:
        body["bytes"] = size
    ticket = yield from _ask(UploadTicket, Request("POST", "/api/videos/upload-url", json=body))
    if ticket.upload_url is not None:
        headers = {**ticket.headers, "Content-Length": str(size)}
        file = Slice(path, 0, size, on_progress)
        put = Request("PUT", ticket.upload_url, headers=headers, body=file)
        # 412: an earlier try stored the file and its answer was lost. `complete` checks the file.
        yield from _send(replace(put, accepts=httpx.codes.PRECONDITION_FAILED))
    while ticket.parts:
        fresh_until = _now() + ticket.expires_in_seconds / 2
        for part in ticket.parts:
            # On a slow line the URLs expire before the last part. The loop requests new URLs.
            if _now() > fresh_until and part is not ticket.parts[0]:
                break
            headers = {"Content-Length": str(part.bytes)}
            file = Slice(path, part.offset, part.bytes, on_progress)
            yield from _send(Request("PUT", part.upload_url, headers=headers, body=file))
        left = Request("GET", f"/api/videos/uploads/{ticket.upload_id}")
        ticket = yield from _ask(UploadTicket, left)
    complete = Request("POST", f"/api/videos/uploads/{ticket.upload_id}/complete")
    return (yield from _ask(Uploaded, complete)).video_key


def _download(job: JobView, path: Path, *, on_progress: OnProgress | None = None) -> Flow[Path]:
    """Fetches a job's output and compares its SHA-256 with the job's."""
    if job.result is None or job.urls.output is None:
        raise ClientError(f"the job has no output: it is {job.status}")
    redirect = yield from _send(Request("GET", f"/api/jobs/{job.job_id}/output"))
    file = Download(path, on_progress)
    yield from _send(Request("GET", redirect.headers["location"], into=file))
    return file.finish(job.result.sha256)


def _ask(model: type[Model], request: Request) -> Flow[Model]:
    """Sends a request and reads the answer as a model."""
    reply = yield from _send(request)
    try:
        return model.model_validate_json(reply.content)
    except ValidationError as error:
        where = f"{reply.url}: {reply.status_code}"
        raise ClientError(f"{where}, and not what a broker answers") from error


def _send(request: Request) -> Flow[httpx.Response]:
    """Sends a request, and again after an answer that may be better next time."""
    tries, delay = 0, 0.0
    while True:
        answer = yield replace(request, delay=delay)
        if isinstance(answer, httpx.Response) and (
            not answer.is_error or answer.status_code == request.accepts
        ):
            return answer
        delay = _delay(tries, answer)
        tries += 1


def _delay(tries: int, answer: Answer) -> float:
    """Returns how long to wait before the next try. Raises the error when the tries are spent."""
    if not isinstance(answer, httpx.Response):
        if tries >= len(RETRY_SECONDS):
            raise answer
        return RETRY_SECONDS[tries]
    if tries >= len(RETRY_SECONDS) or answer.status_code not in RETRY_STATUSES:
        raise _error(answer)
    retry_after = answer.headers.get("retry-after", "")
    return max(RETRY_SECONDS[tries], float(retry_after) if retry_after.isdecimal() else 0.0)


def _error(reply: httpx.Response) -> ClientError:
    if reply.headers.get("content-type", "").startswith("application/problem+json"):
        problem = reply.json()
        errors = tuple((one["pointer"], one["detail"]) for one in problem.get("errors", ()))
        code, detail, retryable = (problem[name] for name in ("code", "detail", "retryable"))
        return ApiError(reply.status_code, code, detail, retryable, errors)
    # The query holds the signature, which must not reach a log.
    url = reply.url.copy_with(query=None)
    return ClientError(f"{reply.request.method} {url}: {reply.status_code}")


def _fields(job: JobFields) -> dict[str, Any]:
    if isinstance(job, JobRequest):
        return job.model_dump(mode="json", exclude_none=True)
    return dict(job)


class _Watch:
    """A job as its event stream reports the job, through any number of connections."""

    def __init__(self, job_id: str) -> None:
        self._url = f"/api/jobs/{job_id}/events"
        self._job: JobView | None = None
        self._seq: int | None = None
        self._tries, self._delay = 0, 0.0

    @property
    def is_over(self) -> bool:
        return self._job is not None and self._job.status.is_terminal

    def request(self) -> Request:
        """Returns the request of the next connection, which begins after the last event."""
        self._rest, self._frame = b"", dict[str, str]()
        delay, self._delay = self._delay, RETRY_SECONDS[0]
        params = {} if self._seq is None else {"after": self._seq}
        return Request("GET", self._url, params=params, delay=delay)

    def failed(self, answer: Answer) -> None:
        """Plans the next connection after an answer that is no stream, or raises the error."""
        self._delay = _delay(self._tries, answer)
        self._tries += 1

    def read(self, piece: bytes) -> Iterator[JobView]:
        """Yields the job after each frame that ends in this piece of the stream.

        Only line feeds end a line: the JSON in a frame may contain other line ends.
        """
        self._tries = 0
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            name, _, value = line.removesuffix(b"\r").decode().partition(": ")
            if name:
                self._frame[name] = value
            elif not value:
                yield from self._apply(self._frame)
                self._frame = {}

    def _apply(self, frame: dict[str, str]) -> Iterator[JobView]:
        match frame.get("event"):
            case "snapshot":
                snapshot = Snapshot.model_validate_json(frame["data"])
                self._job, self._seq = snapshot.job, snapshot.seq
                yield self._job
            case "update" if self._job is not None:
                event = EventView.model_validate_json(frame["data"])
                self._job, self._seq = _changed(self._job, event), event.seq
                yield self._job


def _changed(job: JobView, event: EventView) -> JobView:
    names = event.changes.model_fields_set
    changes: dict[str, Any] = {name: getattr(event.changes, name) for name in names}
    if changes.get("status") is JobStatus.COMPLETE:
        changes["urls"] = job.urls.model_copy(update={"output": f"{job.urls.self}/output"})
    return job.model_copy(update=changes)


def _is_stream(reply: httpx.Response) -> bool:
    content_type = reply.headers.get("content-type", "")
    return reply.status_code == httpx.codes.OK and content_type.startswith("text/event-stream")


# ── the clients ─────────────────────────────────────────────────────────────────────────────────


class _Base:
    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._key = {"Authorization": f"Bearer {key}"} if key else {}

    def _options(self, request: Request) -> dict[str, Any]:
        """Returns what httpx takes, the same for both clients. Only the broker receives the key."""
        to_broker = request.url.startswith("/")
        return {
            "method": request.method,
            "url": self._url + request.url if to_broker else request.url,
            "headers": {**(self._key if to_broker else {}), **request.headers},
            "params": dict(request.params) or None,
            "json": request.json,
        }


def _blocking(flow: Callable[P, Flow[T]]) -> Callable[Concatenate["Client", P], T]:
    """Makes a flow a method of Client."""

    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(flow(*args, **kwargs))

    method.__doc__ = flow.__doc__
    return method


class Client(_Base):
    """The blocking client.

    Raises:
        ApiError: the broker refuses a request.
        ClientError: the bucket refuses a request, or an answer makes no sense.
        httpx.TransportError: the broker or the bucket cannot be reached.
    """

    submit = _blocking(_submit)
    quote = _blocking(_quote)
    get = _blocking(_get)
    jobs = _blocking(_jobs)
    cancel = _blocking(_cancel)
    retry = _blocking(_retry)
    upload = _blocking(_upload)
    download = _blocking(_download)

    def __init__(self, url: str, key: str, *, transport: httpx.BaseTransport | None = None) -> None:
        super().__init__(url, key)
        self._http = httpx.Client(timeout=TIMEOUT, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def watch(self, job_id: str) -> Iterator[JobView]:
        """Yields a job now and after each change until its end, through any broken connection."""
        watch = _Watch(job_id)
        while not watch.is_over:
            try:
                with self._open(watch.request()) as reply:
                    if _is_stream(reply):
                        for piece in reply.iter_bytes():
                            yield from watch.read(piece)
                    else:
                        reply.read()
                        watch.failed(reply)
            except httpx.TransportError as error:
                watch.failed(error)

    def _run(self, flow: Flow[T]) -> T:
        try:
            request = next(flow)
            while True:
                request = flow.send(self._exchange(request))
        except StopIteration as end:
            return cast(T, end.value)

    def _exchange(self, request: Request) -> Answer:
        try:
            with self._open(request) as reply:
                if request.into is None or reply.is_error:
                    reply.read()
                else:
                    request.into.begin()
                    for piece in reply.iter_bytes(PIECE_BYTES):
                        request.into.write(piece)
                return reply
        except httpx.TransportError as error:
            return error

    def _open(self, request: Request) -> AbstractContextManager[httpx.Response]:
        time.sleep(request.delay)
        return self._http.stream(content=request.body, **self._options(request))


def _awaited(
    flow: Callable[P, Flow[T]],
) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, T]]:
    """Makes a flow a method of AsyncClient."""

    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(flow(*args, **kwargs))

    method.__doc__ = flow.__doc__
    return method


class AsyncClient(_Base):
    """The client for asyncio, with the methods and errors of Client."""

    submit = _awaited(_submit)
    quote = _awaited(_quote)
    get = _awaited(_get)
    jobs = _awaited(_jobs)
    cancel = _awaited(_cancel)
    retry = _awaited(_retry)
    upload = _awaited(_upload)
    download = _awaited(_download)

    def __init__(
        self, url: str, key: str, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        super().__init__(url, key)
        self._http = httpx.AsyncClient(timeout=TIMEOUT, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def watch(self, job_id: str) -> AsyncIterator[JobView]:
        """Yields a job now and after each change until its end, through any broken connection."""
        watch = _Watch(job_id)
        while not watch.is_over:
            try:
                async with await self._open(watch.request()) as reply:
                    if _is_stream(reply):
                        async for piece in reply.aiter_bytes():
                            for job in watch.read(piece):
                                yield job
                    else:
                        await reply.aread()
                        watch.failed(reply)
            except httpx.TransportError as error:
                watch.failed(error)

    async def _run(self, flow: Flow[T]) -> T:
        try:
            request = next(flow)
            while True:
                request = flow.send(await self._exchange(request))
        except StopIteration as end:
            return cast(T, end.value)

    async def _exchange(self, request: Request) -> Answer:
        try:
            async with await self._open(request) as reply:
                if request.into is None or reply.is_error:
                    await reply.aread()
                else:
                    request.into.begin()
                    async for piece in reply.aiter_bytes(PIECE_BYTES):
                        await asyncio.to_thread(request.into.write, piece)
                return reply
        except httpx.TransportError as error:
            return error

    async def _open(self, request: Request) -> AbstractAsyncContextManager[httpx.Response]:
        await asyncio.sleep(request.delay)
        body = None if request.body is None else aiter(request.body)
        return self._http.stream(content=body, **self._options(request))
