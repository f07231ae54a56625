"""A multipart form (RFC 7578) with one large file, which is passed on as it arrives."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import anyio
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks
from starlette.exceptions import HTTPException
from starlette.requests import Request

from broker.errors import BodyTooLarge, InvalidRequest, TooSlow
from broker.settings import Settings

MAX_FIELDS = 50


class Sink(Protocol):
    """Where the file goes."""

    async def write(self, data: bytes) -> None: ...


async def read_form(request: Request, file_name: str, sink: Sink) -> dict[str, str]:
    """Reads a form: writes the part `file_name` into `sink`, and returns the other fields.

    Raises:
        HTTPException: 415 where the body is no form.
        InvalidRequest: the form is broken.
        BodyTooLarge: the fields are over the body limit; the sink limits the file.
        TooSlow: nothing arrived for too long.
    """
    settings: Settings = request.state.settings
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise HTTPException(415, "Send a multipart/form-data form.")
    form = _Form(file_name, settings.body_limit_bytes)
    try:
        parser = MultipartParser(options[b"boundary"], form.callbacks())
        async for chunk in _chunks(request, settings.body_seconds):
            parser.write(chunk)
            for data in form.taken():
                await sink.write(data)
        parser.finalize()
    except MultipartParseError as error:
        raise InvalidRequest([("", f"this is not a whole form: {error}")]) from error
    if not form.ended:
        raise InvalidRequest([("", "this is not a whole form: it ends too early")])
    try:
        return {name: bytes(value).decode() for name, value in form.fields.items()}
    except UnicodeDecodeError as error:
        raise InvalidRequest([("", "a field is not UTF-8")]) from error


async def _chunks(request: Request, seconds: float) -> AsyncIterator[bytes]:
    """Yields what arrives; raises TooSlow after so many seconds without data."""
    stream = request.stream()
    while True:
        try:
            with anyio.fail_after(seconds):
                chunk = await anext(stream, b"")
        except TimeoutError:
            raise TooSlow(f"Nothing came for {seconds:g} s.") from None
        if not chunk:
            return
        yield chunk


@dataclass
class _Form:
    """Collects what the parser finds."""

    file_name: str
    limit: int
    ended: bool = False
    fields: dict[str, bytearray] = field(default_factory=dict)
    _file: list[bytes] = field(default_factory=list)
    _headers: dict[bytes, bytes] = field(default_factory=dict)
    _header: tuple[bytearray, bytearray] = field(default_factory=lambda: (bytearray(), bytearray()))
    _name: str = ""
    _kept: int = 0

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._begin,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def taken(self) -> list[bytes]:
        """Returns what has arrived of the file since the last call."""
        taken, self._file = self._file, []
        return taken

    def _header_end(self) -> None:
        name, value = self._header
        self._headers[bytes(name).lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def _begin(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._name = options.get(b"name", b"").decode(errors="replace")
        if self._name != self.file_name:
            self.fields[self._name] = bytearray()
            if len(self.fields) > MAX_FIELDS:
                raise BodyTooLarge(f"The form has more than {MAX_FIELDS} fields.")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == self.file_name:
            self._file.append(bytes(data[start:end]))
            return
        self._kept += end - start
        if self._kept > self.limit:
            raise BodyTooLarge(f"The form's fields are over {self.limit} bytes.")
        self.fields[self._name] += data[start:end]

    def _end(self) -> None:
        self.ended = True
