"""A client of the broker, sync and async, with the schemas' own types: `from broker.client import Client, AsyncClient`.

    with Client(url, key) as reelbroker:
        key = reelbroker.upload(Path("clip.mp4"))
        job = reelbroker.submit({"type": "framing", "input_key": key})
        for job in reelbroker.watch(job.job_id):
            print(job.progress, job.message)
        reelbroker.download(job, Path("out.mp4"))

What is asked and what an answer means is said once, in flows that do no I/O: generators that yield a request and are sent its answer.
The two clients only carry them out. Every request may be sent twice (a submit carries a key that was drawn for it), so what goes
wrong on the way is tried again.
"""

import asyncio
import hashlib
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from schemas.jobs import EventView, JobList, JobRequest, JobStatus, JobView, Quote, Snapshot
from schemas.uploads import Uploaded, UploadTicket

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)
Told = Callable[[int], None]
#: Waits between tries (seconds); `Retry-After` counts for more.
AGAIN_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
PIECE_BYTES = 1 << 18
_now = time.monotonic
TRIED_AGAIN = {408, 425, 429, 500, 502, 503, 504}
CONTENT_TYPES = {".mov": "video/quicktime", ".webm": "video/webm", ".mkv": "video/x-matroska"}


class ClientError(Exception):
    """The broker, or the bucket, did not do what was asked."""


class ApiError(ClientError):
    """The broker's problem document.

    Args:
        errors: (JSON pointer, sentence) of each wrong field.
    """

    def __init__(
        self, status: int, code: str, detail: str, *, retryable: bool = False, errors: tuple[tuple[str, str], ...] = ()
    ) -> None:  # fmt: skip
        fields = "".join(f"\n  {pointer or '/'}: {sentence}" for pointer, sentence in errors)
        super().__init__(f"{detail}{fields}" if errors else detail)
        self.status, self.code, self.detail = status, code, detail
        self.retryable, self.errors = retryable, errors


@dataclass(frozen=True)
class Slice:
    """A part of a file, as the body of a request."""

    path: Path
    offset: int
    length: int
    told: Told | None = None

    def __iter__(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            left = self.length
            while left and (piece := file.read(min(PIECE_BYTES, left))):
                left -= len(piece)
                yield piece
                if self.told is not None:
                    self.told(len(piece))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = iter(self)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece


@dataclass(frozen=True)
class Ask:
    """One request. `url` is a path of the broker's, or an address in the bucket, which is not told the key."""

    method: str
    url: str
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Slice | None = None
    #: An answer that is no error here.
    fine: int | None = None
    #: Where the answer's body goes instead of into memory.
    into: "Download | None" = None


Flow = Generator[Ask, httpx.Response, T]


class Download:
    """A file that is being fetched: complete under its name, or not there at all."""

    def __init__(self, path: Path, told: Told | None = None) -> None:
        self.path, self._told = path, told
        self._partial = path.with_name(path.name + ".part")
        self._hash = hashlib.sha256()

    def begin(self) -> None:
        self._hash = hashlib.sha256()
        self._partial.write_bytes(b"")

    def write(self, piece: bytes) -> None:
        with self._partial.open("ab") as file:
            file.write(piece)
        self._hash.update(piece)
        if self._told is not None:
            self._told(len(piece))

    def finish(self, sha256: str | None) -> Path:
        """Gives it its name; raises ClientError where it is not what the job tells of."""
        if sha256 is not None and self._hash.hexdigest() != sha256:
            self._partial.unlink()
            raise ClientError(f"{self.path} did not arrive whole: its SHA-256 is not the job's")
        self._partial.rename(self.path)
        return self.path


# ── flows ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _body(job: JobRequest | Mapping[str, Any]) -> dict[str, Any]:
    return (
        job.model_dump(mode="json", exclude_none=True) if isinstance(job, JobRequest) else dict(job)
    )


def _submit(job: JobRequest | Mapping[str, Any], key: str | None) -> Flow[JobView]:
    headers = {"Idempotency-Key": key or str(uuid.uuid4())}
    return _read(JobView, (yield Ask("POST", "/api/jobs", json=_body(job), headers=headers)))


def _quote(job: JobRequest | Mapping[str, Any], source_seconds: float | None) -> Flow[Quote]:
    body = _body(job)
    if source_seconds is not None:
        body["source_seconds"] = source_seconds
    return _read(Quote, (yield Ask("POST", "/api/jobs/quote", json=body)))


def _get(job_id: str) -> Flow[JobView]:
    return _read(JobView, (yield Ask("GET", f"/api/jobs/{job_id}")))


def _post(job_id: str, verb: str) -> Flow[JobView]:
    return _read(JobView, (yield Ask("POST", f"/api/jobs/{job_id}/{verb}")))


def _page(query: Mapping[str, Any]) -> Flow[JobList]:
    given = {name: value for name, value in query.items() if value is not None}
    return _read(JobList, (yield Ask("GET", "/api/jobs", params=given)))


def _upload(path: Path, name: str | None, told: Told | None) -> Flow[str]:
    """Puts a file into the bucket, in parts where it is large; returns its key."""
    size = path.stat().st_size
    content_type = CONTENT_TYPES.get(path.suffix.lower(), "video/mp4")
    body = {"filename": name or path.name, "content_type": content_type} | (
        {"bytes": size} if size else {}
    )
    ticket = _read(UploadTicket, (yield Ask("POST", "/api/videos/upload-url", json=body)))
    if ticket.upload_url is not None:
        headers = {**ticket.headers, "Content-Length": str(size)}
        # 412: it is there, from a try of which the answer was lost. `complete` checks it.
        there, file = httpx.codes.PRECONDITION_FAILED, Slice(path, 0, size, told)
        yield Ask("PUT", ticket.upload_url, headers=headers, body=file, fine=there)
    while ticket.parts:
        fresh_until = _now() + ticket.expires_in_seconds / 2
        for part in ticket.parts:
            if _now() > fresh_until and part is not ticket.parts[0]:
                break  # on a slow line the URLs are too old before all are used: ask for new ones
            headers = {"Content-Length": str(part.bytes)}
            yield Ask(
                "PUT",
                part.upload_url,
                headers=headers,
                body=Slice(path, part.offset, part.bytes, told),
            )
        ticket = _read(UploadTicket, (yield Ask("GET", f"/api/videos/uploads/{ticket.upload_id}")))
    done = Ask("POST", f"/api/videos/uploads/{ticket.upload_id}/complete")
    return _read(Uploaded, (yield done)).video_key


def _download(job: JobView, path: Path, told: Told | None) -> Flow[Path]:
    if job.result is None or job.urls.output is None:
        raise ClientError(f"the job has no output: it is {job.status}")
    where = (yield Ask("GET", f"/api/jobs/{job.job_id}/output")).headers["location"]
    file = Download(path, told)
    yield Ask("GET", where, into=file)
    return file.finish(job.result.sha256)


class _Watched:
    """A job as an event stream tells of it; `after` is how far it is known."""

    def __init__(self, job_id: str) -> None:
        self._url = f"/api/jobs/{job_id}/events"
        self._job: JobView | None = None
        self._after: int | None = None
        self._left = b""
        self._frame: dict[str, str] = {}

    @property
    def is_over(self) -> bool:
        return self._job is not None and self._job.status.is_terminal

    def begin(self) -> Ask:
        """Returns what to ask for on a new line; what was half told on the last one is told again."""
        self._left, self._frame = b"", {}
        return Ask("GET", self._url, params={} if self._after is None else {"after": self._after})

    def read(self, piece: bytes) -> Iterator[JobView]:
        """Yields the job after each frame that ends in this piece of the stream.

        Lines end at line feeds alone: a caption may have other line ends in it, raw within a frame's JSON.
        """
        *lines, self._left = (self._left + piece).split(b"\n")
        for line in lines:
            name, _, value = line.removesuffix(b"\r").decode().partition(": ")
            if name:
                self._frame[name] = value
            elif not value and (job := self._framed()) is not None:
                yield job

    def _framed(self) -> JobView | None:
        frame, self._frame = self._frame, {}
        match frame.get("event"):
            case "snapshot":
                shown = Snapshot.model_validate_json(frame["data"])
                self._job, self._after = shown.job, shown.seq
                return self._job
            case "update" if self._job is not None:
                self._job, self._after = _changed(
                    self._job, EventView.model_validate_json(frame["data"])
                )
                return self._job
        return None


def _changed(job: JobView, event: EventView) -> tuple[JobView, int]:
    changes: dict[str, Any] = {
        name: getattr(event.changes, name) for name in event.changes.model_fields_set
    }
    if changes.get("status") is JobStatus.COMPLETE:
        changes["urls"] = job.urls.model_copy(update={"output": f"{job.urls.self}/output"})
    return job.model_copy(update=changes), event.seq


def _is_stream(reply: httpx.Response) -> bool:
    return reply.status_code == httpx.codes.OK and reply.headers.get("content-type", "").startswith(
        "text/event-stream"
    )


def _read(model: type[Model], reply: httpx.Response) -> Model:
    try:
        return model.model_validate_json(reply.content)
    except ValidationError as error:
        raise ClientError(
            f"{reply.url}: {reply.status_code}, and not what a broker answers"
        ) from error


def _failure(reply: httpx.Response | None) -> ClientError:
    """Returns what an answer that is an error says."""
    assert reply is not None  # noqa: S101  # without one there was an exception
    if reply.headers.get("content-type", "").startswith("application/problem+json"):
        told = reply.json()
        errors = tuple((one["pointer"], one["detail"]) for one in told.get("errors", ()))
        return ApiError(reply.status_code, told["code"], told["detail"], retryable=told["retryable"], errors=errors)  # fmt: skip
    where = reply.url.copy_with(query=None)  # the signature stays out of it
    return ClientError(f"{reply.request.method} {where}: {reply.status_code}")


def _pause(tried: int, reply: httpx.Response | None) -> float | None:
    """Returns how long to wait before the next try; None where there is none."""
    if tried >= len(AGAIN_SECONDS) or (reply is not None and reply.status_code not in TRIED_AGAIN):
        return None
    told = reply.headers.get("retry-after", "") if reply is not None else ""
    return max(AGAIN_SECONDS[tried], float(told) if told.isdecimal() else 0.0)


def _patience(tried: int, error: "httpx.TransportError | _Refused") -> float:
    """Returns how long to wait after a stream that broke or was refused; raises what it is where there is no hope."""
    reply = error.reply if isinstance(error, _Refused) else None
    if (pause := _pause(tried, reply)) is None:
        raise error if reply is None else _failure(reply)
    return pause


# ── the clients ─────────────────────────────────────────────────────────────────────────────────────────────────


class _Base:
    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._key = {"Authorization": f"Bearer {key}"} if key else {}

    def _options(self, ask: Ask) -> dict[str, Any]:
        ours = ask.url.startswith("/")
        return {
            "url": self._url + ask.url if ours else ask.url,
            "headers": {**(self._key if ours else {}), **ask.headers},
            "params": dict(ask.params) or None,
            "json": ask.json,
        }


class Client(_Base):
    """Raises ApiError where the broker refuses, ClientError and httpx.TransportError where it cannot be reached."""

    def __init__(self, url: str, key: str, *, transport: httpx.BaseTransport | None = None) -> None:
        super().__init__(url, key)
        self._http = httpx.Client(timeout=httpx.Timeout(60.0, connect=10.0), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def submit(self, job: JobRequest | Mapping[str, Any], *, key: str | None = None) -> JobView:
        """Sends a job; once this returns, it is never lost."""
        return self._run(_submit(job, key))

    def quote(
        self, job: JobRequest | Mapping[str, Any], *, source_seconds: float | None = None
    ) -> Quote:
        """Estimates a job."""
        return self._run(_quote(job, source_seconds))

    def get(self, job_id: str) -> JobView:
        """Returns a job as it is."""
        return self._run(_get(job_id))

    def jobs(self, *, limit: int = 50, cursor: str | None = None, **only: Any) -> JobList:
        """Returns a page of jobs, newest first; `status`, `type` and `project_id` narrow it."""
        return self._run(_page({**only, "limit": limit, "cursor": cursor}))

    def cancel(self, job_id: str) -> JobView:
        """Asks for a cancel."""
        return self._run(_post(job_id, "cancel"))

    def retry(self, job_id: str) -> JobView:
        """Sends a failed job again; returns the new one."""
        return self._run(_post(job_id, "retry"))

    def upload(self, path: Path, *, name: str | None = None, told: Told | None = None) -> str:
        """Puts a video into the bucket and returns its key; `told` hears of each piece that has gone."""
        return self._run(_upload(path, name, told))

    def download(self, job: JobView, path: Path, *, told: Told | None = None) -> Path:
        """Fetches a job's output, and checks that it is whole."""
        return self._run(_download(job, path, told))

    def watch(self, job_id: str) -> Iterator[JobView]:
        """Yields a job now, and after each change until its end; a lost line, or a broker that restarts, is waited for."""
        seen, tried = _Watched(job_id), 0
        while not seen.is_over:
            try:
                ask = seen.begin()
                with self._http.stream(ask.method, **self._options(ask)) as reply:
                    if not _is_stream(reply):
                        reply.read()
                        raise _Refused(reply)
                    for piece in reply.iter_bytes():
                        tried = 0
                        yield from seen.read(piece)
                pause = AGAIN_SECONDS[
                    0
                ]  # the stream may end before the job: the broker goes, and comes back
            except (httpx.TransportError, _Refused) as error:
                pause = _patience(tried, error)
            tried += 1
            if not seen.is_over:
                time.sleep(pause)

    def _run(self, flow: Flow[T]) -> T:
        reply: Any = None  # which begins a generator
        try:
            while True:
                ask = flow.send(reply)
                reply = self._send(ask)
        except StopIteration as end:
            result: T = end.value
            return result

    def _send(self, ask: Ask) -> httpx.Response:
        for tried in itertools.count():
            reply: httpx.Response | None = None
            error: Exception | None = None
            try:
                reply = self._once(ask)
            except httpx.TransportError as trouble:
                error = trouble
            if reply is not None and (not reply.is_error or reply.status_code == ask.fine):
                return reply
            if (pause := _pause(tried, reply)) is None:
                raise error or _failure(reply)
            time.sleep(pause)
        raise AssertionError  # it counts for ever

    def _once(self, ask: Ask) -> httpx.Response:
        body = iter(ask.body) if ask.body is not None else None
        with self._http.stream(ask.method, **self._options(ask), content=body) as reply:
            if ask.into is None or reply.is_error:
                reply.read()
                return reply
            ask.into.begin()
            for piece in reply.iter_bytes(PIECE_BYTES):
                ask.into.write(piece)
            return reply


class AsyncClient(_Base):
    """As Client, for asyncio."""

    def __init__(
        self, url: str, key: str, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        super().__init__(url, key)
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(60.0, connect=10.0), transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def submit(
        self, job: JobRequest | Mapping[str, Any], *, key: str | None = None
    ) -> JobView:
        """Sends a job; once this returns, it is never lost."""
        return await self._run(_submit(job, key))

    async def quote(
        self, job: JobRequest | Mapping[str, Any], *, source_seconds: float | None = None
    ) -> Quote:
        """Estimates a job."""
        return await self._run(_quote(job, source_seconds))

    async def get(self, job_id: str) -> JobView:
        """Returns a job as it is."""
        return await self._run(_get(job_id))

    async def jobs(self, *, limit: int = 50, cursor: str | None = None, **only: Any) -> JobList:
        """Returns a page of jobs, newest first; `status`, `type` and `project_id` narrow it."""
        return await self._run(_page({**only, "limit": limit, "cursor": cursor}))

    async def cancel(self, job_id: str) -> JobView:
        """Asks for a cancel."""
        return await self._run(_post(job_id, "cancel"))

    async def retry(self, job_id: str) -> JobView:
        """Sends a failed job again; returns the new one."""
        return await self._run(_post(job_id, "retry"))

    async def upload(self, path: Path, *, name: str | None = None, told: Told | None = None) -> str:
        """Puts a video into the bucket and returns its key; `told` hears of each piece that has gone."""
        return await self._run(_upload(path, name, told))

    async def download(self, job: JobView, path: Path, *, told: Told | None = None) -> Path:
        """Fetches a job's output, and checks that it is whole."""
        return await self._run(_download(job, path, told))

    async def watch(self, job_id: str) -> AsyncIterator[JobView]:
        """Yields a job now, and after each change until its end; a lost line, or a broker that restarts, is waited for."""
        seen, tried = _Watched(job_id), 0
        while not seen.is_over:
            try:
                ask = seen.begin()
                async with self._http.stream(ask.method, **self._options(ask)) as reply:
                    if not _is_stream(reply):
                        await reply.aread()
                        raise _Refused(reply)
                    async for piece in reply.aiter_bytes():
                        tried = 0
                        for job in seen.read(piece):
                            yield job
                pause = AGAIN_SECONDS[
                    0
                ]  # the stream may end before the job: the broker goes, and comes back
            except (httpx.TransportError, _Refused) as error:
                pause = _patience(tried, error)
            tried += 1
            if not seen.is_over:
                await asyncio.sleep(pause)

    async def _run(self, flow: Flow[T]) -> T:
        reply: Any = None  # which begins a generator
        try:
            while True:
                ask = flow.send(reply)
                reply = await self._send(ask)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _send(self, ask: Ask) -> httpx.Response:
        for tried in itertools.count():
            reply: httpx.Response | None = None
            error: Exception | None = None
            try:
                reply = await self._once(ask)
            except httpx.TransportError as trouble:
                error = trouble
            if reply is not None and (not reply.is_error or reply.status_code == ask.fine):
                return reply
            if (pause := _pause(tried, reply)) is None:
                raise error or _failure(reply)
            await asyncio.sleep(pause)
        raise AssertionError  # it counts for ever

    async def _once(self, ask: Ask) -> httpx.Response:
        body = aiter(ask.body) if ask.body is not None else None
        async with self._http.stream(ask.method, **self._options(ask), content=body) as reply:
            if ask.into is None or reply.is_error:
                await reply.aread()
                return reply
            ask.into.begin()
            async for piece in reply.aiter_bytes(PIECE_BYTES):
                await asyncio.to_thread(ask.into.write, piece)
            return reply


class _Refused(Exception):  # an answer on its way to becoming an ApiError
    def __init__(self, reply: httpx.Response) -> None:
        super().__init__(reply.status_code)
        self.reply = reply
