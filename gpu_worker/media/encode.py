"""Encoding: frames and the sources' sound become one H.264 + AAC file that any player starts at
once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from gpu_worker.errors import FfmpegFailed, HardwareEncoderFailed, InvalidMedia, OutputTooLarge
from gpu_worker.host.guard import Guard
from gpu_worker.host.limits import usable_cores
from gpu_worker.media.ffmpeg import INPUT_OPTIONS, Ffmpeg, run_ffmpeg
from gpu_worker.media.frames import Frame
from gpu_worker.media.hardware import encoding

AUDIO_BITRATE = "192k"
#: x264's threads wait for one another: with twice its own default of 1.5 a core, two cores are busy
#: for 1.91 of 2 seconds, and not for 1.86 (1080x1920, `fast`). Each takes a few frames of memory.
THREADS_A_CORE, MOST_THREADS = 3, 24
#: What a filter graph for the sound gives out.
SOUND = "sound"
#: Set on the frames: ffmpeg 9 takes primaries and transfer of untagged raw frames over the
#: output's own options.
_BT709 = "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"


@dataclass(frozen=True)
class Quality:
    """libx264's knobs: crf 18 is hard to distinguish from the source. With `hardware`, NVENC at
    about the same quality.
    """

    preset: str = "fast"
    crf: int = 18
    hardware: bool = False

    def arguments(self) -> list[str]:
        """Returns ffmpeg's options of the video encoder."""
        if self.hardware:
            return encoding(self.crf)
        threads = min(THREADS_A_CORE * usable_cores(), MOST_THREADS)
        options = ("-preset", self.preset, "-crf", str(self.crf), "-threads", str(threads))
        return ["-c:v", "libx264", *options]


@dataclass(frozen=True)
class Sound:
    """Files, each read from a moment on and delayed (seconds), and the filter graph that makes
    SOUND of `1:a:0`, `2:a:0`, …
    """

    inputs: tuple[tuple[Path, float, float], ...]
    graph: str

    def arguments(self, graph: Path) -> list[str]:
        """Writes the graph to a file, since an argument may have 128 KiB; returns ffmpeg's inputs
        and graph. Pictures and subtitles of the files are not even read.
        """
        graph.write_text(self.graph)
        inputs: list[str] = []
        for path, seek, delay in self.inputs:
            begin = ["-ss", f"{seek:.6f}"] if seek else []
            begin += ["-itsoffset", f"{delay:.6f}"] if delay else []
            inputs += [*INPUT_OPTIONS, *begin, "-vn", "-sn", "-dn", "-i", str(path)]
        return [*inputs, "-/filter_complex", str(graph)]


class Encoder:
    """Takes frames in order."""

    def __init__(self, ffmpeg: Ffmpeg, path: Path, max_bytes: int) -> None:
        self._ffmpeg = ffmpeg
        self._path = path
        self._max_bytes = max_bytes

    def write(self, frame: Frame) -> None:
        """Appends a frame.

        Raises:
            FfmpegFailed: ffmpeg has ended; with its words.
            OutputTooLarge: the file has grown beyond the limit.
        """
        try:
            for plane in frame.planes:
                data = plane.contiguous().view(-1).numpy().data
                while data:
                    data = data[self._ffmpeg.stdin.write(data) :]
        except BrokenPipeError:
            self._ffmpeg.finish()
            raise
        if self._path.exists() and self._path.stat().st_size > self._max_bytes:
            raise OutputTooLarge(f"The result has become larger than {self._max_bytes} bytes.")


@contextmanager
def encode(
    path: Path,
    size: tuple[int, int],
    fps: Fraction,
    quality: Quality,
    sound: Sound | None,
    guard: Guard,
    max_bytes: int = 8 << 30,
) -> Iterator[Encoder]:
    """Writes `path` while entered; it is complete when the `with` was left without an error.

    Args:
        size: width and height of the frames to come.
        fps: their exact rate.

    Raises:
        FfmpegFailed: ffmpeg has ended badly.
        InvalidMedia: most of the sound cannot be decoded.
        HardwareEncoderFailed: the same, with the GPU's encoder.
    """
    rate = f"{fps.numerator}/{fps.denominator}"
    picture = (
        "-f",
        "rawvideo",
        "-pix_fmt",
        "yuv420p",
        "-s",
        f"{size[0]}x{size[1]}",
        "-framerate",
        rate,
    )
    sound_output = ["-an"]
    if sound is not None:
        sound_output = ["-map", f"[{SOUND}]", "-c:a", "aac", "-b:a", AUDIO_BITRATE]
    arguments = [
        *picture,
        *("-i", "pipe:0"),
        *(sound.arguments(path.with_suffix(".graph")) if sound else ()),
        *("-map", "0:v", *quality.arguments()),
        *("-profile:v", "high", "-pix_fmt", "yuv420p", "-vf", _BT709),
        *sound_output,
        *("-movflags", "+faststart", "-map_metadata", "-1", "-y", str(path)),
    ]
    try:
        with run_ffmpeg(arguments, guard, writes=True) as ffmpeg:
            yield Encoder(ffmpeg, path, max_bytes)
            ffmpeg.finish()
    except FfmpegFailed as error:
        if "Decode error rate" in error.detail:
            sentence = "The sound is damaged and cannot be decoded."
            raise InvalidMedia(sentence, error.detail) from error
        if not quality.hardware:
            raise
        raise HardwareEncoderFailed(str(error), error.detail) from error
