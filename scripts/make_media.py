"""Makes files of every kind that people upload: `scripts/make-media FOLDER`.

All show one picture: four coloured corners, so that a turn, a mirror, a wrong matrix or a stretch
shows, and a white bar along the lower edge that grows with time, so that a wrong moment shows.
Nothing of it is committed.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np

WIDTH, HEIGHT, FPS, SECONDS = 192, 144, 25, 2.0
#: R, G, B at the top left, top right, lower left and lower right.
CORNERS = ((180, 30, 30), (30, 150, 30), (40, 40, 180), (200, 180, 40))
MIDDLE = (110, 110, 110)
BAR_ROWS = 1 / 6

Make = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One file, and what is to become of it.

    Attributes:
        error: the code that every job with it ends in; None where it is to be exported.
        shift: which moment of the film is at the file's beginning, in seconds.
        seconds: how long its picture is.
        tolerance: how far off a colour may be, of 255; wider where light is tone-mapped or a codec
            is coarse.
        slack: how far off the moment shown may be, in seconds.
    """

    name: str
    about: str
    make: Make = field(repr=False)
    error: str | None = None
    shift: float = 0.0
    seconds: float = SECONDS
    tolerance: float = 8.0
    slack: float = 0.06


def film(
    path: Path,
    *options: str,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    fps: str = str(FPS),
    seconds: float = SECONDS,
    filters: str = "",
    sound: str | None = "sine=440:d=2",
    before_sound: tuple[str, ...] = (),
    alpha: bool = False,
) -> None:
    """Encodes the film with ffmpeg's options.

    `filters` come before the conversion that the codec needs.
    """
    width, height = size
    rate = float(eval_rate(fps))
    count = max(1, round(seconds * rate))
    frames = b"".join(picture(n / rate, width, height, alpha).tobytes() for n in range(count))
    video = (
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgba" if alpha else "rgb24",
        "-s",
        f"{width}x{height}",
        "-r",
        fps,
    )
    audio = (*before_sound, "-f", "lavfi", "-i", sound) if sound else ()
    graph = ("-vf", filters) if filters else ()
    ffmpeg(*video, "-i", "pipe:0", *audio, *graph, *options, str(path), given=frames)


def picture(moment: float, width: int, height: int, alpha: bool = False) -> np.ndarray:
    """Draws the film at a moment: (height, width, 3 or 4) uint8 R, G, B.

    With alpha, the right half is half transparent.
    """
    rgb = np.empty((height, width, 3), np.uint8)
    rgb[:] = MIDDLE
    for (row, column), colour in zip(((0, 0), (0, 1), (1, 0), (1, 1)), CORNERS, strict=True):
        top, left = row * height * 11 // 24, column * width * 5 // 8
        rgb[top : top + height * 3 // 8, left : left + width * 3 // 8] = colour
    bar = height - round(height * BAR_ROWS)
    rgb[bar:] = 16
    rgb[bar:, : round(width * min(1.0, moment / SECONDS))] = 235
    if not alpha:
        return rgb
    opacity = np.full((height, width, 1), 255, np.uint8)
    opacity[:, width // 2 :] = 128
    return np.concatenate([rgb, opacity], axis=2)


def eval_rate(text: str) -> float:
    """Reads `25` or `30000/1001`."""
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom or 1)


def ffmpeg(*arguments: str, given: bytes | None = None) -> bytes:
    """Runs ffmpeg and returns what it wrote to stdout."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments]
    return subprocess.run(command, input=given, check=True, stdout=subprocess.PIPE).stdout


H264 = ("-c:v", "libx264", "-crf", "12", "-preset", "veryfast", "-pix_fmt", "yuv420p")
SDR = "scale=out_color_matrix=bt709:out_range=limited"


def _tagged(matrix: str, spread: str = "limited", size: str = "") -> str:
    tags = {"bt709": "bt709", "bt601": "smpte170m", "bt2020": "bt2020nc"}[matrix]
    primaries = {"bt709": "bt709", "bt601": "smpte170m", "bt2020": "bt709"}[matrix]
    return (
        f"scale={size}out_color_matrix={matrix}:out_range={spread},format=yuv420p,"
        f"setparams=colorspace={tags}:color_primaries={primaries}:color_trc=bt709:"
        f"range={'pc' if spread == 'full' else 'tv'}"
    )


def _hdr(transfer: str) -> str:
    return (
        "format=gbrpf32le,setparams=colorspace=gbr:color_primaries=bt709:color_trc=bt709:range=pc,"
        f"zscale=t=linear:npl=203,zscale=p=bt2020:t={transfer}:m=bt2020nc:r=limited:npl=203,"
        "format=yuv420p10le"
    )


def _copied(path: Path, *options: str, before: tuple[str, ...] = (), filters: str = SDR) -> None:
    """Makes a plain film and copies its packets with other options."""
    plain = path.with_name("plain-" + path.name)
    film(plain, *H264, "-g", "10", filters=filters)
    ffmpeg(*before, "-i", str(plain), "-map", "0", "-c", "copy", *options, str(path))
    plain.unlink()


def _cut_short(path: Path) -> None:
    film(path, *H264, "-movflags", "+faststart", filters=SDR)
    body = path.read_bytes()
    path.write_bytes(body[: len(body) * 55 // 100])


def _without_moov(path: Path) -> None:
    film(path, *H264, filters=SDR)
    body = path.read_bytes()
    path.write_bytes(body[: body.index(b"moov") - 4])


def _damaged(path: Path, frames: range) -> None:
    """Overwrites the middle of these frames, of which every twelfth is a key frame."""
    film(path, *H264, "-g", "12", "-bf", "0", "-x264-params", "scenecut=0", filters=SDR, sound=None)
    with av.open(str(path)) as container:
        places = [
            (packet.pos, packet.size)
            for packet in container.demux(video=0)
            if packet.pos is not None
        ]
    body = bytearray(path.read_bytes())
    for position, size in places[frames.start : frames.stop : frames.step]:
        body[position + size // 2 : position + size // 2 + 12] = bytes(range(243, 255))
    path.write_bytes(body)


def _piped(path: Path, *options: str) -> None:
    """Writes to a pipe, as a browser's recorder does.

    Nothing can be filled in afterwards, so the file does not have its length.
    """
    plain = path.with_name("plain.mkv")
    film(
        plain,
        "-c:v",
        "libvpx",
        "-b:v",
        "2M",
        "-deadline",
        "realtime",
        "-c:a",
        "libopus",
        filters="scale=out_color_matrix=bt601:out_range=limited",
    )
    path.write_bytes(ffmpeg("-i", str(plain), "-c", "copy", *options, "pipe:1"))
    plain.unlink()


def _written(body: bytes) -> Make:
    return lambda path: path.write_bytes(body)


def _many_streams(path: Path) -> None:
    maps = [part for n in range(40) for part in ("-map", "1:a")]
    film(
        path, *H264, "-map", "0:v", *maps, "-c:a", "pcm_s16le", filters=SDR, sound="sine=440:d=0.1"
    )


def _huge(path: Path) -> None:
    ffmpeg(
        "-f",
        "lavfi",
        "-i",
        "color=gray:s=9000x5000:r=25:d=0.04,format=gray",
        "-c:v",
        "png",
        str(path),
    )


def _cover(path: Path) -> None:
    cover = path.with_name("cover.png")
    ffmpeg("-f", "lavfi", "-i", "color=red:s=64x64:d=0.04", "-frames:v", "1", str(cover))
    plain = path.with_name("plain.mp4")
    film(plain, *H264, filters=SDR)
    ffmpeg(
        "-i", str(cover), "-i", str(plain), "-map", "0", "-map", "1", "-c", "copy",
        "-disposition:v:0", "attached_pic", str(path),
    )  # fmt: skip


def _gap(path: Path) -> None:
    """A recording that paused: no frame from 0.8 to 1.4 s."""
    film(path, *H264, "-fps_mode", "vfr", filters=f"{SDR},select='not(between(t,0.8,1.39))'")


def _joined(path: Path) -> None:
    """Two recordings, one after the other, as `cat` joins them: the clock jumps back."""
    plain = path.with_name(f"plain-{path.name}.mp4")
    film(plain, *H264, filters=SDR)
    halves = [path.with_name(f"{start}-{path.name}") for start in ("0", "1")]
    for half, start in zip(halves, ("0", "1"), strict=True):
        ffmpeg("-ss", start, "-t", "1", "-i", str(plain), *H264, str(half))
    path.write_bytes(b"".join(half.read_bytes() for half in halves))
    for made in (plain, *halves):
        made.unlink()


def _changing_sound(path: Path) -> None:
    """Stereo, then 5.1 at another rate."""
    film(path, *H264, "-g", "25", filters=SDR)
    halves = [path.with_name(f"{channels}.ts") for channels in ("2", "6")]
    for half, start, rate in zip(halves, ("0", "1"), ("48000", "32000"), strict=True):
        sound = ("-c:a", "ac3", "-ac", half.stem, "-ar", rate)
        ffmpeg("-ss", start, "-t", "1", "-i", str(path), *H264, *sound, str(half))
    listed = path.with_name("halves.txt")
    listed.write_text("".join(f"file {half.name}\n" for half in halves))
    ffmpeg("-f", "concat", "-i", str(listed), "-c", "copy", str(path))
    for made in (*halves, listed):
        made.unlink()


def _made(*options: str, **how: object) -> Make:
    return lambda path: film(path, *options, **how)  # type: ignore[arg-type]


VFR = f"{SDR},select='if(lt(t,1),1,not(mod(n,3)))'"
INTERLACED = f"fps=50,{SDR},format=yuv420p,interlace=scan=tff:lowpass=off,setfield=tff"
BT601 = "scale=out_color_matrix=bt601:out_range=limited,format=yuv420p"
LINES_720 = "scale=960:720:flags=neighbor:out_color_matrix=bt709:out_range=limited,format=yuv420p"

CASES = (
    Case("plain.mp4", "H.264, AAC, moov at the end", _made(*H264, filters=SDR)),
    Case("faststart.mp4", "moov at the beginning", _made(*H264, "-movflags", "+faststart",
        filters=SDR)),
    Case("fragmented.mp4", "fragments, as recorders write", _made(*H264, "-movflags",
        "frag_keyframe+empty_moov", "-g", "10", "-bf", "0", filters=SDR)),
    Case("rotated90.mp4", "turned by 90° in its header", lambda p: _copied(p,
        before=("-display_rotation", "90"), filters=f"transpose=clock,{SDR}")),
    Case("rotated180.mp4", "turned by 180° in its header", lambda p: _copied(p,
        before=("-display_rotation", "180"), filters=f"hflip,vflip,{SDR}")),
    Case("vfr.mp4", "variable frame rate", _made(*H264, "-fps_mode", "vfr", filters=VFR),
        slack=0.14),
    Case("gap.mp4", "a pause of 0.6 s in the picture", _gap, slack=0.66),
    Case("edit-list.mp4", "cut with an edit list, from 0.72 s on", lambda p: _copied(p,
        before=("-ss", "0.72")), shift=0.72, seconds=1.28),
    Case("offset.mkv", "both streams start at 1.5 s", lambda p: _copied(p, "-output_ts_offset",
        "1.5")),
    Case("late-picture.mkv", "the picture starts 0.4 s after the sound", _made(*H264,
        filters=f"{SDR},setpts=PTS+0.4/TB", sound="sine=440:d=2.4"), shift=-0.4, seconds=2.4),
    Case("late-sound.mp4", "the sound starts 0.5 s after the picture", _made(*H264, filters=SDR,
        before_sound=("-itsoffset", "0.5"))),
    Case("b-frames.mp4", "three B-frames in a row", _made(*H264, "-bf", "3", "-g", "50",
        filters=SDR)),
    Case("open-gop.mp4", "open groups of pictures", _made(*H264, "-x264-params",
        "open-gop=1:keyint=8:bframes=3", filters=SDR)),
    Case("hevc-open-gop.mp4", "HEVC, open groups of pictures", _made("-c:v", "libx265", "-crf",
        "12", "-preset", "ultrafast", "-x265-params",
        "log-level=none:open-gop=1:keyint=12:bframes=4", "-pix_fmt", "yuv420p", filters=SDR)),
    Case("intra-refresh.mp4", "H.264, renewed part by part", _made(*H264, "-x264-params",
        "intra-refresh=1:keyint=12", filters=SDR)),
    Case("interlaced.mp4", "interlaced, top field first", _made(*H264, "-flags", "+ilme+ildct",
        "-x264-params", "tff=1", filters=INTERLACED)),
    Case("sar.mp4", "pixels of 4:3", _made(*H264, size=(144, 144), filters=f"{SDR},setsar=4/3")),
    Case("odd.webm", "an odd size", _made("-c:v", "libvpx-vp9", "-crf", "15", "-b:v", "0",
        "-cpu-used", "8", "-pix_fmt", "yuv420p", "-c:a", "libopus", size=(191, 143), filters=SDR)),
    Case("yuv444.mp4", "4:4:4", _made("-c:v", "libx264", "-crf", "12", "-pix_fmt", "yuv444p",
        filters=SDR)),
    Case("prores422.mov", "ProRes 4:2:2, 10 bit, PCM sound", _made("-c:v", "prores_ks",
        "-profile:v", "2", "-pix_fmt", "yuv422p10le", "-c:a", "pcm_s16le", filters=SDR)),
    Case("hevc10.mp4", "HEVC, 10 bit", _made("-c:v", "libx265", "-crf", "14", "-preset",
        "ultrafast", "-x265-params", "log-level=none", "-tag:v", "hvc1", "-pix_fmt", "yuv420p10le",
        filters=SDR)),
    Case("hdr-pq.mp4", "HDR10 (PQ, BT.2020), tone-mapped", _made("-c:v", "libx265", "-crf", "14",
        "-preset", "ultrafast", "-x265-params", "log-level=none", "-tag:v", "hvc1",
        filters=_hdr("smpte2084")), tolerance=16),
    Case("hdr-hlg.mp4", "HLG, BT.2020, tone-mapped", _made("-c:v", "libx265", "-crf", "14",
        "-preset", "ultrafast", "-x265-params", "log-level=none", "-tag:v", "hvc1",
        filters=_hdr("arib-std-b67")), tolerance=16),
    Case("full-range.mp4", "full range", _made(*H264, filters=_tagged("bt709", "full"))),
    Case("bt601.mp4", "BT.601, tagged", _made(*H264, filters=_tagged("bt601"))),
    Case("untagged-sd.avi", "untagged, small: BT.601", _made("-c:v", "mpeg4", "-q:v", "2", "-c:a",
        "libmp3lame",
        filters=f"{BT601},setparams=colorspace=unknown")),
    Case("untagged-hd.mp4", "untagged, 720 lines: BT.709", _made(*H264, seconds=0.4,
        filters=f"{LINES_720},setparams=colorspace=unknown"),
        seconds=0.4),
    Case("bt2020.mp4", "BT.2020 matrix without HDR", _made(*H264, filters=_tagged("bt2020"))),
    Case("rgb.mkv", "RGB", _made("-c:v", "ffv1", "-pix_fmt", "gbrp", "-c:a", "flac")),
    Case("alpha.webm", "transparency (VP9), on black", _made("-c:v", "libvpx-vp9", "-crf", "12",
        "-b:v", "0", "-cpu-used", "8", "-pix_fmt", "yuva420p", "-auto-alt-ref", "0", "-c:a",
        "libopus", filters=SDR, alpha=True), tolerance=10),
    Case("alpha.mov", "transparency (ProRes 4444), on black", _made("-c:v", "prores_ks",
        "-profile:v", "4", "-pix_fmt", "yuva444p10le", filters=SDR, alpha=True)),
    Case("streams.mkv", "two pictures, two sounds", _made(*H264, "-map", "0:v", "-map", "1:a",
        "-map", "1:a", "-map", "0:v", filters=SDR)),
    Case("cover.mp4", "a cover picture as its first stream", _cover),
    Case("silent.mp4", "no sound", _made(*H264, filters=SDR, sound=None)),
    Case("mono-mp3.mkv", "mono MP3 at 44.1 kHz", _made(*H264, "-c:a", "libmp3lame", "-ar", "44100",
        filters=SDR)),
    Case("surround.mp4", "5.1 sound", _made(*H264, "-ac", "6", filters=SDR)),
    Case("opus.webm", "VP9 and Opus", _made("-c:v", "libvpx-vp9", "-crf", "15", "-b:v", "0",
        "-cpu-used", "8", "-pix_fmt", "yuv420p", "-c:a", "libopus", filters=SDR)),
    Case("pcm.mov", "PCM sound", _made(*H264, "-c:a", "pcm_s24le", filters=SDR)),
    Case("short-sound.mp4", "sound that ends after 0.7 s", _made(*H264, filters=SDR,
        sound="sine=440:d=0.7")),
    Case("long-sound.mkv", "sound that goes on for 5 s", _made(*H264, filters=SDR,
        sound="sine=440:d=5")),
    Case("recorder.webm", "a browser's recording, which says no length", lambda p: _piped(p, "-f",
        "webm", "-live", "1")),
    Case("stream.ts", "MPEG transport stream", _made(*H264, "-f", "mpegts", filters=SDR)),
    Case("mpeg2.ts", "MPEG-2, AC-3", _made("-c:v", "mpeg2video", "-q:v", "2", "-pix_fmt", "yuv420p",
        "-c:a", "ac3", filters=_tagged("bt709"))),
    Case("joined.ts", "two recordings joined, the clock jumps", _joined),
    Case("changing-sound.mkv", "sound that becomes 5.1 at another rate", _changing_sound),
    Case("av1.mp4", "AV1", _made("-c:v", "libsvtav1", "-preset", "12", "-crf", "12", "-pix_fmt",
        "yuv420p", "-svtav1-params", "avif=0", filters=SDR)),
    Case("flash.flv", "FLV", _made(*H264, "-ar", "44100", filters=SDR)),
    Case("windows.wmv", "WMV", _made("-c:v", "wmv2", "-q:v", "2", "-c:a", "wmav2",
        filters=BT601)),
    Case("animated.gif", "GIF, 256 colours, 25 frames a second", _made("-c:v", "gif", sound=None,
        filters="split[a][b];[a]palettegen=stats_mode=full[p];[b][p]paletteuse=dither=none"),
        tolerance=16),
    Case("theora.ogv", "Theora, Vorbis", _made("-c:v", "libtheora", "-q:v", "10", "-pix_fmt",
        "yuv420p", "-c:a", "libvorbis", filters=BT601)),
    Case("broadcast.mxf", "MXF, MPEG-2", _made("-c:v", "mpeg2video", "-q:v", "2", "-pix_fmt",
        "yuv420p", "-c:a", "pcm_s16le", "-ar", "48000", filters=_tagged("bt709"))),
    Case("dvd.mpg", "MPEG program stream, MPEG-2", _made("-f", "mpeg", "-c:v", "mpeg2video", "-q:v",
        "2", "-pix_fmt", "yuv420p", "-c:a", "mp2", filters=_tagged("bt709"))),
    Case("ntsc.mp4", "30000/1001 frames a second", _made(*H264, fps="30000/1001", filters=SDR)),
    Case("fast.mp4", "120 frames a second", _made(*H264, fps="120", filters=SDR)),
    Case("one-frame.mp4", "a single frame", _made(*H264, seconds=0.04, sound=None, filters=SDR),
        seconds=0.04),
    Case("corrupt.mp4", "a damaged packet, concealed until the next key frame",
        lambda p: _damaged(p, range(15, 16)), slack=0.5),
    Case("corrupt-all.mp4", "every packet damaged", lambda p: _damaged(p, range(50)),
        "invalid_media"),
    Case("truncated.mp4", "the second half is missing", _cut_short, "invalid_media"),
    Case("no-moov.mp4", "moov is missing", _without_moov, "invalid_media"),
    Case("empty.mp4", "zero bytes", _written(b""), "invalid_media"),
    Case("text.mp4", "text", _written(b"dear diary " * 99), "invalid_media"),
    Case("noise.mp4", "noise", _written(bytes(np.random.default_rng(1).integers(0, 256, 9999,
        np.uint8))), "invalid_media"),
    Case("picture.mp4", "a PNG", lambda p: ffmpeg("-f", "lavfi", "-i", "color=red:s=64x64",
        "-frames:v", "1", "-f", "image2", "-c:v", "png", str(p)), "invalid_media"),
    Case("sound.mp4", "sound alone", lambda p: ffmpeg("-f", "lavfi", "-i", "sine=d=1", str(p)),
        "invalid_media"),
    Case("playlist.mp4", "a playlist (M3U8)", _written(b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"),
        "unsupported_media"),
    Case("script.mp4", "a concat script", _written(b"ffconcat version 1.0\nfile /etc/passwd\n"),
        "unsupported_media"),
    Case("manifest.mp4", "a DASH manifest", _written(b"<?xml version='1.0'?><MPD><Period/></MPD>"),
        "unsupported_media"),
    Case("raw.y4m", "raw video (Y4M)", _written(b"YUV4MPEG2 W16 H16 F25:1\nFRAME\n"),
        "unsupported_media"),
    Case("photo.heic", "a photo (HEIC)", _written(b"\0\0\0\x18ftypheic" + b"\0" * 64),
        "unsupported_media"),
    Case("page.mp4", "a web page", _written(b"<!doctype html><title>404</title>"), "invalid_media"),
    Case("huge.mov", "9000x5000 pixels", _huge, "media_too_large"),
    Case("endless.mkv", "8 hours long", _made(*H264, fps="1/3600", seconds=8 * 3600, sound=None,
        filters=SDR), "media_too_long"),
    Case("crowded.mkv", "41 streams", _many_streams, "too_many_streams"),
)  # fmt: skip


def main(folder: Path) -> None:
    """Makes all files."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        case.make(folder / case.name)
        print(f"{case.name:20} {(folder / case.name).stat().st_size:>9,} bytes  {case.about}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "media"))
