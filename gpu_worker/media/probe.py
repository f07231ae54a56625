"""What is in a file: facts from its header, proven by decoding one frame."""

from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.container import InputContainer
from av.video.stream import VideoStream

from gpu_worker.errors import (
    InvalidMedia,
    MediaTooLarge,
    MediaTooLong,
    TooManyStreams,
    UnsupportedMedia,
)
from gpu_worker.host.memory import bounded_memory
from gpu_worker.media.facts import DEFAULT_LIMITS, FileFacts, Limits, SourceFacts
from gpu_worker.media.ffmpeg import FORMATS, decoding_limit

MAX_RATE = Fraction(240)
#: By how much a frame may exceed the limit and still be distinguished from a damaged one.
OPENING = 4
#: ffmpeg's numbers of BT.2020 primaries, and of the transfer functions of HDR: SMPTE 2084 (PQ) and
#: HLG.
BT2020, HDR_TRANSFERS = 9, (16, 18)


def probe(path: Path, limits: Limits = DEFAULT_LIMITS) -> SourceFacts:
    """Reads a file's header and decodes its first frame, within a bound on memory.

    Raises:
        InvalidMedia: the file is no video, or no frame of it can be decoded.
        UnsupportedMedia: the file is a playlist or a script, which could open other files.
        MediaTooLarge, MediaTooLong, TooManyStreams: the file is beyond the limits.
    """
    _refuse_text(path)
    try:
        with bounded_memory(), _opened(path, limits) as container:
            stream = _video_stream(container)
            _refuse_beyond(container, stream, limits)
            frame = next(container.decode(stream), None)
            if frame is None:
                raise InvalidMedia("The file has a video track without a single frame.")
            facts = _facts(path, container, stream, frame)
            # Pixels that are not square in the file are made so: one may become thousands.
            _refuse_large(facts.width, facts.height, limits)
            if facts.duration_seconds > limits.seconds:
                raise MediaTooLong(
                    f"The video is {facts.duration_seconds:.0f} seconds long; {limits.seconds:g} "
                    "are taken."
                )
            return facts
    except (av.error.FFmpegError, MemoryError) as error:
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
            duration_seconds=round(_duration(path, container, stream), 6),
            video_codec=stream.codec_context.name,
            audio_codec=_audio_codec(container),
        )


def _refuse_text(path: Path) -> None:
    """Refuses text that poses as a video: playlists, scripts, web pages. ffmpeg never reads it."""
    with path.open("rb") as file:
        head = file.read(4096)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(
        (b"#EXTM3U", b"ffconcat", b"<MPD", b"<?xml", b"[playlist]", b"#!", b"<smil")
    ):
        raise UnsupportedMedia("The file is a playlist or a script, not a video.")
    if head and b"\x00" not in head and head.isascii():
        raise InvalidMedia("The file is text, not a video.")


def _opened(path: Path, limits: Limits = DEFAULT_LIMITS) -> InputContainer:
    # Opening a file may decode a frame of it already. Beyond this limit the size is not even
    # reported, so it is a wide one.
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": FORMATS,
        "max_pixels": decoding_limit(OPENING * limits.pixels),
    }
    return av.open(str(path), options=options, metadata_errors="replace")


def _refuse_beyond(container: InputContainer, stream: VideoStream, limits: Limits) -> None:
    if len(container.streams) > limits.streams:
        raise TooManyStreams(
            f"The file has {len(container.streams)} streams; {limits.streams} are taken."
        )
    _refuse_large(stream.codec_context.width, stream.codec_context.height, limits)
    # The frame itself may be larger than its container states.
    stream.codec_context.options = {"max_pixels": decoding_limit(limits.pixels)}


def _refuse_large(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.pixels:
        raise MediaTooLarge(
            f"The picture is too large: {width}x{height}; {limits.pixels} pixels are taken."
        )


def _video_stream(container: InputContainer) -> VideoStream:
    # A cover picture is a video stream to ffmpeg, but not to a person.
    streams = [
        s
        for s in container.streams.video
        if not s.disposition & s.disposition.__class__.attached_pic
    ]
    if not streams:
        raise InvalidMedia("The file has no video track.")
    return streams[0]


def _facts(
    path: Path, container: InputContainer, stream: VideoStream, frame: av.VideoFrame
) -> SourceFacts:
    width, height = frame.width, frame.height
    pixel = stream.sample_aspect_ratio or Fraction(1)
    if pixel > 0:
        width = max(1, round(width * pixel))
    if frame.rotation % 180:
        width, height = height, width
    # VP8 and VP9 keep transparency beside the picture, where only libvpx reads it.
    beside = stream.metadata.get("alpha_mode") == "1" and stream.codec_context.name in (
        "vp8",
        "vp9",
    )
    return SourceFacts(
        width=width,
        height=height,
        fps=_rate(stream),
        duration_seconds=_duration(path, container, stream),
        rotation_degrees=frame.rotation,
        video_codec=stream.codec_context.name,
        audio_codec=_audio_codec(container),
        matrix=_matrix(frame),
        full_range=frame.color_range == 2 or frame.format.name.startswith("yuvj"),
        wide_gamut=frame.color_primaries == BT2020,
        hdr=frame.color_trc in HDR_TRANSFERS,
        interlaced=frame.interlaced_frame,
        alpha=beside
        or frame.format.name.startswith(
            ("yuva", "gbrap", "rgba", "bgra", "argb", "abgr", "ya", "pal8")
        ),
        seekable=not container.format.name.startswith("mpeg"),
        alpha_decoder={"vp8": "libvpx", "vp9": "libvpx-vp9"}[stream.codec_context.name]
        if beside
        else None,
    )


def _rate(stream: VideoStream) -> Fraction:
    average, base = stream.average_rate, stream.base_rate
    if not average:
        return Fraction(base or 25)
    if base and (_is_even(stream) or average < base <= 60):
        # The exact rational, where the average is off by a rounding; of a variable rate, the grid
        # that holds all frames.
        average = base
    return min(Fraction(average), MAX_RATE)


def _is_even(stream: VideoStream) -> bool:
    average, base = stream.average_rate, stream.base_rate
    return bool(average and base and abs(base / average - 1) < Fraction(1, 50))


def _duration(path: Path, container: InputContainer, stream: VideoStream) -> float:
    """Returns when the picture ends, in seconds from the beginning of the file, which is not always
    its own.
    """
    origin = (container.start_time or 0) / 1_000_000
    if _is_even(stream) and stream.duration and stream.time_base:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base) - origin
    if _is_even(stream) and (end := _clock(stream.metadata.get("DURATION", ""))) is not None:
        return end - origin
    return _counted_duration(path, stream.index)


def _clock(text: str) -> float | None:
    """Reads Matroska's `00:00:05.280000000`."""
    parts = text.split(":")
    try:
        return sum(float(part) * 60**power for power, part in enumerate(reversed(parts))) or None
    except ValueError:
        return None


def _counted_duration(path: Path, index: int) -> float:
    """Goes through all packets.

    Some files do not say their length (webm of a browser's recorder, transport streams), and with a
    variable rate and reordered frames, MP4's is the sum of the wrong ones.
    """
    with _opened(path) as container:
        stream = container.streams[index]
        end = 0.0
        step = 1 / float(stream.average_rate or 25)
        for packet in container.demux(stream):
            if packet.pts is not None and packet.time_base is not None:
                lasts = float(packet.duration * packet.time_base) if packet.duration else step
                end = max(end, float(packet.pts * packet.time_base) + lasts)
        return end - (container.start_time or 0) / 1_000_000


def _matrix(frame: av.VideoFrame) -> str:
    known = {1: "bt709", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
    return known.get(frame.colorspace, "bt709" if frame.height >= 720 else "bt601")


def _audio_codec(container: InputContainer) -> str | None:
    return container.streams.audio[0].codec_context.name if container.streams.audio else None
