"""The parts of a long video that an edit shows, fetched by range into a sparse file: minutes of a
game, not gigabytes.

The demuxer walks through the wanted stretches over a file that fetches what is read. What it has
read then lies where it lies in the original, and the rest is a hole that nobody reads: for
everything further in, it is the same file, with the same times.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import av.error
from av.container import InputContainer

from gpu_worker.host.memory import bounded_memory
from gpu_worker.media.ffmpeg import FORMATS, decoding_limit
from gpu_worker.media.probe import Limits

#: One request's worth.
BLOCK_BYTES = 2 << 20
#: Read before and after each part: decoders run in, and ffmpeg seeks somewhat early where frames
#: are reordered.
MARGIN_SECONDS = 4.0

ReadRange = Callable[[int, int], bytes]


def fetch_excerpt(
    read_range: ReadRange, size: int, path: Path, parts: Sequence[tuple[float, float]]
) -> int | None:
    """Writes the parts (start and end in seconds) of an MP4 or MOV to `path`, with its header.

    The memory for the file's index is bounded (host/memory.py).

    Args:
        read_range: returns the bytes of the original from the first offset to before the second.

    Returns:
        The bytes fetched. None where the whole file is needed: another container, which has no
        index, or a damaged file.
    """
    with _Sparse(read_range, size, path) as file, bounded_memory():
        try:
            options = {"format_whitelist": FORMATS, "max_pixels": decoding_limit(Limits().pixels)}
            with av.open(file, "r", options=options, metadata_errors="replace") as container:
                if not _has_an_index(container):
                    return None
                for start, end in [(0.0, 0.0), *sorted(parts)]:
                    _walk(container, start, end)
        except (av.error.FFmpegError, MemoryError):
            return None
        return file.fetched_bytes


def _has_an_index(container: InputContainer) -> bool:
    """True for an MP4 or MOV in one piece; a fragmented one states its frames
    fragment by fragment.
    """
    streams = container.streams.video
    return (
        "mov" in container.format.name
        and len(streams) > 0
        and all(stream.frames > 0 for stream in streams)
    )


def _walk(container: InputContainer, start: float, end: float) -> None:
    """Reads all packets of a stretch."""
    origin = container.start_time or 0
    container.seek(origin + int(max(0.0, start - MARGIN_SECONDS) * 1_000_000))
    over = origin / 1_000_000 + end + MARGIN_SECONDS
    wanted = {stream.index for stream in (*container.streams.video, *container.streams.audio)}
    for packet in container.demux():
        if packet.dts is None or packet.time_base is None:
            continue
        if float(packet.dts * packet.time_base) > over:
            wanted.discard(packet.stream_index)
            if not wanted:
                return


class _Sparse(io.RawIOBase):
    """The original as a file for reading; blocks are fetched when first read, and kept in
    `path`.
    """

    def __init__(self, read_range: ReadRange, size: int, path: Path) -> None:
        self._read_range = read_range
        self._size = size
        self._position = 0
        self._there: set[int] = set()
        self._file = path.open("w+b")
        self._file.truncate(size)
        self.fetched_bytes = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, count: int = -1) -> bytes:
        end = self._size if count < 0 else min(self._size, self._position + count)
        if end <= self._position:
            return b""
        for block in range(self._position // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1):
            if block not in self._there:
                self._fetch(block)
        self._file.seek(self._position)
        data = self._file.read(end - self._position)
        self._position = end
        return data

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _fetch(self, block: int) -> None:
        begin = block * BLOCK_BYTES
        data = self._read_range(begin, min(self._size, begin + BLOCK_BYTES))
        self._file.seek(begin)
        self._file.write(data)
        self._there.add(block)
        self.fetched_bytes += len(data)
