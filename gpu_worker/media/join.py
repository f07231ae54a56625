"""Pictures and sound become one file that any player starts at once; nothing is encoded again."""

import heapq
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
from av.container import InputContainer
from av.packet import Packet

from gpu_worker.errors import JoinFailed
from gpu_worker.media.sound import SAMPLE_RATE

_SENTENCE = "The parts of the result could not be joined."


@dataclass(frozen=True)
class Piece:
    """A file with a stretch of the pictures.

    Attributes:
        first: the number of its first frame in the whole.
    """

    path: Path
    first: int = 0


def join(
    pieces: Sequence[Piece], sound: Path | None, path: Path, fps: Fraction, count: int
) -> None:
    """Writes an MP4 file of `count` frames: pieces of one encoder in their order, and the sound of
    a file.

    Each frame goes to the place of its number, so that a length in a piece's header does not
    matter. Each piece begins with a picture that refers to none before, as those of libx264 do.

    Raises:
        JoinFailed: frames are missing, or there twice; the settings of the encoder differ; or there
            is no sound.
    """
    try:
        with ExitStack() as files:
            sources = [files.enter_context(av.open(str(piece.path))) for piece in pieces]
            _refuse_unlike(sources)
            # FFmpeg's libraries round an edit list to milliseconds otherwise.
            options = {"movflags": "+faststart", "movie_timescale": str(SAMPLE_RATE)}
            output = files.enter_context(av.open(str(path), "w", "mp4", options=options))
            picture = output.add_stream_from_template(sources[0].streams.video[0])
            there = bytearray(count)
            streams = [_pictures(pieces, sources, picture, fps, there)]
            if sound is not None:
                source = files.enter_context(av.open(str(sound)))
                heard = output.add_stream_from_template(source.streams.audio[0])
                streams.append(_sounds(source, heard))
            for packet in heapq.merge(*streams, key=_seconds):
                output.mux(packet)
    except (av.error.FFmpegError, IndexError) as error:
        raise JoinFailed(_SENTENCE, repr(error)) from error
    if not all(there):
        raise JoinFailed(_SENTENCE, f"{sum(there)} frames of {count}")


def _refuse_unlike(sources: Sequence[InputContainer]) -> None:
    """Raises JoinFailed where decoders would need other settings for one piece than for another."""
    settings = {
        (stream.codec_context.extradata, stream.time_base)
        for stream in (source.streams.video[0] for source in sources)
    }
    if len(settings) > 1:
        raise JoinFailed(_SENTENCE, "the encoder's settings differ")


def _pictures(
    pieces: Sequence[Piece],
    sources: Sequence[InputContainer],
    target: Any,
    fps: Fraction,
    there: bytearray,
) -> "Iterator[Packet[Any]]":
    """Yields the pictures of all pieces, each at its place, and notes its number in `there`.

    They are decoded one after the other. A piece of one frame does not have the delay of others,
    for pictures that are decoded before they are shown; so all get the longest.
    """
    decoded = min(_first_decoded(source, fps) for source in sources)
    for piece, source in zip(pieces, sources, strict=True):
        for packet in source.demux(source.streams.video[0]):
            if packet.pts is None or packet.time_base is None:
                continue
            frame = 1 / (fps * packet.time_base)
            place = packet.pts / frame + piece.first
            # MP4's time base is a multiple of the rate.
            if frame.denominator > 1 or place.denominator > 1 or not 0 <= place < len(there):
                raise JoinFailed(_SENTENCE, f"a frame at {place}")
            if there[int(place)]:
                raise JoinFailed(_SENTENCE, f"two frames at {place}")
            there[int(place)] = True
            packet.pts, packet.dts = int(place * frame), int(decoded * frame)
            decoded += 1
            packet.stream = target
            yield packet


def _first_decoded(source: InputContainer, fps: Fraction) -> int:
    """Returns when a piece's first picture is decoded, in frames: 0, or before."""
    packet = next(source.demux(source.streams.video[0]))
    source.seek(0)
    return math.floor((packet.dts or 0) * (packet.time_base or 0) * fps)


def _sounds(source: InputContainer, target: Any) -> "Iterator[Packet[Any]]":
    for packet in source.demux(source.streams.audio[0]):
        if packet.pts is not None:
            packet.stream = target
            yield packet


def _seconds(packet: "Packet[Any]") -> float:
    """Returns when a packet is decoded."""
    return float((packet.dts or 0) * (packet.time_base or 0))
