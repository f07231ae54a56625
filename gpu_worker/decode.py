"""Decoding: a file becomes frames at exact, even times, upright, with square pixels, in BT.709 limited range.

ffmpeg does the work in a process of its own and hands over raw pictures through a pipe, one at a time: memory does
not grow with the clip's length.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO

from gpu_worker.errors import FfmpegFailed, InvalidMedia
from gpu_worker.ffmpeg import INPUT_OPTIONS, run_ffmpeg
from gpu_worker.frames import Frame, frame_bytes, frame_from_bytes
from gpu_worker.probe import SourceFacts

#: How much of a video may be missing at its end before it counts as truncated.
MISSING_SECONDS = 0.25
MISSING_SHARE = 0.02


@contextmanager
def decode(path: Path, facts: SourceFacts, first: int, count: int) -> Iterator[Iterator[Frame]]:
    """Yields `count` frames from index `first` on, frame i being the one at `i / facts.fps` seconds.

    A file whose rate varies is read onto this even grid. The iterator ends early where the file does.

    Raises:
        InvalidMedia: while iterating, when the file cannot be decoded, or ends long before its header says.
    """
    # A quarter of a frame early, so that no rounding of timestamps can lose the first one.
    seek = ["-ss", f"{float((first - Fraction(1, 4)) / facts.fps):.6f}"] if first > 0 else []
    arguments = [
        *INPUT_OPTIONS,
        *seek,
        *("-i", str(path), "-map", "0:v:0", "-an", "-sn", "-dn"),
        *("-frames:v", str(count), "-vf", _filters(facts)),
        *("-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "yuv420p", "pipe:1"),
    ]
    with run_ffmpeg(arguments, reads=True) as ffmpeg:

        def frames() -> Iterator[Frame]:
            size = frame_bytes(facts.width, facts.height)
            seen = 0
            while (picture := _read_exactly(ffmpeg.stdout, size)) is not None:
                seen += 1
                yield frame_from_bytes(picture, facts.width, facts.height)
            try:
                ffmpeg.finish()
            except FfmpegFailed as error:
                raise InvalidMedia("The video is damaged and cannot be decoded.", error.detail) from error
            _refuse_truncated(float(seen / facts.fps), float(count / facts.fps), ffmpeg.said())

        yield frames()


def _filters(facts: SourceFacts) -> str:
    """ffmpeg turns the picture upright by itself, before these."""
    source = f"in_color_matrix={facts.matrix}:in_range={'full' if facts.full_range else 'limited'}"
    ours = "out_color_matrix=bt709:out_range=limited"
    return ",".join(
        [
            # start_time=0: a video track that begins late shows its first frame from the beginning.
            f"fps={facts.fps.numerator}/{facts.fps.denominator}:start_time=0",
            f"scale={facts.width}:{facts.height}:flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp:{source}:{ours}",
            "format=yuv420p",
        ]
    )


def _read_exactly(pipe: IO[bytes], size: int) -> bytearray | None:
    """Returns the next `size` bytes, or None at the end; what is left of half a picture is dropped."""
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        count = pipe.readinto(view)  # type: ignore[attr-defined]  # a raw FileIO has it
        if not count:
            return None
        view = view[count:]
    return buffer


def _refuse_truncated(readable: float, promised: float, said: str) -> None:
    if promised - readable > max(MISSING_SECONDS, MISSING_SHARE * promised):
        sentence = f"The video is damaged: only {readable:.1f} of {promised:.1f} seconds can be read."
        raise InvalidMedia(sentence, said)
