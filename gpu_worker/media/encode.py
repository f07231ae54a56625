"""Encoding: frames become an H.264 file."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from gpu_worker.errors import FfmpegFailed, HardwareEncoderFailed, OutputTooLarge
from gpu_worker.host.guard import Guard
from gpu_worker.host.limits import usable_cores
from gpu_worker.media.ffmpeg import Ffmpeg, run_ffmpeg
from gpu_worker.media.frames import Frame
from gpu_worker.media.hardware import encoding

#: x264's threads wait for one another: with twice its own default of 1.5 a core, two cores are busy
#: for 1.91 of 2 seconds, and not for 1.86 (1080x1920, `fast`). Each takes a few frames of memory.
THREADS_A_CORE, MOST_THREADS = 3, 24
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
    guard: Guard,
    max_bytes: int = 8 << 30,
) -> Iterator[Encoder]:
    """Writes `path` while entered; it is complete when the `with` was left without an error.

    Args:
        size: width and height of the frames to come.
        fps: their exact rate.

    Raises:
        FfmpegFailed: ffmpeg has ended badly.
        HardwareEncoderFailed: the same, with the GPU's encoder.
    """
    rate = f"{fps.numerator}/{fps.denominator}"
    # -r beside -framerate: ffmpeg takes a rate that is near to a usual one for that one.
    arguments = [
        *("-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{size[0]}x{size[1]}"),
        *("-framerate", rate, "-r", rate, "-i", "pipe:0"),
        *quality.arguments(),
        *("-profile:v", "high", "-pix_fmt", "yuv420p", "-vf", _BT709),
        *("-y", str(path)),
    ]
    try:
        with run_ffmpeg(arguments, guard, writes=True) as ffmpeg:
            yield Encoder(ffmpeg, path, max_bytes)
            ffmpeg.finish()
    except FfmpegFailed as error:
        if not quality.hardware:
            raise
        raise HardwareEncoderFailed(str(error), error.detail) from error
