"""Where a decoder must begin, so that it can show the picture of a moment."""

import math
from pathlib import Path

import av.error
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from gpu_worker.media.container import opened, video_stream
from gpu_worker.media.ffmpeg import decoding_limit

#: FFmpeg's filter keeps the units of a key frame after which a decoder needs nothing before it: IDR
#: pictures (ITU-T H.264, table 7-1).
_IDR_UNITS = "filter_units=pass_types=5"
#: So many key frames are tried, each before the last one; then the file is read from its beginning.
TRIES = 8
#: Less than the time between two frames.
STEP_SECONDS = 0.001
#: What is so near to the beginning is read from there. ffmpeg seeks up to 0.13 s early where frames
#: are reordered, and goes astray in an AVI where that is before the beginning.
NEAR_SECONDS = 0.25


def seek_point(path: Path, moment: float, max_pixels: int) -> float:
    """Returns the moment to seek to, 0 for the beginning, for the picture that is on screen at
    `moment`; both in seconds from the beginning of the file.

    A demuxer seeks by the time of decoding. The key frame that it finds may be shown only after
    `moment`, and pictures before it, in an open group, cannot be decoded from there. Of H.264, a
    key frame may be the first of many pictures that renew the screen part by part (intra refresh);
    a decoder gives out none of them.
    """
    try:
        with opened(path, max_pixels) as container:
            return go_before(container, moment, max_pixels)
    except av.error.FFmpegError:
        return 0.0


def go_before(container: InputContainer, moment: float, max_pixels: int) -> float:
    """Returns the same of an open file, and leaves it at that place."""
    stream, origin = video_stream(container), (container.start_time or 0) / 1_000_000
    stream.codec_context.options = {"max_pixels": decoding_limit(max_pixels)}
    target = moment
    for _ in range(TRIES):
        if target < NEAR_SECONDS:
            break
        container.seek(int((origin + target) * 1_000_000))
        key = next(container.demux(stream), None)
        if key is None or key.pts is None or key.dts is None or key.time_base is None:
            break
        shown, decoded = (float(t * key.time_base) - origin for t in (key.pts, key.dts))
        is_whole = stream.codec_context.name != "h264" or _is_idr(key, stream)
        container.seek(int((origin + target) * 1_000_000))
        if shown <= moment and (is_whole or _first_shown(container, stream) <= origin + moment):
            container.seek(int((origin + target) * 1_000_000))
            return target
        target = min(shown, decoded, target) - STEP_SECONDS
    container.seek(int(origin * 1_000_000))
    return 0.0


def _is_idr(key: "Packet[VideoStream]", stream: VideoStream) -> bool:
    """Whether a key frame of H.264 is an IDR picture; the packet is used up."""
    return bool(BitStreamFilterContext(_IDR_UNITS, stream).filter(key))


def _first_shown(container: InputContainer, stream: VideoStream) -> float:
    """Returns the time of the first picture that is decoded from here on, in the file's seconds."""
    frame = next(container.decode(stream), None)
    return math.inf if frame is None or frame.pts is None else frame.time
