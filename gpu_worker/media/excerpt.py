"""A video fetched by ranges, several at once; of a long one, the parts that an edit shows: minutes
of a game, not gigabytes.

The file's index says which bytes the wanted stretches need, and they are fetched, several ranges at
once. Then the demuxer walks through the stretches over a file that fetches what is still missing.
What was fetched lies where it lies in the original, and the rest is a hole that nobody reads: for
everything further in, it is the same file, with the same times.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av.error
from av.container import InputContainer
from av.stream import Stream

from gpu_worker.host.memory import bounded_memory
from gpu_worker.media.container import opened
from gpu_worker.media.facts import DEFAULT_LIMITS
from gpu_worker.media.seek import go_before

#: What is fetched at least, and at most in one request: about as much as one connection can have
#: under way.
BLOCK_BYTES, RANGE_BYTES = 1 << 20, 2 << 20
#: Each connection waits for its answer, so many are busy; a reader that goes on gets more at once.
RANGES_AT_ONCE, BLOCKS_AHEAD = 16, 8
#: Read before and after each part: decoders run in, and ffmpeg seeks somewhat early where frames
#: are reordered.
MARGIN_SECONDS = 4.0

ReadRange = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Remote:
    """A file in the bucket.

    Attributes:
        head: its first bytes: RANGE_BYTES, or all of a smaller one.
        read_range: returns the bytes from the first offset to before the second.
    """

    size: int
    head: bytes
    read_range: ReadRange


def fetch_whole(remote: Remote, path: Path) -> None:
    """Writes the file to `path`."""
    with (
        ThreadPoolExecutor(RANGES_AT_ONCE, "fetch") as pool,
        _Sparse(remote, path, pool) as file,
    ):
        file.fetch(blocks_of(0, remote.size))


def fetch_excerpt(remote: Remote, path: Path, parts: Sequence[tuple[float, float]]) -> int | None:
    """Writes the parts (start and end in seconds) of an MP4 or MOV to `path`, with its header.

    The memory for the file's index is bounded (host/memory.py).

    Returns:
        The bytes fetched. None where the whole file is needed: another container, which has no
        index, or a damaged file.
    """
    with (
        ThreadPoolExecutor(RANGES_AT_ONCE, "fetch") as pool,
        _Sparse(remote, path, pool) as file,
        bounded_memory(),
    ):
        try:
            with opened(file, DEFAULT_LIMITS.pixels) as container:
                if not _has_an_index(container):
                    return None
                stretches = [(0.0, 0.0), *sorted(parts)]
                file.fetch(_blocks(container, stretches))
                for start, end in stretches:
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


def _blocks(container: InputContainer, stretches: Sequence[tuple[float, float]]) -> set[int]:
    """Returns the blocks that hold the stretches, by the file's index."""
    origin = (container.start_time or 0) / 1_000_000
    first_video = container.streams.video[0]
    blocks: set[int] = set()
    for start, end in stretches:
        # All streams are read from the key frame on that the picture needs.
        begin = next(_packets(first_video, origin + start - MARGIN_SECONDS), (0.0, 0, 0))[0]
        for stream in (*container.streams.video, *container.streams.audio):
            for seconds, position, size in _packets(stream, begin):
                if seconds > origin + end + MARGIN_SECONDS:
                    break
                blocks.update(blocks_of(position, position + size))
    return blocks


def _packets(stream: Stream, begin: float) -> Iterator[tuple[float, int, int]]:
    """Yields the index of a stream from the key frame before `begin` (seconds) on: seconds, place
    and size of each packet.
    """
    entries, base = stream.index_entries, float(stream.time_base or 0)
    found = entries.search_timestamp(int(begin / base), backward=True) if base else -1
    for number in range(max(0, found), len(entries)):
        entry = entries[number]
        yield entry.timestamp * base, entry.pos, entry.size


def blocks_of(begin: int, end: int) -> range:
    """Returns the blocks that hold the bytes from `begin` to before `end`."""
    return range(begin // BLOCK_BYTES, -(-end // BLOCK_BYTES))


def ranges_of(blocks: Iterable[int], size: int) -> list[tuple[int, int]]:
    """Returns ranges of bytes that hold blocks of a file of `size`: neighbours together, up to
    RANGE_BYTES.
    """
    ranges: list[tuple[int, int]] = []
    for block in sorted(blocks):
        begin, end = block * BLOCK_BYTES, min(size, (block + 1) * BLOCK_BYTES)
        if ranges and ranges[-1][1] == begin and end - ranges[-1][0] <= RANGE_BYTES:
            begin = ranges.pop()[0]
        ranges.append((begin, end))
    return ranges


def _walk(container: InputContainer, start: float, end: float) -> None:
    """Reads all packets of a stretch."""
    go_before(container, max(0.0, start - MARGIN_SECONDS), DEFAULT_LIMITS.pixels)
    over = (container.start_time or 0) / 1_000_000 + end + MARGIN_SECONDS
    wanted = {stream.index for stream in (*container.streams.video, *container.streams.audio)}
    for packet in container.demux():
        if packet.dts is None or packet.time_base is None:
            continue
        if float(packet.dts * packet.time_base) > over:
            wanted.discard(packet.stream_index)
            if not wanted:
                return


class _Sparse(io.RawIOBase):
    """The original as a file for reading; blocks are fetched when first read, or before, and kept
    in `path`.
    """

    def __init__(self, remote: Remote, path: Path, pool: ThreadPoolExecutor) -> None:
        self._remote, self._size = remote, remote.size
        self._pool = pool
        self._position = 0
        self._there = set(blocks_of(0, len(remote.head)))
        self._file = path.open("w+b")
        self._file.truncate(remote.size)
        self.fetched_bytes = os.pwrite(self._file.fileno(), remote.head, 0)

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
        wanted = blocks_of(self._position, end)
        if not self._there.issuperset(wanted):
            # An index is read from its begin to its end: where a part of it is there, more follows.
            ahead = BLOCKS_AHEAD if wanted.start - 1 in self._there else 0
            self.fetch(blocks_of(self._position, min(self._size, end + ahead * BLOCK_BYTES)))
        data = os.pread(self._file.fileno(), end - self._position, self._position)
        self._position = end
        return data

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def fetch(self, blocks: Iterable[int]) -> None:
        """Fetches what is missing of some blocks, several ranges at once."""
        missing = set(blocks) - self._there
        self.fetched_bytes += sum(self._pool.map(self._keep, ranges_of(missing, self._size)))
        self._there |= missing

    def _keep(self, part: tuple[int, int]) -> int:
        data = self._remote.read_range(*part)
        return os.pwrite(self._file.fileno(), data, part[0])
