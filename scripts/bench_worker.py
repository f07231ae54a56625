"""Measures the worker beside ffmpeg alone, or beside upstream's Real-ESRGAN.

`scripts/bench-worker --edit [--rounds N] [--memory-minutes M]`, or `--upscale`.

Each job type runs beside the same edit as one ffmpeg filter graph, with the same encoder settings,
in turns on the same machine. A ratio is ffmpeg's seconds by ours: 1 means as fast, above it faster.
The last line is one JSON object.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import torch
from sample import sample_clip

from gpu_worker.edits.caption import caption
from gpu_worker.edits.compose import Kit, Source, compose
from gpu_worker.edits.fonts import Fonts
from gpu_worker.host.guard import Guard
from gpu_worker.host.process import prepare_process
from gpu_worker.media.encode import Quality
from gpu_worker.media.probe import output_facts, probe
from gpu_worker.render.render import render
from schemas.edits import OutputParams
from schemas.jobs import JobType
from schemas.overlays import AnnotatedClip

CPU = torch.device("cpu")
ENCODER = (
    *(
        "-c:v",
        "libx264",
        "-preset",
        "fast",
        "-crf",
        "18",
        "-profile:v",
        "high",
        "-pix_fmt",
        "yuv420p",
    ),
    *("-c:a", "aac", "-b:a", "192k", "-movflags", "+faststart"),
)
FONT = "ttf_opensans/ttf/OpenSans-Bold.ttf"


@dataclass(frozen=True)
class Pair:
    """An edit as ours and as ffmpeg's: inputs, filter graph with outputs [v] and [a]."""

    job_type: JobType
    params: dict[str, Any]
    inputs: tuple[str, ...]
    graph: str


def pairs(clip: Path, folder: Path) -> list[Pair]:
    """Returns one pair a type; the clip is 1280x720, 25 fps, 5.28 s."""
    pan = [
        {"time": 0.0, "x": 0.0, "y": 0.0, "width": 405.0, "height": 720.0},
        {"time": 5.0, "x": 875.0, "y": 0.0, "width": 405.0, "height": 720.0},
    ]
    moving = "crop=405:720:'min(875,175*t)':0,scale=1080:1920:flags=bicubic,setsar=1"
    source = ("-i", str(clip))
    stereo = "aformat=channel_layouts=stereo:sample_rates=48000"
    return [
        Pair(
            JobType.FRAMING, {"crop_keyframes": pan}, source, f"[0:v]{moving}[v];[0:a]{stereo}[a]"
        ),
        _overlay(source, stereo),
        _annotate(clip, folder, stereo),
        Pair(
            JobType.MULTI_CLIP,
            {
                "clips": [
                    {"input_key": "a", "crop_keyframes": pan, "end_time": 3.0},
                    {"input_key": "a", "start_time": 2.0, "end_time": 5.0},
                ],
                "transition": {"type": "dissolve", "duration": 0.5},
            },
            (*source, *source),
            f"[0:v]trim=0:3,{moving}[x];[1:v]trim=2:5,setpts=PTS-STARTPTS,crop=405:720,"
            "scale=1080:1920:flags=bicubic,setsar=1[y];[x]settb=1/25[x1];[y]settb=1/25[y1];"
            "[x1][y1]xfade=duration=0.5:offset=2.5[v];"
            f"[0:a]{stereo},atrim=0:3[s];[1:a]{stereo},atrim=2:5,asetpts=PTS-STARTPTS[t];"
            "[s][t]acrossfade=d=0.5[a]",
        ),
    ]


def _overlay(source: tuple[str, ...], stereo: str) -> Pair:
    """A moving ellipse with everything else 30 % darker, and a title."""
    keys = [
        {"time": 0.0, "x": 300.0, "y": 360.0, "radius_x": 120.0, "radius_y": 160.0},
        {"time": 5.0, "x": 900.0, "y": 360.0, "radius_x": 120.0, "radius_y": 160.0},
    ]
    region = {"start_time": 0.0, "end_time": 5.28, "keyframes": keys}
    title = {"text": "Big Buck Bunny", "x": 60.0, "y": 60.0, "font_size": 48.0, "bold": True}
    # A veil of twice the size with a hole, made once and moved.
    distance = "(hypot((X-1280)/120,(Y-720)/160)-1)*138"
    veil = (
        "color=black:s=2560x1440:r=25:d=0.04,format=yuva444p,"
        f"geq=lum='if(lt(abs({distance}),1.5),235,16)':cb=128:cr=128:"
        f"a='if(lt(abs({distance}),1.5),217,76*clip(0.5+{distance}/12,0,1))',"
        "format=yuva420p,loop=-1:1,setpts=N/25/TB[veil]"
    )
    spec = importlib.util.find_spec("ttf_opensans")
    assert spec is not None
    assert spec.origin is not None
    font = Path(spec.origin).parents[1] / FONT
    text = (
        f"drawtext=fontfile={font}:text='Big Buck Bunny':x=60:y=60:fontsize=48:fontcolor=white:"
        "alpha='min(1,t/0.25)'"
    )
    graph = (
        f"{veil};[0:v][veil]overlay=x='300-1280+120*min(t,5)':y='360-720':shortest=1,{text}[v];"
        f"[0:a]{stereo}[a]"
    )
    params = {"effect_type": "dark_overlay", "highlight_regions": [region], "text_layers": [title]}
    return Pair(JobType.OVERLAY, params, source, graph)


def _annotate(clip: Path, folder: Path, stereo: str) -> Pair:
    """Three captioned clips; ffmpeg gets the same captions as pictures."""
    asked = [
        {
            "start_time": at,
            "end_time": at + 1.5,
            "name": f"Clip {at}",
            "notes": "What there is to see.",
            "rating": 4,
        }
        for at in (0.5, 2.0, 3.6)
    ]
    inputs: list[str] = []
    video, sound = [], []
    for n, one in enumerate(asked):
        card = caption(AnnotatedClip.model_validate(one), (1280, 720), Fonts())
        assert card is not None
        path = folder / f"card{n}.png"
        card.save(path)
        inputs += ["-ss", str(one["start_time"]), "-t", "1.5", "-i", str(clip)]
        inputs += ["-loop", "1", "-framerate", "25", "-t", "1.5", "-i", str(path)]
        video.append(
            f"[{2 * n + 1}:v]format=yuva420p,fade=in:d=0.25:alpha=1,"
            f"fade=out:st=1.25:d=0.25:alpha=1[k{n}];"
            f"[{2 * n}:v][k{n}]overlay=0:H-h,setpts=PTS-STARTPTS[v{n}];[{2 * n}:a]{stereo}[a{n}]"
        )
        sound.append(f"[v{n}][a{n}]")
    graph = f"{';'.join(video)};{''.join(sound)}concat=n=3:v=1:a=1[v][a]"
    return Pair(JobType.ANNOTATE, {"clips": asked}, tuple(inputs), graph)


def resampling(params: OutputParams, ratio: float) -> None:
    """No network: what FAST jobs get."""


def ours(pair: Pair, clip: Path, output: Path, quality: Quality) -> None:
    """Makes the edit with the worker's own code."""
    params = pair.job_type.params_model.model_validate(pair.params)
    kit = Kit(resampling, {"a": Source(clip, probe(clip))}, {}, Fonts(), CPU)
    composition = compose(params, "a", kit)
    render(composition, output, quality, Guard(), lambda done, count: None)


def theirs(pair: Pair, output: Path) -> None:
    """Makes the edit with ffmpeg alone."""
    graph = ("-filter_complex", pair.graph, "-map", "[v]", "-map", "[a]")
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-y",
        *pair.inputs,
        *graph,
        *ENCODER,
        str(output),
    ]
    subprocess.run(command, check=True)


def timed(work: Callable[[], None]) -> float:
    """Returns the wall-clock seconds of a piece of work."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(pair: Pair, clip: Path, folder: Path, rounds: int) -> float:
    """Prints frames a second of both, and returns the ratio of their medians."""
    a, b = folder / "ours.mp4", folder / "theirs.mp4"
    seconds = [
        (timed(lambda: ours(pair, clip, a, Quality())), timed(lambda: theirs(pair, b)))
        for _ in range(rounds)
    ]
    mine, other = (statistics.median(column) for column in zip(*seconds, strict=True))
    frames = [output_facts(path).frames for path in (a, b)]
    print(
        f"{pair.job_type:11} {frames[0]:4} frames  "
        f"ours {frames[0] / mine:5.1f}/s  ffmpeg {frames[1] / other:5.1f}/s"
        f"  ratio {other / mine * frames[0] / frames[1]:.3f}",
        flush=True,
    )
    return float(other / mine * frames[0] / frames[1])


def peak_memory_ratio(folder: Path, minutes: float) -> float:
    """Returns the worker's peak resident memory on a long 1080p clip, by that on ten seconds."""
    peaks = []
    for seconds in (10.0, minutes * 60):
        clip = folder / f"{seconds:g}.mp4"
        pattern = ("-f", "lavfi", "-i", f"testsrc2=s=1920x1080:r=25:d={seconds}")
        tone = ("-f", "lavfi", "-i", f"sine=d={seconds}")
        command = [
            imageio_ffmpeg.get_ffmpeg_exe(),
            "-v",
            "error",
            "-y",
            *pattern,
            *tone,
            "-preset",
            "ultrafast",
        ]
        subprocess.run([*command, str(clip)], check=True)
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(clip)],
            check=True,
            capture_output=True,
            text=True,
        )
        peaks.append(int(done.stdout.split()[-1]))
        print(
            f"memory      {seconds:g} s of 1080p: "
            f"peak {peaks[-1] / 1024:.0f} MiB, ffmpegs included",
            flush=True,
        )
        clip.unlink()
    return peaks[1] / peaks[0]


def one(clip: Path) -> None:
    """Frames one clip and prints the peak of the resident memory, in KiB, sampled.

    It counts this process and its children.
    """
    peak, done = 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, _resident(os.getpid()))

    thread = threading.Thread(target=sample)
    thread.start()
    pair = Pair(JobType.FRAMING, {"output_width": 270, "output_height": 480}, (), "")
    with tempfile.TemporaryDirectory() as folder:
        ours(pair, clip, Path(folder) / "o.mp4", Quality("ultrafast"))
    done.set()
    thread.join()
    print(peak)


def _resident(pid: int) -> int:
    """Returns the KiB of a process and its children that are theirs alone."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                total += int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(_resident(int(child)) for child in (task / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        # It has ended meanwhile.
        pass
    return total


def install_upstream() -> None:
    """Installs what upstream's own way needs and nothing of ours does."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    packages = ["opencv-python-headless", "requests", "tqdm"]
    subprocess.run([*pip, "--constraint", "constraints.txt", *packages], check=True)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edit", action="store_true", help="compare the edits with ffmpeg's")
    parser.add_argument(
        "--upscale", action="store_true", help="compare Real-ESRGAN with upstream's own way"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-minutes", type=float, default=10.0, help="0 leaves memory out")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.upscale:
        install_upstream()
        import bench_upscale

        return bench_upscale.main(sample_clip())
    prepare_process()
    if asked.one:
        return one(asked.one)
    if not asked.edit:
        parser.error("say what to measure: --edit or --upscale")
    clip = sample_clip()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = {
            f"{pair.job_type}_ratio": round(compare(pair, clip, folder, asked.rounds), 3)
            for pair in pairs(clip, folder)
        }
        if asked.memory_minutes:
            figures["peak_memory_ratio"] = round(peak_memory_ratio(folder, asked.memory_minutes), 3)
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
