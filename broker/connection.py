"""HTTP/1.1 connections of uvicorn, with bounds on what a client may send without end and on how long it may take.

uvicorn's protocol on httptools keeps all that comes before the end of the headers, and waits for it for ever.
"""

import asyncio
import enum
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

#: Of a request's line and headers together, and of anything else that is no body: trailers, what stands between chunks.
MAX_HEADER_BYTES = 65_536
#: How long headers may take to arrive, and the rest of a body that was answered before its end.
HEADER_SECONDS = 10.0


class Reading(enum.Enum):
    """What of a request comes next."""

    NOTHING = "nothing"  #: a new one, whenever the client likes
    HEADERS = "headers"
    BODY = "body"


class TooLarge(Exception):
    """Headers or trailers are over the limit."""


class Connection(HttpToolsProtocol):
    """One client's connection: headers over the limit are answered with 431, late ones with 408, and one too many with 503."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reading = Reading.NOTHING
        self._header_bytes = 0
        # What has come since the parser last found anything: it keeps an unfinished header to itself.
        self._unfinished_bytes = 0
        self._refusal = 400
        self._awaited: tuple[Reading, bool] | None = None
        # When to hang up. The timer is set once and looks again if that moment has moved: setting one for
        # each request would cost more than the request's headers.
        self._late_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_websocket = False

    # ── from the transport ──────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency:
            self._refuse(503)
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unfinished_bytes += len(data)
        super().data_received(data)
        if self._is_websocket or self.transport.is_closing():
            return
        if self._unfinished_bytes > MAX_HEADER_BYTES:
            self._refuse(431)
        else:
            self._watch()

    # ── from the parser ─────────────────────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._found(Reading.HEADERS)
        self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        # A trailer is counted, and means nothing to us.
        if self._reading is Reading.HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._found(Reading.BODY)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._found(Reading.BODY)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._found(Reading.NOTHING)
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._is_websocket = True
        self._unset_timer()
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal)

    # ── from the application ────────────────────────────────────────────────────────────────────────────────────

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    # ── small steps ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _is_answering(self) -> bool:
        return bool(self.cycle) and not self.cycle.response_complete

    @property
    def _has_answered(self) -> bool:
        """Whether anything was sent in answer to the request that is being read, or is being sent to one before it."""
        begun = bool(self.cycle) and self.cycle.response_started
        return begun and (self._is_answering or self._reading is Reading.BODY)

    def _found(self, reading: Reading) -> None:
        self._reading = reading
        self._unfinished_bytes = 0

    def _count(self, size: int) -> None:
        self._unfinished_bytes = 0
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            self._refusal = 431
            raise TooLarge

    def _watch(self) -> None:
        """Sets the deadline anew when it is another thing that the client is to send; while it is to send nothing, there is none."""
        awaited = (self._reading, self._is_answering)
        if awaited == self._awaited:
            return
        self._awaited = awaited
        self._late_at = None
        if self._reading is Reading.HEADERS or not self._is_answering:
            is_idle = self._reading is Reading.NOTHING and bool(self.cycle)
            self._late_at = self.loop.time() + (
                self.timeout_keep_alive if is_idle else HEADER_SECONDS
            )
            self._set_timer(self._late_at)

    def _set_timer(self, moment: float) -> None:
        """Has the deadline looked at by that moment; an earlier look sets the next one."""
        if self._timer is None or self._timer.when() > moment:
            self._unset_timer()
            self._timer = self.loop.call_at(moment, self._look_at_deadline)

    def _look_at_deadline(self) -> None:
        self._timer = None
        if self._late_at is None:
            return
        if self._late_at > self.loop.time():
            self._set_timer(self._late_at)
        elif self.flow.read_paused:
            # We stopped reading ourselves: until answers to earlier requests are sent, no more are taken.
            self._set_timer(self.loop.time() + HEADER_SECONDS)
        elif self._reading is Reading.HEADERS:
            self._refuse(408)
        else:
            self.transport.close()

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int) -> None:
        """Answers and hangs up; hangs up only, where another answer has begun or this request has had one."""
        if not self.pipeline and not self._has_answered:
            self.transport.write(
                STATUS_LINE[status] + b"content-length: 0\r\nconnection: close\r\n\r\n"
            )
        self.transport.close()
