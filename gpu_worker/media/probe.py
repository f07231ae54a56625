"""What is in a file: facts from its header, proven by decoding one frame."""

import math
from array import array
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
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
from gpu_worker.media.container import opened, sound_stream, sound_warning, video_stream
from gpu_worker.media.facts import (
    DEFAULT_LIMITS,
    HDR_TRANSFERS,
    FileFacts,
    Limits,
    SourceFacts,
)
from gpu_worker.media.ffmpeg import decoding_limit

MAX_RATE, USUAL_RATE = Fraction(240), Fraction(60)
#: The rates of cinema, PAL, NTSC and screens; of a variable rate, a whole one is taken.
WHOLE_RATES = (Fraction(24), Fraction(25), Fraction(30), Fraction(50), USUAL_RATE)
#: That of NTSC's rates. ffmpeg rounds a rate whose terms are above a million.
LARGEST_DENOMINATOR = 1001
USUAL_RATES = (*WHOLE_RATES, *(Fraction(n * 1000, 1001) for n in (24, 30, 60)))
#: Times in milliseconds are off by so much; rates so near are a usual one.
UNEVEN_SECONDS, ROUNDING_SECONDS, NEAR_SHARE = 0.0021, 0.001, Fraction(1, 1000)
#: Frames: by how much the length of an index may differ from the one in the header.
LOST_FRAMES = 1.5
#: How many of an index's pictures may lie beyond the end of the file.
MISSING_SHARE = 0.02
#: By how much a frame may exceed the limit and still be distinguished from a damaged one.
OPENING = 4
#: ffmpeg's numbers and names (ITU-T H.273). Primaries other than these are close to BT.709's, and
#: are shown as they are; 2 is "unspecified".
UNSPECIFIED = 2
_PRIMARIES = {9: "bt2020", 11: "smpte431", 12: "smpte432"}
_TRANSFERS = {4: "gamma22", 5: "gamma28", 13: "iec61966-2-1"}
_TRANSFERS |= {16: "smpte2084", 18: "arib-std-b67"}
_MATRICES = {1: "bt709", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
#: Brands of photos in ISO files (HEIF): still pictures, not videos.
_PHOTO_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif")
_RIGHT_ANGLE = 90


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
            stream = video_stream(container)
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
    # PyAV raises IndexError where a stream appears after the file's beginning.
    except (av.error.FFmpegError, MemoryError, IndexError) as error:
        raise InvalidMedia(
            "The file is not a video that can be read, or it is damaged.", str(error)
        ) from error


def output_facts(path: Path) -> FileFacts:
    """Counts a finished file's frames and measures its length."""
    with _opened(path) as container:
        stream = video_stream(container)
        frames = sum(packet.size > 0 for packet in container.demux(stream))
        return FileFacts(
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            fps=round(float(stream.average_rate or 0), 6),
            frames=frames,
            duration_seconds=round(_timing(path, container, stream).end, 6),
            video_codec=stream.codec_context.name,
            audio_codec=_audio_codec(container),
        )


def _refuse_text(path: Path) -> None:
    """Refuses what poses as a video: photos, playlists, scripts, web pages. ffmpeg never reads
    it.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"YUV4MPEG2"):
        raise UnsupportedMedia("The file is raw video (Y4M), which is not taken.")
    if head[4:8] == b"ftyp" and head[8:12] in _PHOTO_BRANDS:
        raise UnsupportedMedia("The file is a photo (HEIC or AVIF), not a video.")
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
    return opened(path, OPENING * limits.pixels)


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


def _facts(
    path: Path, container: InputContainer, stream: VideoStream, frame: av.VideoFrame
) -> SourceFacts:
    width, height = frame.width, frame.height
    sound, timing = sound_stream(container), _timing(path, container, stream)
    pixel = stream.sample_aspect_ratio or Fraction(1)
    if pixel > 0:
        width = max(1, round(width * pixel))
    # A player turns pictures by right angles only.
    rotation = 0 if frame.rotation % _RIGHT_ANGLE else frame.rotation
    if rotation % 180:
        width, height = height, width
    # VP8 and VP9 keep transparency beside the picture, where only libvpx reads it.
    beside = stream.metadata.get("alpha_mode") == "1" and stream.codec_context.name in (
        "vp8",
        "vp9",
    )
    return SourceFacts(
        width=width,
        height=height,
        fps=timing.fps,
        duration_seconds=timing.end,
        rotation_degrees=rotation,
        video_codec=stream.codec_context.name,
        audio_codec=_audio_codec(container),
        video_stream=stream.index,
        audio_track=0 if sound is None else container.streams.audio.index(sound),
        warning=sound_warning(container),
        matrix=_matrix(frame),
        full_range=frame.color_range == 2 or frame.format.name.startswith("yuvj"),
        primaries=_primaries(frame),
        transfer=_TRANSFERS.get(frame.color_trc, "bt709"),
        gray=frame.format.name.startswith("gray"),
        is_rgb=frame.format.is_rgb,
        turns=rotation == frame.rotation,
        interlaced=frame.interlaced_frame,
        alpha=beside
        or frame.format.name.startswith(
            ("yuva", "gbrap", "rgba", "bgra", "argb", "abgr", "ya", "pal8")
        ),
        alpha_decoder={"vp8": "libvpx", "vp9": "libvpx-vp9"}[stream.codec_context.name]
        if beside
        else None,
    )


@dataclass(frozen=True)
class _Timing:
    """A picture's rate, and when it ends, counted from the beginning of the file."""

    fps: Fraction
    end: float


def _timing(path: Path, container: InputContainer, stream: VideoStream) -> _Timing:
    """Returns the rate and the length: by the packets, where the header does not prove them.

    An MP4's index lists each packet. Other files have tags and estimates, which outlive an edit or
    were never right; transport streams and a browser's recordings have none.
    """
    origin = (container.start_time or 0) / 1_000_000
    is_indexed = container.format.name.startswith("mov") and _is_even(stream)
    if is_indexed and stream.duration and stream.time_base and _has_rate(stream):
        fps, lasts = _header_rate(stream), float(stream.duration * stream.time_base)
        # An edit list, or a length in the header that an edit left, has fewer than the index.
        if (stream.frames - LOST_FRAMES) / fps <= lasts:
            start = float((stream.start_time or 0) * stream.time_base)
            return _Timing(_shown_rate(fps), start + lasts - origin)
    # Of an even rate, the decoder finds out, and names what can be read.
    _refuse_cut_off(path, stream)
    times, end = _packet_times(path, stream.index)
    if _has_rate(stream) and (_is_even(stream) or not _are_even(times)):
        fps = _header_rate(stream)
    else:
        fps = _counted_rate(times)
        # A recorder does not tell how long its last picture lasts.
        end = max(end, times[-1] + float(1 / fps)) if len(times) else end
    return _Timing(_shown_rate(fps), float(end - origin))


def _shown_rate(fps: Fraction) -> Fraction:
    """Returns a multiple of the rate that is at least one a second, since a result is as long as a
    whole number of frames; with a denominator that encoders take as it is.
    """
    return (fps * math.ceil(1 / fps)).limit_denominator(LARGEST_DENOMINATOR)


def _is_even(stream: VideoStream) -> bool:
    average, base = stream.average_rate, stream.base_rate
    return bool(average and base and abs(base / average - 1) < Fraction(1, 50))


def _has_rate(stream: VideoStream) -> bool:
    """Whether the header's rate is one of pictures. A base above that is a time base's, as in the
    recordings of browsers.
    """
    average, base = stream.average_rate, stream.base_rate
    return bool(average and base and base <= (MAX_RATE if _is_even(stream) else USUAL_RATE))


def _header_rate(stream: VideoStream) -> Fraction:
    """Returns the exact rational, where the average is off by a rounding; of a variable rate, the
    grid that holds all frames.
    """
    return min(Fraction(stream.base_rate or stream.average_rate or 25), MAX_RATE)


def _counted_rate(times: np.ndarray) -> Fraction:
    """Returns the rate of pictures at these times, (n,) float64: their own where it is even, or
    above 60 a second; else the least usual one that shows each picture.
    """
    steps = _steps(times)
    if not len(steps):
        return Fraction(25)
    average = float(len(steps) / (times[-1] - times[0]))
    if _are_even(times) or average > USUAL_RATE:
        near = min(USUAL_RATES, key=lambda rate: abs(rate / Fraction(average) - 1))
        is_near = abs(near / Fraction(average) - 1) < NEAR_SHARE
        if average < 1:
            return 1 / Fraction(1 / average).limit_denominator(LARGEST_DENOMINATOR)
        return min(
            near if is_near else Fraction(average).limit_denominator(LARGEST_DENOMINATOR), MAX_RATE
        )
    needed = 1 / (float(steps.min()) + ROUNDING_SECONDS)
    return next((rate for rate in WHOLE_RATES if rate >= needed), USUAL_RATE)


def _are_even(times: np.ndarray) -> bool:
    """Whether pictures come at an even rate, but for the rounding of their times."""
    steps = _steps(times)
    return len(steps) > 0 and bool(np.ptp(steps) <= UNEVEN_SECONDS)


def _steps(times: np.ndarray) -> np.ndarray:
    """Returns the seconds from each picture to the next one that is shown later."""
    steps = np.diff(times)
    return steps[steps > 0]


def _packet_times(path: Path, index: int) -> tuple[np.ndarray, float]:
    """Goes through all packets; returns when each picture is shown, (n,) float64 in order, and the
    last one's end. Eight bytes a picture are kept.

    With a variable rate and reordered frames, MP4's own length is the sum of the wrong ones.
    """
    times = array("d")
    with _opened(path) as container:
        stream = container.streams[index]
        end = 0.0
        step = 1 / float(stream.average_rate or 25)
        for packet in container.demux(stream):
            # What an edit list leaves out is decoded and not shown.
            if packet.is_discard:
                continue
            if packet.pts is not None and packet.time_base is not None:
                lasts = float(packet.duration * packet.time_base) if packet.duration else step
                times.append(float(packet.pts * packet.time_base))
                end = max(end, times[-1] + lasts)
    return np.sort(np.array(times, np.float64)), end


def _refuse_cut_off(path: Path, stream: VideoStream) -> None:
    """Refuses a file that ends before many of the pictures that its index lists."""
    size, index = path.stat().st_size, stream.index_entries
    lost = sum(entry.pos + entry.size > size for entry in index)
    if lost > max(1, MISSING_SHARE * len(index)):
        raise InvalidMedia(
            f"The video is damaged: only {len(index) - lost} of {len(index)} pictures are in the "
            "file."
        )


def _primaries(frame: av.VideoFrame) -> str:
    """Returns the primaries; HDR without a tag is BT.2020, as BT.2100 has it."""
    is_hdr = _TRANSFERS.get(frame.color_trc) in HDR_TRANSFERS
    if frame.color_primaries == UNSPECIFIED and is_hdr:
        return "bt2020"
    return _PRIMARIES.get(frame.color_primaries, "bt709")


def _matrix(frame: av.VideoFrame) -> str:
    """Returns the colour matrix; without a tag, BT.2020's with its primaries, else by the size."""
    if _primaries(frame) == "bt2020":
        return _MATRICES.get(frame.colorspace, "bt2020")
    return _MATRICES.get(frame.colorspace, "bt709" if frame.height >= 720 else "bt601")


def _audio_codec(container: InputContainer) -> str | None:
    sound = sound_stream(container)
    return None if sound is None else sound.codec_context.name
