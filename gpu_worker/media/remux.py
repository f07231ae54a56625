"""MPEG transport and program streams, written anew: one clock for picture and sound, and an index.

Their clocks begin anywhere, and jump where a recorder paused or two recordings were joined. Each
demuxer would find a beginning of its own for the one stream that is wanted from it.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import av.error
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from gpu_worker.errors import FfmpegFailed, InvalidMedia
from gpu_worker.host.guard import Guard
from gpu_worker.host.memory import bounded_memory
from gpu_worker.media.container import opened, sound_stream, sound_warning, video_stream
from gpu_worker.media.facts import DEFAULT_LIMITS, Limits, SourceFacts
from gpu_worker.media.ffmpeg import INPUT_OPTIONS, decoding_limit, run_ffmpeg
from gpu_worker.media.probe import probe
from gpu_worker.media.stretches import Stretches, offsets

#: FFmpeg's names of the formats.
CLOCKLESS = ("mpegts", "mpeg")
#: QuickTime keeps times exactly. What it does not take, Matroska does, with its sound decoded.
_TARGETS = (("mov", "copy"), ("matroska", "pcm_s24le"))
#: Less than a stream's unit of time, in seconds.
_ROUNDING_SECONDS = 5e-6


def prepare(path: Path, guard: Guard, limits: Limits = DEFAULT_LIMITS) -> SourceFacts:
    """Gives the file one clock, and probes it.

    Raises:
        As `probe`.
    """
    warning = with_one_clock(path, guard, limits)
    facts = probe(path, limits)
    return replace(facts, warning=warning or facts.warning)


def with_one_clock(path: Path, guard: Guard, limits: Limits = DEFAULT_LIMITS) -> str | None:
    """Replaces a transport or program stream by a file of the same packets; leaves others as they
    are, and those that `probe` refuses.

    Returns:
        What is lost of the file; None where nothing is.

    Raises:
        InvalidMedia: the file cannot be read to its end.
    """
    made = path.with_name(f"{path.name}.one-clock")
    try:
        with bounded_memory():
            with opened(path, limits.pixels) as container:
                is_clockless = container.format.name in CLOCKLESS
                if not is_clockless or len(container.streams) > limits.streams:
                    return None
                warning = sound_warning(container)
            if _join(path, made, limits):
                made.replace(path)
            with opened(path, limits.pixels) as container:
                codecs, options = _codecs(container), _options(container)
    except (av.error.FFmpegError, MemoryError):
        return None
    before = [*INPUT_OPTIONS, "-max_pixels", decoding_limit(limits.pixels), "-fflags", "+genpts"]
    arguments = [*before, "-i", str(path), *options, "-c", "copy"]
    detail = ""
    for name, sound_codec in _TARGETS:
        try:
            output = ["-c:a", sound_codec, "-f", name, "-y", str(made)]
            with run_ffmpeg([*arguments, *output], guard) as ffmpeg:
                ffmpeg.finish()
            # FFmpeg writes some codecs to QuickTime files under names that it does not read.
            with opened(made, limits.pixels) as container:
                written = _codecs(container)
            if written[0] == codecs[0] and (written[1] is None) == (codecs[1] is None):
                made.replace(path)
                return warning
        except (FfmpegFailed, av.error.FFmpegError) as error:
            detail = str(getattr(error, "detail", error))
    raise InvalidMedia("The video is damaged and cannot be read.", detail)


def _codecs(container: InputContainer) -> tuple[str, str | None]:
    """Returns the codecs of picture and sound."""
    sound = sound_stream(container)
    picture = video_stream(container).codec_context.name
    return picture, None if sound is None else sound.codec_context.name


def _options(container: InputContainer) -> list[str]:
    """Returns which streams are kept, and from when on.

    Sound that begins less than a frame before the picture begins with it: encoders put a few
    milliseconds before the sound, which would shift each picture by a part of a frame.
    """
    used = _used(container)
    kept = [word for stream in used for word in ("-map", f"0:{stream.index}")]
    if len(used) == 1:
        return kept
    begins = [float((stream.start_time or 0) * (stream.time_base or 0)) for stream in used]
    lead = begins[0] - begins[1]
    if 0 < lead * float(used[0].average_rate or 25) < 1:
        # FFmpeg's option for that, -ss, would drop the first key frame too.
        kept += ["-bsf:a", f"noise=drop='lt(pts*tb,{lead - _ROUNDING_SECONDS:.6f})'"]
    return kept


def _join(path: Path, made: Path, limits: Limits) -> bool:
    """Writes a transport stream whose clock does not jump to `made`; returns False where that of
    the file does not.
    """
    found = Stretches()
    try:
        with opened(path, limits.pixels) as container:
            for packet in _packets(container):
                found.place(*_time(packet))
    except IndexError:
        # PyAV met a stream that appears later, such as subtitles: FFmpeg joins what there is in its
        # own way.
        return False
    if len(found.all) <= 1:
        return False
    added, again, last = offsets(found.all, "video"), Stretches(), dict[int, int]()
    with opened(path, limits.pixels) as container:
        try:
            with av.open(str(made), "w", "mpegts") as output:
                targets = {
                    stream.index: output.add_stream_from_template(stream)
                    for stream in _used(container)
                }
                for packet in _packets(container):
                    seconds = added[again.place(*_time(packet))]
                    source = packet.stream_index
                    last[source] = _move(packet, seconds, last.get(source))
                    packet.stream = targets[source]
                    output.mux(packet)
        except (av.error.FFmpegError, ValueError):
            # Transport streams lack a codec of program streams: FFmpeg joins them, too.
            return False
    return True


def _used(container: InputContainer) -> list[VideoStream | AudioStream]:
    sound = sound_stream(container)
    return [video_stream(container), *([] if sound is None else [sound])]


def _packets(container: InputContainer) -> "Iterator[Packet[Any]]":
    """Yields the packets of picture and sound that have a time, in the file's order."""
    for packet in container.demux(_used(container)):
        if packet.dts is not None and packet.time_base:
            yield packet


def _time(packet: "Packet[Any]") -> tuple[str, float, float]:
    """Returns whose a packet is, when it is decoded and how long it lasts, in seconds."""
    base = packet.time_base or 0
    lasts = float((packet.duration or 0) * base)
    return packet.stream.type, float((packet.dts or 0) * base), lasts


def _move(packet: "Packet[Any]", seconds: float, last: int | None) -> int:
    """Moves a packet in time, behind the last one of its stream; returns when it is decoded."""
    by = round(seconds / (packet.time_base or 1))
    dts = (packet.dts or 0) + by
    dts = dts if last is None else max(dts, last + 1)
    packet.dts, packet.pts = dts, dts if packet.pts is None else max(packet.pts + by, dts)
    return dts
