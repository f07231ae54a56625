"""Encoding: frames and the source's sound become one H.264 + AAC file that any player starts at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from gpu_worker.ffmpeg import INPUT_OPTIONS, Ffmpeg, run_ffmpeg
from gpu_worker.frames import Frame

AUDIO_BITRATE = "192k"
#: What a filter graph for the sound takes in and gives out.
SOUND_IN, SOUND_OUT = "1:a:0", "sound"
#: Said on the frames: ffmpeg 9 takes primaries and transfer of untagged raw frames over the output's own options.
_BT709 = "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"


@dataclass(frozen=True)
class Quality:
    """libx264's knobs: crf 18 is hard to tell from the source."""

    preset: str = "fast"
    crf: int = 18


class Encoder:
    """Takes frames in order."""

    def __init__(self, ffmpeg: Ffmpeg) -> None:
        self._ffmpeg = ffmpeg

    def write(self, frame: Frame) -> None:
        """Appends a frame; raises FfmpegFailed with ffmpeg's words where ffmpeg has ended."""
        try:
            for plane in frame.planes:
                data = memoryview(plane.contiguous().cpu().numpy().tobytes())
                while data:
                    data = data[self._ffmpeg.stdin.write(data) :]
        except BrokenPipeError:
            self._ffmpeg.finish()
            raise


@contextmanager
def encode(
    path: Path,
    size: tuple[int, int],
    fps: Fraction,
    quality: Quality,
    sound: tuple[Path, str] | None,
) -> Iterator[Encoder]:
    """Writes `path` while entered; it is complete when the `with` was left without an error.

    Args:
        size: width and height of the frames to come.
        fps: their exact rate.
        sound: a file with an audio track, and the filter graph that makes SOUND_OUT of SOUND_IN.
    """
    rate = f"{fps.numerator}/{fps.denominator}"
    picture = ("-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{size[0]}x{size[1]}", "-framerate", rate)
    sound_input: list[str] = []
    sound_output = ["-an"]
    if sound is not None:
        source, graph = sound
        sound_input = [*INPUT_OPTIONS, "-i", str(source), "-filter_complex", graph]
        sound_output = ["-map", f"[{SOUND_OUT}]", "-c:a", "aac", "-b:a", AUDIO_BITRATE]
    arguments = [
        *picture,
        *("-i", "pipe:0"),
        *sound_input,
        *("-map", "0:v", "-c:v", "libx264", "-preset", quality.preset, "-crf", str(quality.crf)),
        *("-profile:v", "high", "-pix_fmt", "yuv420p", "-vf", _BT709),
        *sound_output,
        *("-movflags", "+faststart", "-map_metadata", "-1", "-y", str(path)),
    ]
    with run_ffmpeg(arguments, writes=True) as ffmpeg:
        yield Encoder(ffmpeg)
        ffmpeg.finish()
