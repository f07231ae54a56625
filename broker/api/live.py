"""Live updates of a job: the same frames with the same `seq` over server-sent events and WebSocket.

A client resumes after the last `seq` that it has. A stream ends when its key is revoked or its
token expires.
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

#: A close code of the private range, and two of RFC 6455's registry.
NOT_FOUND = 4404
NO_LONGER_ALLOWED, TRY_AGAIN_LATER = 1008, 1013
#: How often the key or token of an open stream is checked.
RECHECK_SECONDS = 60.0
#: How long a WebSocket stays open after the last frame.
LINGER_SECONDS = 0.5
#: How long the export editor's socket waits for its job, which the editor submits later.
EXPECTED_SECONDS = 300.0


class WatchQuery(BaseModel):
    """The query of both: `after` is the last `seq` that the client has; 0 for all events."""

    model_config = ConfigDict(extra="ignore")

    after: int | None = Field(None, ge=0, le=2**31)


class ClientMessage(BaseModel):
    """What a WebSocket client may send, beside the bare word `ping`."""

    type: Any = None
    resume_after: int | None = Field(None, ge=0, le=2**31)


async def events(request: Request) -> Response:
    """Watch a job by server-sent events until it has ended.

    The first frame is a `snapshot` of the whole job; an `update` follows for each event. The `id`
    of a frame is its `seq`, so a browser that lost the connection resumes by itself
    (`Last-Event-ID`) and misses nothing. `?after=0` starts with the first event. A comment every
    15 s keeps the connection open. After the end, the answer is 204, on which an EventSource
    stops. Authenticate by `?ticket=` where the client cannot send headers.
    """
    service, user = requests.service(request), requests.user(request)
    job_id = request.path_params["job_id"]
    after = requests.query(request, WatchQuery).after
    last = request.headers.get("last-event-id", "")
    if last.isascii() and last.isdecimal() and len(last) < 10:
        after = int(last)
    # Only a client that has all events needs the job here: it may have ended just now.
    if after == await service.version(user, job_id):
        job = await service.job(user, job_id)
        if job.status.is_terminal and job.version == after:
            return Response(status_code=204)
    # The stream would never end.
    if request.method == "HEAD":
        return Response(media_type="text/event-stream")
    return EventSourceResponse(
        _sse(request, service.watch(user, job_id, after)),
        headers={"Cache-Control": "no-cache"},
        sep="\n",
    )


async def _sse(
    request: Request, seen: AsyncGenerator[Job | Event]
) -> AsyncIterator[ServerSentEvent]:
    # The jitter spreads the clients that reconnect after a restart of the broker.
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
    """Yields frames until there are no more, or until the caller's access lapses."""
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
    """Runs a task that ends once the caller's access lapses."""
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
        except SQLAlchemyError as error:
            # Without the database, access does not lapse.
            log.warning("recheck_failed", error=str(error))


async def socket(websocket: WebSocket) -> None:
    """Sends the frames of `events` as JSON, each with its name as `event`.

    `?after=` resumes. So does a message `{"resume_after": seq}`: the frames after it follow
    `{"event": "resumed", "seq"}`. `ping` is answered with `pong`. The broker closes with 1000 after
    the job's end, with 1008 once the caller's access lapses, and with 1013 after more messages than
    the request limit allows.
    """
    service, user = requests.service(websocket), requests.user(websocket)
    job_id = websocket.path_params["job_id"]
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
            sending = tasks.create_task(_send(websocket, service, user, job_id, after))
            resuming = tasks.create_task(resumed.get())
            while not listening.done():
                # After the last frame, a client that has just connected may still resume elsewhere.
                over = sending.done()
                await asyncio.wait(
                    {resuming, listening} if over else {sending, resuming, listening},
                    timeout=LINGER_SECONDS if over else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if resuming.done():
                    sending.cancel()
                    await asyncio.wait({sending})
                    after = resuming.result()
                    again = _send(websocket, service, user, job_id, after, resumed=True)
                    sending = tasks.create_task(again)
                    resuming = tasks.create_task(resumed.get())
                elif over:
                    break
            code = listening.result() if listening.done() else 1000
            for task in (listening, sending, resuming):
                task.cancel()
        await _close(websocket, code)
    except (NotFound, DataError):
        await _close(websocket, NOT_FOUND)


async def _send(
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
    except WebSocketDisconnect:
        # `_listen` ends too.
        return


async def _attend(websocket: WebSocket, resumed: asyncio.Queue[int] | None = None) -> int:
    """Reads until the client disconnects, exceeds its limit, or loses access.

    Returns:
        The code to close with.
    """
    listening = asyncio.ensure_future(_listen(websocket, resumed))
    with _lapse(websocket) as lapsed:
        try:
            await asyncio.wait({listening, lapsed}, return_when=asyncio.FIRST_COMPLETED)
            return listening.result() if listening.done() else NO_LONGER_ALLOWED
        finally:
            listening.cancel()


async def _listen(websocket: WebSocket, resumed: asyncio.Queue[int] | None) -> int:
    """Reads messages until the client disconnects; each counts as a request."""
    metrics: Metrics = websocket.state.metrics
    limit: RequestLimit = websocket.state.limit
    try:
        with metrics.stream("websocket"):
            while True:
                text = await websocket.receive_text()
                left, _ = limit.take(requests.user(websocket))
                if left < 0:
                    return TRY_AGAIN_LATER
                await _answer(websocket, text, resumed)
    # Starlette raises KeyError for bytes instead of text.
    except (WebSocketDisconnect, KeyError):
        return 1000


async def _answer(websocket: WebSocket, text: str, resumed: asyncio.Queue[int] | None) -> None:
    if text == "ping":
        await websocket.send_text("pong")
        return
    try:
        message = ClientMessage.model_validate_json(text)
    except ValidationError:
        return
    if message.type == "ping":
        await websocket.send_text('{"type":"pong"}')
    elif resumed is not None and message.resume_after is not None:
        resumed.put_nowait(message.resume_after)


async def export_socket(websocket: WebSocket) -> None:
    """Sends the export editor's messages; the editor may connect before it submits the job."""
    service, user = requests.service(websocket), requests.user(websocket)
    job_id = as_job_id(user, websocket.path_params["export_id"])
    await websocket.accept()
    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(_attend(websocket))
        sending = tasks.create_task(_send_export(websocket, service, user, job_id))
        await asyncio.wait({listening, sending}, return_when=asyncio.FIRST_COMPLETED)
        code = listening.result() if listening.done() else 1000
        for task in (listening, sending):
            task.cancel()
    await _close(websocket, code)


async def _send_export(websocket: WebSocket, service: JobService, user: str, job_id: str) -> None:
    try:
        async with asyncio.timeout(EXPECTED_SECONDS):
            await service.expected(user, job_id)
        async with aclosing(service.watch(user, job_id)) as frames:
            async for _ in frames:
                job = await service.job(user, job_id)
                message = ExportProgress.of(requests.view(websocket, job))
                await websocket.send_text(message.model_dump_json(by_alias=True))
                if job.status.is_terminal:
                    return
    except (WebSocketDisconnect, TimeoutError):
        return


async def _close(websocket: WebSocket, code: int) -> None:
    try:
        await websocket.close(code)
    except (RuntimeError, WebSocketDisconnect):
        # The client has closed already.
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
