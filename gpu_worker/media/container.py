"""A stranger's file, opened for reading; and which of its streams are used."""

import io
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Stream
from av.video.stream import VideoStream

from gpu_worker.errors import InvalidMedia, UnsupportedMedia
from gpu_worker.media.ffmpeg import FORMATS, decoding_limit


def opened(file: Path | io.RawIOBase, max_pixels: int) -> InputContainer:
    """Opens a file of a known format; FFmpeg may decode a first frame of at most `max_pixels`.

    Raises:
        av.error.FFmpegError: the file has no such format, or is damaged.
    """
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": FORMATS,
        "max_pixels": decoding_limit(max_pixels),
    }
    name = str(file) if isinstance(file, Path) else file
    return av.open(name, "r", options=options, metadata_errors="replace")


def video_stream(container: InputContainer) -> VideoStream:
    """Returns the first picture track that can be decoded.

    Raises:
        InvalidMedia: there is no picture.
        UnsupportedMedia: no picture can be decoded.
    """
    # A cover picture is a video stream to FFmpeg, but not to a person.
    streams = [
        s
        for s in container.streams.video
        if not s.disposition & s.disposition.__class__.attached_pic
    ]
    if not streams:
        raise InvalidMedia("The file has no video track.")
    decodable = [s for s in streams if _has_decoder(s)]
    if not decodable:
        raise UnsupportedMedia("The video's codec is not known here.")
    return decodable[0]


def sound_stream(container: InputContainer) -> AudioStream | None:
    """Returns the first sound track that can be decoded; None where there is none."""
    return next((s for s in container.streams.audio if _has_decoder(s)), None)


def sound_warning(container: InputContainer) -> str | None:
    """Returns what is lost where the first sound track cannot be decoded; None where it can."""
    tracks, sound = container.streams.audio, sound_stream(container)
    if not tracks or sound is tracks[0]:
        return None
    if sound is None:
        return "The sound's codec is not known here; the export is silent."
    return "The first sound track's codec is not known here; the next track is used."


def _has_decoder(stream: Stream) -> bool:
    """Whether FFmpeg has the codec; PyAV gives a stream no context otherwise."""
    return getattr(stream, "codec_context", None) is not None
