"""A machine with a GPU's decoder and encoder, of which either fails when a test says so.

ffmpeg is the real one. A script before it takes the options of the GPU's codecs for those of the
CPU's, so that all pictures are real, and fails as a driver does.
"""

import sys

import imageio_ffmpeg

from gpu_worker.media.hardware import nvdec_works, nvenc_works

SCRIPT = """#!{python}
import os, subprocess, sys

FAILS = {fails!r}
arguments, real = sys.argv[1:], {real!r}
if "-hwaccel" in arguments:
    at = arguments.index("-hwaccel")
    # The trial's frames stay on the GPU, and are fetched by a filter.
    del arguments[at : at + (4 if "-hwaccel_output_format" in arguments else 2)]
    arguments = [word.removeprefix("hwdownload,") for word in arguments]
    codec = "decoder"
elif "h264_nvenc" in arguments:
    at = arguments.index("h264_nvenc")
    # -preset p5 -rc vbr -cq N -b:v 0
    arguments[at : at + 9] = ["libx264", "-preset", "ultrafast", "-crf", arguments[at + 6]]
    codec = "encoder"
else:
    os.execv(real, [real, *arguments])
with open({log!r}, "a") as log:
    log.write(codec + "\\n")
with open({log!r}) as log:
    started = log.read().split().count(codec)
if codec not in FAILS or started <= {trials}:
    os.execv(real, [real, *arguments])
left = FAILS[codec]
if codec == "decoder":
    ffmpeg = subprocess.Popen([real, *arguments], stdout=subprocess.PIPE)
    while left and (some := ffmpeg.stdout.read(min(left, 1 << 16))):
        sys.stdout.buffer.write(some)
        left -= len(some)
    sys.stdout.flush()
    ffmpeg.kill()
else:
    while left and (some := sys.stdin.buffer.read(min(left, 1 << 16))):
        left -= len(some)
sys.exit("[h264_nvenc] OpenEncodeSessionEx failed: out of memory (10): (no details)")
"""


class Chip:
    """The codecs of a GPU.

    Args:
        trials: how many times each works before it fails.
        fails: `decoder` or `encoder`, and after how many bytes of raw pictures each fails.
    """

    def __init__(self, folder, monkeypatch, trials=0, **fails):
        self._log = folder / "codecs.log"
        path = folder / "ffmpeg"
        path.write_text(
            SCRIPT.format(
                python=sys.executable,
                real=imageio_ffmpeg.get_ffmpeg_exe(),
                fails=fails,
                trials=trials,
                log=str(self._log),
            )
        )
        path.chmod(0o755)
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
        for trial in (nvdec_works, nvenc_works):
            trial.cache_clear()

    @property
    def used(self):
        """How often each was started, in order."""
        return self._log.read_text().split() if self._log.exists() else []
