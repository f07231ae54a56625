"""A job as it happens: the same frames over server-sent events and over a WebSocket, with the same `seq`, resumable.

A stream ends when what opened it lets nobody in any more: a key that was revoked, a token that has expired.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.exc import DataError, SQLAlchemyError
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from broker.api import requests
from broker.api.compat.exports import as_job_id
from broker.engine.service import JobService
from broker.errors import NotFound
from broker.jobs.model import Event, Job
from broker.jobs.views import event_view
from broker.ops.metrics import Metrics
from broker.services.rate_limit import RequestLimit
from broker.store.keys import Credentials
from schemas.compat.aliases import ExportProgress
from schemas.jobs import EventView, Snapshot

log = structlog.get_logger(__name__)

#: Close codes of our own, in the range that is free for it; and two of RFC 6455's registry.
NOT_FOUND = 4404
NO_LONGER_ALLOWED, TRY_AGAIN_LATER = 1008, 1013
#: How often an open stream is asked whether its key or token is still good.
RECHECK_SECONDS = 60.0
#: How long a WebSocket stays open behind the last frame.
LINGER_SECONDS = 0.5
#: How long the export editor's socket waits for its job, which it names before sending it.
EXPECTED_SECONDS = 300.0


class WatchQuery(BaseModel):
    """The query of both: `after` is the last `seq` that was seen, 0 for all from the start."""

    model_config = ConfigDict(extra="ignore")

    after: int | None = Field(None, ge=0, le=2**31)


class Said(BaseModel):
    """What a WebSocket client may send, beside the bare word `ping`."""

    type: Any = None
    resume_after: int | None = Field(None, ge=0, le=2**31)


async def events(request: Request) -> Response:
    """Watch a job: server-sent events until it has ended; then 204, on which an EventSource stays away.

    First comes a `snapshot` with the whole job; then an `update` for each event. The `id` of both is the `seq` up to which all is
    known, so a browser that lost the connection resumes by itself (`Last-Event-ID`), and misses nothing. `?after=0` starts with the
    first event. A comment every 15 s keeps the line open. Where headers cannot be sent, authenticate by `?ticket=`.
    """
    service, user, job_id = (
        requests.service(request),
        requests.user(request),
        request.path_params["job_id"],
    )
    after = requests.query(request, WatchQuery).after
    last = request.headers.get("last-event-id", "")
    if last.isascii() and last.isdecimal() and len(last) < 10:
        after = int(last)
    # The whole job is read where it is told, and here only for a client that has seen all there is.
    if after == await service.version(user, job_id):
        job = await service.job(user, job_id)
        if (
            job.status.is_terminal and job.version == after
        ):  # it may have ended just now, which is not told yet
            return Response(status_code=204)
    if request.method == "HEAD":  # it would never end
        return Response(media_type="text/event-stream")
    return EventSourceResponse(
        _sse(request, service.watch(user, job_id, after)),
        headers={"Cache-Control": "no-cache"},
        sep="\n",
    )


async def _sse(
    request: Request, seen: AsyncGenerator[Job | Event]
) -> AsyncIterator[ServerSentEvent]:
    # Jittered, so that after a restart of the broker not all come back in the same moment.
    yield ServerSentEvent(retry=random.randint(2000, 4000), comment="hello", sep="\n")  # noqa: S311
    metrics: Metrics = request.state.metrics
    with metrics.stream("sse"):
        async with aclosing(_while_allowed(request, seen)) as allowed:
            async for one in allowed:
                frame = _frame(request, one)
                yield ServerSentEvent(
                    data=_data(frame), event=_name(frame), id=str(frame.seq), sep="\n"
                )


async def _while_allowed(
    request: Request, frames: AsyncGenerator[Job | Event]
) -> AsyncGenerator[Job | Event]:
    """Yields frames until there are no more, or until nobody is let in any more by what opened the stream."""
    with _lapse(request) as lapsed:
        async with aclosing(frames):
            while not lapsed.done():
                coming = asyncio.ensure_future(anext(frames, None))
                try:
                    await asyncio.wait({coming, lapsed}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not coming.done():
                        coming.cancel()
                        await asyncio.wait({coming})
                if coming.cancelled() or (frame := coming.result()) is None:
                    return
                yield frame


@contextmanager
def _lapse(connection: HTTPConnection) -> Iterator[asyncio.Task[None]]:
    """Has a task that ends once nobody is let in any more by what opened this connection."""
    task = asyncio.create_task(_until_lapsed(connection))
    try:
        yield task
    finally:
        task.cancel()


async def _until_lapsed(connection: HTTPConnection) -> None:
    credentials: Credentials = connection.state.credentials
    holds = True
    while holds:
        await asyncio.sleep(RECHECK_SECONDS)
        try:
            holds = await run_in_threadpool(credentials.holds, connection.user.principal)
        except SQLAlchemyError as error:  # the database is away: that takes nobody's key
            log.warning("recheck_failed", error=str(error))


async def socket(websocket: WebSocket) -> None:
    """The same frames as JSON: `{"event": "snapshot", "seq", "job"}`, then `{"event": "update", "seq", "at", "kind", "changes"}`.

    `?after=` resumes, and so does a message `{"resume_after": seq}`: what follows `{"event": "resumed", "seq"}` is what comes after it.
    `ping` is answered with `pong`. Closed with 1000 after the end, with 1008 once the key or token lets nobody in any more, and with
    1013 for more messages than requests are allowed.
    """
    service, user, job_id = (
        requests.service(websocket),
        requests.user(websocket),
        websocket.path_params["job_id"],
    )
    try:
        after = WatchQuery.model_validate(dict(websocket.query_params)).after
    except ValidationError:
        after = None
    await websocket.accept()
    try:
        await service.version(user, job_id)
        async with asyncio.TaskGroup() as tasks:
            resumed: asyncio.Queue[int] = asyncio.Queue()
            listening = tasks.create_task(_attend(websocket, resumed))
            telling = tasks.create_task(_tell(websocket, service, user, job_id, after))
            asking = tasks.create_task(resumed.get())
            while not listening.done():
                # Once all is said, a client that has only just connected may still say from where on it wants it.
                over = telling.done()
                await asyncio.wait(
                    {asking, listening} if over else {telling, asking, listening},
                    timeout=LINGER_SECONDS if over else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if asking.done():  # from there on, whatever was said before
                    telling.cancel()
                    await asyncio.wait({telling})
                    resume = _tell(websocket, service, user, job_id, asking.result(), resumed=True)
                    telling = tasks.create_task(resume)
                    asking = tasks.create_task(resumed.get())
                elif over:
                    break
            code = listening.result() if listening.done() else 1000
            for task in (listening, telling, asking):
                task.cancel()
        await _close(websocket, code)
    except (NotFound, DataError):
        await _close(websocket, NOT_FOUND)


async def _tell(
    websocket: WebSocket,
    service: JobService,
    user: str,
    job_id: str,
    after: int | None,
    *,
    resumed: bool = False,
) -> None:
    try:
        if resumed:
            await websocket.send_text(f'{{"event":"resumed","seq":{after}}}')
        async with aclosing(service.watch(user, job_id, after)) as seen:
            async for one in seen:
                frame = _frame(websocket, one)
                await websocket.send_text(f'{{"event":"{_name(frame)}",{_data(frame)[1:]}')
    except WebSocketDisconnect:  # `_listen` hears of it too
        return


async def _attend(websocket: WebSocket, resumed: asyncio.Queue[int] | None = None) -> int:
    """Listens until the client has gone, has said too much, or is allowed to watch no longer; returns the code to close with."""
    listening = asyncio.ensure_future(_listen(websocket, resumed))
    with _lapse(websocket) as lapsed:
        try:
            await asyncio.wait({listening, lapsed}, return_when=asyncio.FIRST_COMPLETED)
            return listening.result() if listening.done() else NO_LONGER_ALLOWED
        finally:
            listening.cancel()


async def _listen(websocket: WebSocket, resumed: asyncio.Queue[int] | None) -> int:
    """Answers pings until the client has gone, and counts it for as long; each message counts as a request."""
    metrics: Metrics = websocket.state.metrics
    limit: RequestLimit = websocket.state.limit
    try:
        with metrics.stream("websocket"):
            while True:
                said = await websocket.receive_text()
                left, _ = limit.take(requests.user(websocket))
                if left < 0:
                    return TRY_AGAIN_LATER
                await _answer(websocket, said, resumed)
    except (WebSocketDisconnect, KeyError):  # KeyError: bytes instead of text
        return 1000


async def _answer(websocket: WebSocket, said: str, resumed: asyncio.Queue[int] | None) -> None:
    if said == "ping":
        await websocket.send_text("pong")
        return
    try:
        message = Said.model_validate_json(said)
    except ValidationError:  # nothing that we understand
        return
    if message.type == "ping":
        await websocket.send_text('{"type":"pong"}')
    elif resumed is not None and message.resume_after is not None:
        resumed.put_nowait(message.resume_after)


async def export_socket(websocket: WebSocket) -> None:
    """The export editor's own messages, under its own path; it may connect before it has sent the job."""
    service, user = requests.service(websocket), requests.user(websocket)
    job_id = as_job_id(user, websocket.path_params["export_id"])
    await websocket.accept()
    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(_attend(websocket))
        telling = tasks.create_task(_tell_export(websocket, service, user, job_id))
        await asyncio.wait({listening, telling}, return_when=asyncio.FIRST_COMPLETED)
        code = listening.result() if listening.done() else 1000
        for task in (listening, telling):
            task.cancel()
    await _close(websocket, code)


async def _tell_export(websocket: WebSocket, service: JobService, user: str, job_id: str) -> None:
    try:
        async with asyncio.timeout(EXPECTED_SECONDS):
            await service.expected(user, job_id)
        async with aclosing(service.watch(user, job_id)) as frames:
            async for _ in frames:
                job = await service.job(user, job_id)
                told = ExportProgress.of(requests.view(websocket, job))
                await websocket.send_text(told.model_dump_json(by_alias=True))
                if job.status.is_terminal:
                    return
    except (WebSocketDisconnect, TimeoutError):
        return


async def _close(websocket: WebSocket, code: int) -> None:
    try:
        await websocket.close(code)
    except (RuntimeError, WebSocketDisconnect):  # the client was faster
        return


def _name(frame: Snapshot | EventView) -> str:
    return "snapshot" if isinstance(frame, Snapshot) else "update"


def _frame(connection: HTTPConnection, seen: Job | Event) -> Snapshot | EventView:
    """Returns a job or an event of it as clients see it."""
    if isinstance(seen, Event):
        return event_view(seen)
    return Snapshot(seq=seen.version, job=requests.view(connection, seen))


def _data(frame: Snapshot | EventView) -> str:
    return frame.model_dump_json(exclude_unset=isinstance(frame, EventView))
