"""Clips made for a purpose, and how to measure what came out of them."""

import resource
import subprocess
from contextlib import contextmanager

import av
import imageio_ffmpeg
import numpy as np

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


@contextmanager
def growing_at_most(limit_bytes):
    """Fails where the process takes so many bytes more inside than it ever had before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown <= limit_bytes, f"{grown >> 20} MiB"


def make(path, *arguments, **kwargs):
    """Runs ffmpeg to make a file, and returns its path."""
    subprocess.run(
        [FFMPEG, "-v", "error", "-y", *map(str, arguments), str(path)], check=True, **kwargs
    )
    return path


def make_raw(path, frames, fps, *options):
    """Encodes (n, height, width) uint8 luma, losslessly, with neutral colour, tagged BT.709 limited
    range.
    """
    _, height, width = frames.shape
    neutral = np.full(2 * ((height + 1) // 2) * ((width + 1) // 2), 128, np.uint8).tobytes()
    raw = b"".join(frame.tobytes() + neutral for frame in frames)
    picture = [
        "-f",
        "rawvideo",
        "-pix_fmt",
        "yuv420p",
        "-s",
        f"{width}x{height}",
        "-framerate",
        fps,
        "-i",
        "pipe:0",
    ]
    tags = "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
    codec = ["-vf", tags, "-c:v", "libx264", "-qp", "0"]
    return make(path, *picture, *codec, *options, input=raw)


def flash_and_beep(path, *options, seconds=6, fps=25):
    """A black clip with a white flash and a beep, both 0.12 s long, at each whole second."""
    light = f"if(lt(mod(N\\,{fps})\\,{round(0.12 * fps)})\\,235\\,16)"
    flash = f"color=black:s=64x64:r={fps}:d={seconds},geq=lum='{light}':cb=128:cr=128"
    beep = f"aevalsrc='if(lt(mod(t\\,1)\\,0.12)\\,0.8*sin(2*PI*1000*t)\\,0)':s=48000:d={seconds}"
    inputs = ["-f", "lavfi", "-i", flash, "-f", "lavfi", "-i", beep]
    return make(
        path, *inputs, *options, "-c:v", "libx264", "-qp", "0", "-c:a", "aac", "-b:a", "192k"
    )


def luma(path):
    """Returns the decoded luma, (n, height, width) uint8, and each frame's time in seconds."""
    with av.open(str(path)) as container:
        decoded = [
            (frame.time, frame.to_ndarray(format="yuv420p")) for frame in container.decode(video=0)
        ]
        height = container.streams.video[0].height
    return np.stack([planes[:height] for _, planes in decoded]), np.array(
        [time for time, _ in decoded]
    )


def sound(path, rate=48_000):
    """Returns the sound as a player hears it: mono float32 from time 0 on, silence where there is
    none.
    """
    raw = subprocess.run(
        [
            *(FFMPEG, "-v", "error", "-i", str(path), "-map", "0:a:0"),
            *(
                "-af",
                "aresample=async=1:first_pts=0",
                "-f",
                "f32le",
                "-ac",
                "1",
                "-ar",
                str(rate),
                "pipe:1",
            ),
        ],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    return np.frombuffer(raw, np.float32)


def flashes(path):
    """Returns the times at which the picture turns white."""
    pictures, times = luma(path)
    bright = pictures.mean(axis=(1, 2)) > 125
    return times[bright & ~np.r_[False, bright[:-1]]]


def beeps(path, rate=48_000):
    """Returns when each beep begins and ends, (n, 2): where 2 ms windows get loud after, or before,
    50 ms of silence.
    """
    samples = np.abs(sound(path, rate))
    window = rate // 500
    loud = samples[: len(samples) // window * window].reshape(-1, window).max(axis=1) > 0.2
    quiet = np.concatenate([np.zeros(25, bool), loud, np.zeros(25, bool)])
    begins = [i for i in np.flatnonzero(loud) if not quiet[i : i + 25].any()]
    ends = [i + 1 for i in np.flatnonzero(loud) if not quiet[i + 26 : i + 51].any()]
    return np.array([begins, ends]).T * window / rate


def psnr(a, b):
    """Returns the peak signal-to-noise ratio of two uint8 arrays, in dB."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)
