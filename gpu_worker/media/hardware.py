"""The GPU's video decoder and encoder, as ffmpeg calls them: options, limits, trials.

Both may fail at any time: a driver without them, a container without `video` among its
`NVIDIA_DRIVER_CAPABILITIES`, a form of a codec that the chip does not take, all sessions of the
host in use. So a trial decides whether they are used at all, and software takes over the file or
the job in which they fail.
"""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import structlog

from gpu_worker.errors import WorkerError
from gpu_worker.host.guard import Guard
from gpu_worker.media.ffmpeg import run_ffmpeg

log = structlog.get_logger(__name__)

#: ffmpeg's word for NVDEC. Where it cannot take a file, ffmpeg decodes that on the CPU.
DECODING = ("-hwaccel", "cuda")
#: The frames stay on the GPU: there is no decoding on the CPU without an error.
_DECODING_THERE = (*DECODING, "-hwaccel_output_format", "cuda")
#: The sides that NVENC takes for H.264, from Turing on (NVIDIA Video Codec SDK, "NVENC Application
#: Note"); the smallest are those that its driver reports.
MIN_WIDTH, MIN_HEIGHT, MAX_SIDE = 145, 49, 4096


@dataclass
class HardwareDecoder:
    """The GPU's decoder, for one file of a job."""

    failed: bool = False

    def fail(self, detail: str) -> None:
        """Leaves the rest of the file to the CPU."""
        log.warning("hardware_decoder_failed", detail=detail)
        self.failed = True


def encoding(crf: int) -> list[str]:
    """Returns ffmpeg's options for NVENC, at about the quality of libx264's `crf`."""
    rate = ("-rc", "vbr", "-cq", str(crf + 1), "-b:v", "0")
    return ["-c:v", "h264_nvenc", "-preset", "p5", *rate]


def encodes(width: int, height: int) -> bool:
    """True for a size that NVENC takes."""
    return MIN_WIDTH <= width <= MAX_SIDE and MIN_HEIGHT <= height <= MAX_SIDE


@functools.cache
def nvenc_works() -> bool:
    """True where a short encode on the GPU succeeds: ffmpeg lists NVENC also where there is none,
    and some data-centre GPUs have none.
    """
    source = ("-f", "lavfi", "-i", "color=black:s=256x256:r=25:d=0.2")
    return _succeeds([*source, *encoding(18), "-f", "null", "-"])


@functools.cache
def nvdec_works() -> bool:
    """True where the GPU decodes a short film; ffmpeg lists NVDEC also where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        film = str(Path(folder) / "film.mp4")
        grey = ("-f", "lavfi", "-i", "color=gray:s=256x256:r=25:d=0.2", "-c:v", "libx264")
        download = ("-vf", "hwdownload,format=nv12", "-f", "null", "-")
        return _succeeds([*grey, film]) and _succeeds([*_DECODING_THERE, "-i", film, *download])


def _succeeds(arguments: list[str]) -> bool:
    try:
        with run_ffmpeg(arguments, Guard(60)) as ffmpeg:
            ffmpeg.finish()
    except WorkerError:
        return False
    return True
