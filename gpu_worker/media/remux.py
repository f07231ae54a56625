"""MPEG transport and program streams, written anew: one clock for picture and sound, and an index.

Their clocks begin anywhere, and jump where a recorder paused or two recordings were joined. FFmpeg
sets that right as long as one demuxer reads both streams from the beginning, so one does, once.
"""

from dataclasses import replace
from pathlib import Path

import av.error
from av.container import InputContainer

from gpu_worker.errors import FfmpegFailed, InvalidMedia
from gpu_worker.host.guard import Guard
from gpu_worker.host.memory import bounded_memory
from gpu_worker.media.container import opened, sound_stream, sound_warning, video_stream
from gpu_worker.media.facts import DEFAULT_LIMITS, Limits, SourceFacts
from gpu_worker.media.ffmpeg import INPUT_OPTIONS, decoding_limit, run_ffmpeg
from gpu_worker.media.probe import probe

#: FFmpeg's names of the formats.
CLOCKLESS = ("mpegts", "mpeg")
#: QuickTime keeps times exactly. What it does not take, Matroska does, with its sound decoded.
#: QuickTime's muxer writes some codecs under a name that its demuxer does not know, so what was
#: written is read.
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
    try:
        with bounded_memory(), opened(path, limits.pixels) as container:
            if container.format.name not in CLOCKLESS or len(container.streams) > limits.streams:
                return None
            options, warning = _options(container), sound_warning(container)
            codecs = _codecs(container)
    except (av.error.FFmpegError, MemoryError):
        return None
    before = [*INPUT_OPTIONS, "-max_pixels", decoding_limit(limits.pixels), "-fflags", "+genpts"]
    arguments = [*before, "-i", str(path), *options, "-c", "copy"]
    made, detail = path.with_name(f"{path.name}.one-clock"), ""
    for name, sound_codec in _TARGETS:
        try:
            output = ["-c:a", sound_codec, "-f", name, "-y", str(made)]
            with run_ffmpeg([*arguments, *output], guard) as ffmpeg:
                ffmpeg.finish()
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
    picture, sound = video_stream(container), sound_stream(container)
    kept = ["-map", "0:V:0"]
    if sound is None:
        return kept
    kept += ["-map", f"0:a:{container.streams.audio.index(sound)}"]
    begins = [
        float((stream.start_time or 0) * (stream.time_base or 0)) for stream in (picture, sound)
    ]
    lead = begins[0] - begins[1]
    if 0 < lead * float(picture.average_rate or 25) < 1:
        # FFmpeg's option for that, -ss, would drop the first key frame too.
        kept += ["-bsf:a", f"noise=drop='lt(pts*tb,{lead - _ROUNDING_SECONDS:.6f})'"]
    return kept
