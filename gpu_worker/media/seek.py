"""Where a decoder must begin, so that it can show the picture of a moment."""

from pathlib import Path

import av.error
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from gpu_worker.media.container import opened, video_stream

#: FFmpeg's filter keeps the units of a key frame that let a decoder forget what came before: IDR
#: pictures (ITU-T H.264, table 7-1). Other codecs' key frames are such all, as far as what follows
#: them on screen goes.
_FORGETS = {"h264": "filter_units=pass_types=5"}
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
    key frame may be the first of several pictures that renew the screen part by part (intra
    refresh), which is over at the next one; so decoding begins at the one before.
    """
    try:
        with opened(path, max_pixels) as container:
            return go_before(container, moment)
    except av.error.FFmpegError:
        return 0.0


def go_before(container: InputContainer, moment: float) -> float:
    """Returns the same of an open file, and leaves it at that place."""
    stream, origin = video_stream(container), (container.start_time or 0) / 1_000_000
    target, is_refreshed = moment, False
    for _ in range(TRIES):
        if target < NEAR_SECONDS:
            break
        container.seek(int((origin + target) * 1_000_000))
        key = next(container.demux(stream), None)
        if key is None or key.pts is None or key.dts is None or key.time_base is None:
            break
        shown, decoded = (float(t * key.time_base) - origin for t in (key.pts, key.dts))
        if shown <= moment and (is_refreshed or _forgets(key, stream)):
            container.seek(int((origin + target) * 1_000_000))
            return target
        is_refreshed = is_refreshed or shown <= moment
        target = min(shown, decoded, target) - STEP_SECONDS
    container.seek(int(origin * 1_000_000))
    return 0.0


def _forgets(key: "Packet[VideoStream]", stream: VideoStream) -> bool:
    """Whether nothing shown after a key frame depends on what was decoded before; the packet is
    used up.
    """
    units = _FORGETS.get(stream.codec_context.name)
    return units is None or bool(BitStreamFilterContext(units, stream).filter(key))
