"""uvicorn's HTTP/1.1 connections, with bounds on the size and time of headers and trailers.

uvicorn's protocol on httptools buffers headers without a limit, and waits for them for ever.
"""

import asyncio
import enum
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

#: Of a request's line and headers together, and of trailers and chunk extensions.
MAX_HEADER_BYTES = 65_536
#: How long headers may take, and the rest of a body after an early answer.
HEADER_SECONDS = 10.0


class Reading(enum.Enum):
    """The part of a request that comes next."""

    NOTHING = "nothing"  #: the client may begin a request at any time
    HEADERS = "headers"
    BODY = "body"


class TooLarge(Exception):
    """Headers or trailers are over the limit."""


class Connection(HttpToolsProtocol):
    """A connection that answers large headers with 431 and late ones with 408.

    One connection over the limit is answered with 503.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reading = Reading.NOTHING
        self._header_bytes = 0
        # The bytes since the parser's last callback: it has none for an unfinished header.
        self._unfinished_bytes = 0
        self._refusal = 400
        self._awaited: tuple[Reading, bool] | None = None
        # When to close. The timer checks this moment and may wait on: a timer for each request
        # would cost more than its headers.
        self._late_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_websocket = False

    # ── from the transport ───────────────────────────────────────────────────────────────────────

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

    # ── from the parser ──────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._found(Reading.HEADERS)
        self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        # A trailer is counted and ignored.
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

    # ── from the application ─────────────────────────────────────────────────────────────────────

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    # ── small steps ──────────────────────────────────────────────────────────────────────────────

    @property
    def _is_answering(self) -> bool:
        return bool(self.cycle) and not self.cycle.response_complete

    @property
    def _has_answered(self) -> bool:
        """Whether an answer to this request, or to an earlier one, has begun."""
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
        """Sets a new deadline where the client must send another part; none while it must not."""
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
        """Checks the deadline at that moment, unless an earlier check is set."""
        if self._timer is None or self._timer.when() > moment:
            self._unset_timer()
            self._timer = self.loop.call_at(moment, self._check_deadline)

    def _check_deadline(self) -> None:
        self._timer = None
        if self._late_at is None:
            return
        if self._late_at > self.loop.time():
            self._set_timer(self._late_at)
        elif self.flow.read_paused:
            # The server has paused reading until earlier answers are sent.
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
        """Answers and closes; only closes where an answer has begun."""
        if not self.pipeline and not self._has_answered:
            self.transport.write(
                STATUS_LINE[status] + b"content-length: 0\r\nconnection: close\r\n\r\n"
            )
        self.transport.close()
