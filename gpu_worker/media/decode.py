"""Decoding: a file becomes frames at exact, even times, upright, with square pixels, in BT.709
limited range.

ffmpeg does the work in a process of its own and hands over raw pictures through a pipe, one at a
time: memory does not grow with the clip's length.
"""

import itertools
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np

from gpu_worker.errors import FfmpegFailed, InvalidMedia, MediaTooLarge
from gpu_worker.host.guard import Guard
from gpu_worker.host.limits import usable_cores
from gpu_worker.media.facts import DEFAULT_LIMITS, SourceFacts
from gpu_worker.media.ffmpeg import INPUT_OPTIONS, decoding_limit, run_ffmpeg
from gpu_worker.media.frames import Frame, Region, frame_bytes, frame_from_bytes
from gpu_worker.media.hardware import DECODING, HardwareDecoder
from gpu_worker.media.seek import seek_point

Frames = Generator[Frame, None, None]
#: More make no decoder faster, and each holds a frame.
MOST_THREADS = 16
#: How much of a video may be missing at its end before it counts as truncated.
MISSING_SECONDS = 0.25
MISSING_SHARE = 0.02
#: ffmpeg's names of DCI-P3's and Display P3's primaries.
P3 = ("smpte431", "smpte432")
#: The `colorspace` filter takes no RGB.
_RGB_TO_YUV = "scale=out_color_matrix=bt709:out_range=limited,format=yuv444p10"
#: The matrices' names in a frame's properties.
_COLORSPACES = {
    "bt709": "bt709",
    "bt601": "smpte170m",
    "smpte240m": "smpte240m",
    "bt2020": "bt2020nc",
}
#: Of broadcasts and tapes, where a programme that is interlaced may follow one that is not.
MIXED_CODECS = ("h264", "mpeg2video", "mpeg4", "vc1")
#: How many of the packets may be beyond decoding; the frame before stays on screen for them.
MAX_LOST_SHARE = 0.1


@contextmanager
def decode(
    path: Path,
    facts: SourceFacts,
    first: int,
    count: int,
    guard: Guard,
    interpolated_fps: Fraction | None = None,
    hardware: HardwareDecoder | None = None,
    max_pixels: int = DEFAULT_LIMITS.pixels,
    window: Region | None = None,
) -> Iterator[Iterator[Frame]]:
    """Yields `count` frames from index `first` on, frame i being the one at `i / facts.fps`
    seconds.

    A file whose rate varies is read onto this even grid. The iterator ends early where the file
    does. With `interpolated_fps`, frames between are made by motion interpolation: the n-th is at
    `first / facts.fps + n / interpolated_fps` seconds. With `hardware`, the GPU decodes until it
    fails; from there on the CPU does. With `window`, each frame is that part of the picture.

    Raises:
        InvalidMedia: while iterating, when the file cannot be decoded, or ends long before its
            header says.
        MediaTooLarge: while iterating, when a frame has more than `max_pixels`; it is not decoded.
    """
    begin = float(first / facts.fps)
    at = seek_point(path, begin, max_pixels) if first > 0 else 0.0
    decoder = ["-c:v", facts.alpha_decoder] if facts.alpha_decoder else []
    before = [
        *INPUT_OPTIONS,
        *("-threads", str(min(usable_cores(), MOST_THREADS))),
        *(() if facts.turns else ("-noautorotate",)),
        # A new graph would begin at 0 again. These filters take another size or format as it comes.
        *("-reinit_filter", "0"),
        *("-max_error_rate", str(MAX_LOST_SHARE), "-max_pixels", decoding_limit(max_pixels)),
    ]
    after = [
        *decoder,
        # All from the key frame on are decoded; the filter `fps` begins with the one of `begin`.
        *(("-ss", f"{at:.6f}", "-noaccurate_seek") if at > 0 else ()),
        *(("-itsoffset", f"{at - begin:.6f}") if begin > 0 else ()),
        *("-i", str(path), "-map", f"0:{facts.video_stream}", "-an", "-sn", "-dn"),
        *("-frames:v", str(count), "-vf", _filters(facts, interpolated_fps, window)),
        *("-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "yuv420p", "pipe:1"),
    ]
    seconds = float(count / (interpolated_fps or facts.fps))
    size = (facts.width, facts.height) if window is None else (window.width, window.height)

    def read(options: Sequence[str]) -> Frames:
        return _read([*before, *options, *after], size, count, seconds, guard, max_pixels)

    def frames() -> Frames:
        seen = 0
        if hardware is not None and not hardware.failed:
            try:
                with closing(read(DECODING)) as decoded:
                    for frame in decoded:
                        seen += 1
                        yield frame
                return
            except InvalidMedia as error:
                # Whether the file or the decoder is at fault, the CPU shows.
                hardware.fail(error.detail)
        with closing(read(())) as decoded:
            yield from itertools.islice(decoded, seen, None)

    with closing(frames()) as stretch:
        yield stretch


def _read(
    arguments: Sequence[str],
    size: tuple[int, int],
    count: int,
    seconds: float,
    guard: Guard,
    max_pixels: int,
) -> Frames:
    """Yields the frames that one ffmpeg decodes; `count` of them, in `seconds`, are promised."""
    seen = 0
    with run_ffmpeg(arguments, guard, reads=True) as ffmpeg:
        while (picture := _read_exactly(ffmpeg.stdout, frame_bytes(*size))) is not None:
            seen += 1
            yield frame_from_bytes(picture, *size)
        try:
            ffmpeg.finish()
        except FfmpegFailed as error:
            _refuse_grown(error.detail, max_pixels)
            raise InvalidMedia(
                "The video is damaged and cannot be decoded.", error.detail
            ) from error
        _refuse_grown(ffmpeg.stderr_tail(), max_pixels)
        # The last frame may be held for a shorter time than the others.
        kept = seconds * min(seen + 1, count) / count
        _refuse_truncated(kept, seconds, ffmpeg.stderr_tail())


def _filters(facts: SourceFacts, interpolated_fps: Fraction | None, window: Region | None) -> str:
    """ffmpeg turns the picture upright by itself, before these."""
    steps = []
    if facts.interlaced or facts.video_codec in MIXED_CODECS:
        # The deinterlacer takes one size, so later ones are brought to the first. It passes on what
        # is not interlaced as it is.
        fields = "all" if facts.interlaced else "interlaced"
        steps += ["scale=iw:ih", f"bwdif=mode=send_frame:deint={fields}"]
    # start_time=0: a video track that begins late shows its first frame from the beginning.
    steps.append(f"fps={facts.fps.numerator}/{facts.fps.denominator}:start_time=0")
    if facts.alpha:
        steps += ["format=yuva444p|yuva420p|gbrap", "premultiply=inplace=1"]
    steps += _to_bt709(facts)
    if interpolated_fps is not None:
        rate = f"{interpolated_fps.numerator}/{interpolated_fps.denominator}"
        steps.append(f"minterpolate=fps={rate}:mi_mode=mci:mc_mode=aobmc:me_mode=bidir:vsbmc=1")
    steps.append("format=yuv420p")
    if window is not None:
        place = f"{window.width}:{window.height}:{window.left}:{window.top}"
        # Not exact, an odd size is rounded down to an even one.
        steps.append(f"crop={place}:exact=1")
    return ",".join(steps)


def _to_bt709(facts: SourceFacts) -> list[str]:
    """Makes square pixels of BT.709 in limited range, whatever they were."""
    size = (
        f"{facts.width}:{facts.height}:flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
    )
    if not (facts.hdr or facts.wide_gamut):
        # swscale takes each gray picture for a full one, so a limited one must stay as it is.
        levels = "full" if facts.gray or facts.full_range else "limited"
        made = "full" if facts.gray and not facts.full_range else "limited"
        source = f"in_color_matrix={facts.matrix}:in_range={levels}"
        return [
            f"scale={size}:{source}:out_color_matrix=bt709:out_range={made}",
            *(["format=yuv420p", "setparams=range=limited"] if facts.gray else []),
        ]
    # Both filters refuse a picture that lacks a tag.
    tags = f"color_primaries={facts.primaries}:color_trc={facts.transfer}"
    if not facts.is_rgb:
        levels = "full" if facts.full_range else "limited"
        tags += f":colorspace={_COLORSPACES[facts.matrix]}:range={levels}"
    tagged = [f"scale={size}", f"setparams={tags}"]
    if facts.primaries in P3 and not facts.hdr:
        # Cameras write P3 with BT.709's curve, which zscale would take for a display's.
        same = "format=yuv444p10" if not facts.is_rgb else f"format=gbrp,{_RGB_TO_YUV}"
        return [*tagged, same, "colorspace=all=bt709:range=tv:format=yuv444p10"]
    # In light, not in code values. BT.2408 puts white at 203 nits: what is darker than half of it
    # stays as it is, the rest up to 1000 nits is bent to fit below white (docs/decisions/0008).
    curve = ["tonemap=mobius:param=0.5:desat=0:peak=4.926"] if facts.hdr else []
    return [
        *tagged,
        "zscale=t=linear:npl=203",
        "format=gbrpf32le",
        "zscale=p=bt709",
        *curve,
        "zscale=t=bt709:m=bt709:r=limited",
    ]


def _read_exactly(pipe: IO[bytes], size: int) -> np.ndarray | None:
    """Returns the next `size` bytes, or None at the end; what is left of half a picture is
    dropped.
    """
    buffer = np.empty(size, np.uint8)
    view = buffer.data
    while view:
        count = pipe.readinto(view)  # type: ignore[attr-defined]  # a raw FileIO has it
        if not count:
            return None
        view = view[count:]
    return buffer


def _refuse_grown(stderr: str, max_pixels: int) -> None:
    """Raises MediaTooLarge where ffmpeg reports a frame that is too large: the size in a header, or
    the first frame's, is not every frame's.
    """
    if "exceeds specified max pixel count" in stderr:
        raise MediaTooLarge(
            f"The picture becomes too large within the video; {max_pixels} pixels are taken.",
            stderr,
        )


def _refuse_truncated(readable: float, promised: float, stderr: str) -> None:
    if promised - readable > max(MISSING_SECONDS, MISSING_SHARE * promised):
        sentence = (
            f"The video is damaged: only {readable:.1f} of {promised:.1f} seconds can be read."
        )
        raise InvalidMedia(sentence, stderr)
