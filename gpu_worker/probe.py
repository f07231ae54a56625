"""What is in a file: facts from its header, proven by decoding one frame."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.container import InputContainer
from av.video.stream import VideoStream

from gpu_worker.errors import InvalidMedia, UnsupportedMedia
from gpu_worker.ffmpeg import FORMATS

MAX_RATE = Fraction(120)
MAX_PIXELS = 8192 * 8192


@dataclass(frozen=True)
class SourceFacts:
    """A source as a viewer sees it.

    Attributes:
        width, height: of the upright picture with square pixels, exactly as decode.py delivers it.
        fps: frames a second; for a variable rate, the rate that holds every frame.
        duration_seconds: of the video stream.
        matrix: ffmpeg's name of the colour matrix that the pixels are in, `bt709` or `bt601` where untagged.
        full_range: True for 0 to 255 luma.
    """

    width: int
    height: int
    fps: Fraction
    duration_seconds: float
    rotation_degrees: int
    video_codec: str
    audio_codec: str | None
    matrix: str
    full_range: bool


@dataclass(frozen=True)
class FileFacts:
    """A finished file, counted packet by packet."""

    width: int
    height: int
    fps: float
    frames: int
    duration_seconds: float
    video_codec: str
    audio_codec: str | None


def probe(path: Path) -> SourceFacts:
    """Reads a file's header and decodes its first frame.

    Raises:
        InvalidMedia: it is no video, or no frame of it can be decoded.
        UnsupportedMedia: its picture is too large.
    """
    try:
        with _opened(path) as container:
            stream = _video_stream(container)
            frame = next(container.decode(stream), None)
            if frame is None:
                raise InvalidMedia("The file has a video track without a single frame.")
            return _facts(container, stream, frame)
    except av.error.FFmpegError as error:
        raise InvalidMedia(
            "The file is not a video that can be read, or it is damaged.", str(error)
        ) from error


def output_facts(path: Path) -> FileFacts:
    """Counts a finished file's frames and measures its length."""
    with _opened(path) as container:
        stream = _video_stream(container)
        frames = sum(packet.size > 0 for packet in container.demux(stream))
        return FileFacts(
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            fps=round(float(stream.average_rate or 0), 6),
            frames=frames,
            duration_seconds=round(_duration(container, stream), 6),
            video_codec=stream.codec_context.name,
            audio_codec=_audio_codec(container),
        )


def _opened(path: Path) -> InputContainer:
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    return av.open(str(path), options=options)


def _video_stream(container: InputContainer) -> VideoStream:
    # A cover picture is a video stream to ffmpeg, but not to a person.
    streams = [s for s in container.streams.video if not s.disposition & s.disposition.__class__.attached_pic]
    if not streams:
        raise InvalidMedia("The file has no video track.")
    return streams[0]


def _facts(container: InputContainer, stream: VideoStream, frame: av.VideoFrame) -> SourceFacts:
    if frame.width * frame.height > MAX_PIXELS:
        raise UnsupportedMedia(f"The picture is too large: {frame.width}x{frame.height}.")
    width, height = frame.width, frame.height
    pixel = stream.sample_aspect_ratio or Fraction(1)
    if pixel > 0:
        width = max(1, round(width * pixel))
    if frame.rotation % 180:
        width, height = height, width
    return SourceFacts(
        width=width,
        height=height,
        fps=_rate(stream),
        duration_seconds=_duration(container, stream),
        rotation_degrees=frame.rotation,
        video_codec=stream.codec_context.name,
        audio_codec=_audio_codec(container),
        matrix=_matrix(frame),
        full_range=frame.color_range == 2 or frame.format.name.startswith("yuvj"),
    )


def _rate(stream: VideoStream) -> Fraction:
    average, base = stream.average_rate, stream.base_rate
    if not average:
        return Fraction(base or 25)
    if base and abs(base / average - 1) < Fraction(1, 50):
        average = base  # the exact rational, where the average is off by a rounding
    elif base and average < base <= 60:
        average = base  # variable: the finer grid holds every frame
    return min(Fraction(average), MAX_RATE)


def _duration(container: InputContainer, stream: VideoStream) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1_000_000


def _matrix(frame: av.VideoFrame) -> str:
    known = {1: "bt709", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
    return known.get(frame.colorspace, "bt709" if frame.height >= 720 else "bt601")


def _audio_codec(container: InputContainer) -> str | None:
    return container.streams.audio[0].codec_context.name if container.streams.audio else None
