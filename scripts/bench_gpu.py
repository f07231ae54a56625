"""Measures the worker on a GPU: whether its pictures are right, then what each part reaches.

`scripts/bench-gpu [--stages ABCDE] [--packed FOLDER] [--pretend]`
`scripts/bench-gpu --pack FOLDER [--codecs]`

| stage | what | decides |
|---|---|---|
| A | ceilings of the card; the CPU's pictures; too little memory; no waiting | whether to go on |
| B | the networks alone: batches and strategies | which strategies pay, and how many at once |
| C | single convolutions, cuDNN beside Triton; a dense block | whether split and fused pay |
| D | the GPU's codecs, x264 alone, whole edits | whether NVDEC pays; what bounds an edit |
| E | the best of B and the edit of D again | the spread of all figures |

Rules: split >= 1.25 times eager's dense block, or fused >= 1.3 times cuDNN's convolution: put the
strategy into REELBROKER_STRATEGIES. The best of B < 1.2 times eager: leave strategies off. A small
batch that reaches 0.95 of eight is enough. A first frame by NVDEC after more than 0.5 s: NVDEC pays
only for long clips.

On a bare machine (Python 3.12, torch 2.11, no internet), carry the folder that `--pack` makes and
run `python3 scripts/bench_gpu.py --packed FOLDER`. Stage D needs the folder of `--pack --codecs`.
`--pretend` runs everything at tiny sizes on the tests' pretend device: its figures mean nothing.
The last line is one JSON object.
"""

import argparse
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import gpu_pack

# A bare machine has no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

#: Model, and the crop of which it makes 1080x1920.
MODELS = {
    "realesr-animevideov3": (270, 480),
    "x4plus-anime": (270, 480),
    "RealESRGAN_x4plus": (270, 480),
}
BATCHES = (1, 2, 4, 8)
STRATEGIES = ("split", "fused", "graph", "split+graph", "fused+graph", "compiled", "compiled+graph")
#: Channels in and out of the networks' convolutions, and of their split ones.
CONVOLUTIONS = ((64, 32), (64, 64), (96, 32), (160, 32), (192, 64), (64, 192), (32, 160), (32, 64))
NOWHERE = Path("/nonexistent")


@dataclass
class Bench:
    """What the stages share: the device, sizes, and the figures so far."""

    device: Any
    accelerator: Any
    tiny: bool
    clip: Path | None
    figures: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @property
    def models(self) -> dict[str, tuple[int, int]]:
        """Names and crops; at tiny sizes, without the one that takes minutes."""
        if self.tiny:
            return dict.fromkeys(list(MODELS)[:2], (8, 10))
        return MODELS

    def note(self, name: str, value: float, unit: str = "") -> None:
        """Prints a figure and keeps it."""
        self.figures[name] = round(value, 4)
        print(f"  {name:44} {value:10.3f} {unit}", flush=True)

    def check(self, name: str, passed: bool, value: object) -> None:
        """Prints a check and keeps whether it passed."""
        self.figures[name] = passed
        print(f"  {name:44} {'ok' if passed else 'FAILED':>10} {value}", flush=True)
        if not passed:
            self.failed.append(name)

    def seconds(self, work: Callable[[], object], rounds: int = 7) -> float:
        """Returns the median seconds of a piece of work, the device's included."""
        for _ in range(3):
            work()
        times = []
        for _ in range(1 if self.tiny else rounds):
            self.accelerator.synchronize()
            began = time.perf_counter()
            work()
            self.accelerator.synchronize()
            times.append(time.perf_counter() - began)
        return statistics.median(times)


def picture(width: int, height: int, seed: int) -> Any:
    """Returns a frame of slopes, edges and a little noise, the same for each seed."""
    import numpy as np
    import torch

    from gpu_worker.media.frames import Frame

    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = 126 + 60 * np.sin(x / 17 + seed) * np.cos(y / 23) + 30 * ((x // 40 + y // 40) % 2)
    luma = np.clip(waves + random.normal(0, 2, waves.shape), 16, 235).astype(np.uint8)
    half = luma[::2, ::2] // 2 + 64
    return Frame(*(torch.from_numpy(np.ascontiguousarray(p)) for p in (luma, half, half.copy())))


def decibels(a: Any, b: Any) -> float:
    """Returns the peak signal-to-noise ratio of two planes."""
    import torch

    error = float(torch.mean((a.double() - b.double()) ** 2))
    return 10 * float(torch.log10(torch.tensor(255**2 / max(error, 1e-9))))


def pan(count: int, width: float, height: float) -> list[Any]:
    """Returns crops that move by fractions of a pixel."""
    from gpu_worker.media.frames import Box

    return [Box(20.3 + 1.7 * n, 10.6 + 0.4 * n, width, height) for n in range(count)]


def upscaler_of(name: str, device: Any, dtype: Any = None) -> Any:
    """Returns a model with real weights, where they are here."""
    from gpu_worker.upscale.upscaler import Upscaler
    from gpu_worker.upscale.weights import load_model

    return Upscaler(load_model(name, NOWHERE), device, dtype)


def stage_a(bench: Bench) -> None:
    """Ceilings, and whether pictures are right."""
    import torch

    side, count = (256, 1 << 20) if bench.tiny else (8192, 1 << 30)
    a = torch.rand(side, side, device=bench.device).half()
    bench.note("A.fp16_tflops", 2 * side**3 / bench.seconds(lambda: a @ a) / 1e12, "TFLOP/s")
    one = torch.zeros(count, dtype=torch.uint8, device=bench.device)
    other = torch.empty_like(one)
    bench.note("A.copy_gb_s", 2 * count / bench.seconds(lambda: other.copy_(one)) / 1e9, "GB/s")
    pinned = bench.accelerator.pinned(count // 8)
    up = bench.seconds(lambda: pinned.to(bench.device, non_blocking=True))
    bench.note("A.pinned_up_gb_s", count / 8 / up / 1e9, "GB/s")
    part = one[: count // 8]
    down = bench.seconds(lambda: pinned.copy_(part, non_blocking=True))
    bench.note("A.pinned_down_gb_s", count / 8 / down / 1e9, "GB/s")
    _check_pictures(bench)
    _check_memory(bench)


def _check_pictures(bench: Bench) -> None:
    """The CPU's pictures, by every way through the worker, and without waiting."""
    import torch

    from gpu_worker.edits.crop import Resampler
    from gpu_worker.media.transfer import Landing, all_to_device

    cpu = torch.device("cpu")
    width, height = (160, 96) if bench.tiny else (1280, 720)
    crop, size = ((36.0, 64.0), (72, 128)) if bench.tiny else ((405.0, 700.0), (1080, 1920))
    frames = [picture(width, height, n) for n in range(8)]
    boxes = pan(8, *crop)
    made = Landing(Resampler(bench.device)(frames, boxes, *size)).frames()
    expected = [
        Resampler(cpu)([frame], [box], *size)[0] for frame, box in zip(frames, boxes, strict=True)
    ]
    off = max(
        int((a.int() - b.int()).abs().max())
        for x, y in zip(made, expected, strict=True)
        for a, b in zip(x.planes, y.planes, strict=True)
    )
    bench.check("A.crop_equals_cpu", off <= 1, f"at most {off} of 255 off")
    small, out = pan(8, 24.0, 32.0), (96, 128)
    name = "realesr-animevideov3"
    host = upscaler_of(name, cpu, torch.float32)
    quick = upscaler_of(name, bench.device)
    wanted = [host([f], [b], *out)[0] for f, b in zip(frames, small, strict=True)]
    made = Landing(quick(frames, small, *out)).frames()
    worst = min(decibels(a.y, b.y) for a, b in zip(made, wanted, strict=True))
    bench.check("A.network_equals_cpu", worst >= 50, f"{worst:.1f} dB in {quick.dtype}")
    with torch.inference_mode():
        there = all_to_device(frames, bench.device)
    made = Landing([*quick(there, small, *out), *quick(frames, small, *out)]).frames()
    worst = min(decibels(a.y, b.y) for a, b in zip(made, [*wanted, *wanted], strict=True))
    bench.check("A.device_then_host_frames", worst >= 50, f"{worst:.1f} dB")
    for name, run in (
        ("A.fast_without_waiting", lambda: Resampler(bench.device)(frames, boxes, *size)),
        ("A.quality_without_waiting", lambda: quick(frames, small, *out)),
    ):
        run()
        waits = _waits(bench, run)
        bench.check(name, waits == 0, f"{waits} synchronising calls")


def _waits(bench: Bench, run: Callable[[], list[Any]]) -> int:
    """Counts the synchronising calls of a batch and its way to the host."""
    import torch

    from gpu_worker.media.transfer import Landing

    if bench.tiny:
        counts = _pretend().STATE.counts
        counts.clear()
        Landing(run())
        return int(counts["syncs"])
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Landing(run())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)


def _check_memory(bench: Bench) -> None:
    """A batch that does not fit is made in parts, and the next clip begins anew."""
    import torch

    from gpu_worker.media.transfer import Landing

    quick = upscaler_of("realesr-animevideov3", bench.device)
    width, height = (160, 96) if bench.tiny else (1280, 720)
    crop, size = ((24.0, 32.0), (96, 128)) if bench.tiny else ((405.0, 700.0), (1080, 1920))
    frames, boxes = [picture(width, height, n) for n in range(8)], pan(8, *crop)
    plenty = Landing(quick(frames, boxes, *size)).frames()
    bench.accelerator.release()
    needed = bench.accelerator.peak_bytes(lambda: quick(frames, boxes, *size))
    if bench.tiny:
        _pretend().STATE.limit = _pretend().STATE.used + needed // 2
        held = None
    else:
        free = bench.accelerator.free_bytes() - needed // 2
        held = torch.empty(max(1, free), dtype=torch.uint8, device=bench.device)
    scarce = Landing(quick(frames, boxes, *size)).frames()
    del held
    if bench.tiny:
        _pretend().STATE.limit = None
    bench.accelerator.release()
    worst = min(decibels(a.y, b.y) for a, b in zip(plenty, scarce, strict=True))
    bench.check("A.too_little_memory", worst >= 50, f"{worst:.1f} dB between plenty and scarce")


def stage_b(bench: Bench) -> None:
    """Networks alone, frames a second."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    for name, (width, height) in bench.models.items():
        try:
            upscaler = upscaler_of(name, bench.device)
        except RuntimeError as error:
            print(f"  B.{name}: left out: {error}")
            continue
        one = torch.rand(1, 3, height, width, device=bench.device).to(upscaler.dtype)
        with FlopCounterMode(display=False) as counter:
            upscaler.enlarge(one)
        ceiling = bench.figures.get("A.fp16_tflops", 0) * 1e12 / counter.get_total_flops()
        best: dict[str, float] = {}
        for batch in BATCHES[:2] if bench.tiny else BATCHES:
            pictures = one.repeat(batch, 1, 1, 1).contiguous(memory_format=torch.channels_last)
            for strategy in ("eager NCHW", "eager", "eager benchmark", *STRATEGIES):
                rate = _rate(bench, upscaler.network, strategy, pictures)
                if rate is not None:
                    bench.note(f"B.{name}.{batch}.{strategy}", rate, "frames/s")
                    best[strategy] = max(best.get(strategy, 0.0), rate)
        _beside_upstream(bench, name, upscaler, (width, height))
        quickest = max(best, key=lambda strategy: best[strategy])
        bench.figures[f"B.{name}.best"] = quickest
        bench.note(f"B.{name}.best_to_eager", best[quickest] / best["eager"], quickest)
        if ceiling:
            bench.note(f"B.{name}.ceiling_share", best[quickest] / ceiling)


def _beside_upstream(bench: Bench, name: str, upscaler: Any, crop: tuple[int, int]) -> None:
    """Our whole engine beside upstream's, on one picture after the other, host to host."""
    import numpy as np
    from upstream import upstream

    from gpu_worker.media.transfer import Landing

    width, height = crop
    size = (width * upscaler.factor, height * upscaler.factor)
    frames = [picture(width + 60, height + 60, seed) for seed in range(8)]
    boxes = pan(8, width, height)
    ours = 8 / bench.seconds(lambda: Landing(upscaler(frames, boxes, *size)).frames())
    bench.note(f"B.{name}.ours", ours, "frames/s")
    if bench.tiny:
        return
    try:
        enhance = upstream(name, bench.device)
    except ImportError as error:
        print(f"  upstream is left out: {error}")
        return
    one = np.zeros((height, width, 3), np.uint8)
    theirs = 1 / bench.seconds(lambda: enhance(one))
    bench.note(f"B.{name}.upstream", theirs, "frames/s")
    bench.note(f"B.{name}.ours_to_upstream", ours / theirs)


def _rate(bench: Bench, network: Any, strategy: str, pictures: Any) -> float | None:
    """Returns frames a second by a strategy; None where it fails."""
    import torch

    from gpu_worker.upscale.strategy import build

    tuned = strategy.endswith("benchmark")
    torch.backends.cudnn.benchmark = tuned
    try:
        with torch.inference_mode():
            if strategy == "eager NCHW":
                pictures = pictures.contiguous()
            name = "eager" if strategy.startswith("eager") else strategy
            forward = build(name, network, bench.accelerator)
            return len(pictures) / bench.seconds(lambda: forward(pictures))
    # Whatever a compiler or a driver raises: the strategy is not for this card.
    except Exception as error:  # noqa: BLE001
        print(f"  {strategy}: {str(error).splitlines()[:1]}", flush=True)
        return None
    finally:
        torch.backends.cudnn.benchmark = False


def stage_c(bench: Bench) -> None:
    """Single convolutions, TFLOP/s, and a whole dense block."""
    import torch
    from torch import nn

    from gpu_worker.upscale.precision import in_layout
    from gpu_worker.upscale.split import SplitDenseBlock
    from gpu_worker.upscale.weights import load_model

    # In Triton's interpreter, a kernel takes minutes.
    fused: Any = None if bench.tiny else _fused()
    width, height = (12, 16) if bench.tiny else (270, 480)

    def trunk(channels: int) -> Any:
        made = torch.rand(2, channels, height, width, device=bench.device).half()
        return made.contiguous(memory_format=torch.channels_last)

    with torch.inference_mode():
        for inputs, outputs in CONVOLUTIONS:
            plain_layer = nn.Conv2d(inputs, outputs, 3, padding=1).to(bench.device)
            layer: Any = in_layout(plain_layer, torch.float16)
            x = trunk(inputs)
            operations = 2 * 9 * inputs * outputs * 2 * height * width
            plain = bench.seconds(lambda: nn.functional.leaky_relu(layer(x), 0.2))  # noqa: B023
            bench.note(f"C.{inputs}->{outputs}.cudnn", operations / plain / 1e12, "TFLOP/s")
            if fused and outputs in (32, 64):
                kernel = fused.FusedConvolution(layer, 0.2)
                spent = bench.seconds(lambda: kernel(x))  # noqa: B023
                bench.note(f"C.{inputs}->{outputs}.fused", operations / spent / 1e12, "TFLOP/s")
        network = load_model("x4plus-anime", NOWHERE).network.to(bench.device)
        block: Any = in_layout(network, torch.float16).get_submodule("body.0.rdb1")
        x = trunk(64)
        eager = bench.seconds(lambda: block(x))
        split = SplitDenseBlock(block)
        bench.note("C.block.split_to_eager", eager / bench.seconds(lambda: split(x)))
        if fused:
            whole = fused.FusedDenseBlock(block)
            bench.note("C.block.fused_to_eager", eager / bench.seconds(lambda: whole(x)))


def _fused() -> Any:
    """Returns the module of the Triton kernels; None where Triton is not here."""
    try:
        from gpu_worker.upscale import fused
    except ImportError:
        return None
    return fused


def stage_d(bench: Bench) -> None:
    """Codecs and whole edits, frames a second."""
    if bench.clip is None:
        print("  left out: no clip; carry the folder of --pack --codecs")
        return
    from gpu_worker.media.facts import SourceFacts
    from gpu_worker.media.hardware import HardwareDecoder, nvdec_works, nvenc_works

    bench.figures["D.nvenc"], bench.figures["D.nvdec"] = nvenc_works(), nvdec_works()
    print(f"  NVENC {bench.figures['D.nvenc']}, NVDEC {bench.figures['D.nvdec']}")
    facts = SourceFacts(1280, 720, Fraction(25), 5.28, 0, "h264", "aac", "bt709", False)
    bench.note("D.first_frame_cpu", _first_frame(bench.clip, facts, None), "s")
    if bench.figures["D.nvdec"]:
        spent = _first_frame(bench.clip, facts, HardwareDecoder())
        bench.note("D.first_frame_nvdec", spent, "s")
    bench.note("D.x264_alone", _x264_rate(bench), "frames/s")
    for mode in ("FAST", "QUALITY"):
        bench.note(f"D.edit_{mode}", _edit_rate(bench, facts, mode, False), "frames/s")
        if bench.figures["D.nvenc"]:
            bench.note(f"D.edit_{mode}_nvenc", _edit_rate(bench, facts, mode, True), "frames/s")


def _first_frame(clip: Path, facts: Any, hardware: Any) -> float:
    from gpu_worker.host.guard import Guard
    from gpu_worker.media.decode import decode

    began = time.perf_counter()
    with decode(clip, facts, 0, 10, Guard(), hardware=hardware) as frames:
        next(frames)
        return time.perf_counter() - began


def _size(bench: Bench) -> tuple[int, int]:
    return (54, 96) if bench.tiny else (1080, 1920)


def _x264_rate(bench: Bench) -> float:
    from gpu_worker.host.guard import Guard
    from gpu_worker.media.encode import Quality, encode

    frames = [picture(*_size(bench), seed) for seed in range(8)]
    count = 16 if bench.tiny else 160
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        path = Path(folder) / "a.mp4"
        with encode(path, _size(bench), Fraction(25), Quality(), Guard()) as encoder:
            for number in range(count):
                encoder.write(frames[number % len(frames)])
        return count / (time.perf_counter() - began)


def _edit_rate(bench: Bench, facts: Any, mode: str, nvenc: bool) -> float:
    """Returns frames a second of a whole framing job, decoder to encoder."""
    from gpu_worker.edits.compose import Kit, Source, compose
    from gpu_worker.edits.fonts import Fonts
    from gpu_worker.host.guard import Guard
    from gpu_worker.media.encode import Quality
    from gpu_worker.render.render import render
    from schemas.edits import FramingParams

    assert bench.clip is not None
    width, height = _size(bench)
    crop = (13.5, 24.0) if bench.tiny else (270.0, 480.0)
    keys = [
        {"time": at, "x": x, "y": 100.0, "width": crop[0], "height": crop[1]}
        for at, x in ((0.0, 100.0), (5.0, 500.0))
    ]
    params = FramingParams.model_validate(
        {"output_width": width, "output_height": height, "crop_keyframes": keys}
        | {"export_mode": mode, "end_time": 0.8 if bench.tiny else 5.0}
    )
    upscaler = upscaler_of("realesr-animevideov3", bench.device)
    sources = {"a": Source(bench.clip, facts)}
    kit = Kit(
        lambda params, ratio: upscaler if mode == "QUALITY" else None,
        sources,
        {},
        Fonts(),
        bench.device,
    )
    composition = compose(params, "a", kit)
    frames = composition.timeline.frame_count(composition.fps)
    with tempfile.TemporaryDirectory() as folder:
        output, quality = Path(folder) / "a.mp4", Quality(hardware=nvenc)

        def once() -> float:
            began = time.perf_counter()
            render(composition, output, quality, Guard(), lambda done, count: None)
            return time.perf_counter() - began

        once()
        return frames / once()


def stage_e(bench: Bench) -> None:
    """The best of B again, five times: the spread of the figures."""
    import torch

    for name, (width, height) in bench.models.items():
        strategy = bench.figures.get(f"B.{name}.best")
        if strategy is None:
            continue
        upscaler = upscaler_of(name, bench.device)
        pictures = torch.rand(2, 3, height, width, device=bench.device).to(upscaler.dtype)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        rates = [_rate(bench, upscaler.network, strategy, pictures) for _ in range(5)]
        known = [rate for rate in rates if rate is not None]
        if known:
            spread = (max(known) - min(known)) / statistics.median(known)
            bench.note(f"E.{name}.spread", spread, "of the median")


STAGES = {"A": stage_a, "B": stage_b, "C": stage_c, "D": stage_d, "E": stage_e}


def device_of(pretend: bool) -> Any:
    """Returns the device to measure; the tests' pretend one."""
    from gpu_worker.host import accelerator

    if not pretend:
        return accelerator.chosen_device("auto")
    accelerator.Accelerator = _pretend().PretendAccelerator  # type: ignore[misc]
    return _pretend().pretend_device()


def _pretend() -> Any:
    """Returns the module of the tests' pretend device."""
    return importlib.import_module("tests.gpu_worker.pretend")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", default="ABCDE")
    parser.add_argument("--pretend", action="store_true", help="tiny sizes, no GPU needed")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="make what must be carried")
    parser.add_argument("--codecs", action="store_true", help="with --pack: what stage D needs")
    parser.add_argument("--python", default="3.12", help="with --pack: the machine's version")
    parser.add_argument("--packed", type=Path, metavar="FOLDER", help="use what was carried")
    asked = parser.parse_args(arguments)
    if asked.pack:
        folder = Path(os.environ.get("CALLED_FROM", ".")) / asked.pack
        return gpu_pack.pack(folder, "codecs" if asked.codecs else "models", asked.python)
    if asked.packed:
        gpu_pack.unpack(asked.packed)
    import torch

    from gpu_worker.host.accelerator import accelerator
    from gpu_worker.host.process import prepare_process

    prepare_process()
    device = device_of(asked.pretend)
    if device.type == "cpu":
        sys.exit("no GPU: --pretend tries the program without one")
    bench = Bench(device, accelerator(device), asked.pretend, gpu_pack.clip(asked.packed))
    card = bench.accelerator.describe()
    bench.figures |= {"card": card, "torch": torch.__version__, "pretend": asked.pretend}
    print(f"{card}, torch {torch.__version__}")
    for letter in asked.stages:
        began = time.perf_counter()
        print(f"{letter}: {STAGES[letter].__doc__}", flush=True)
        STAGES[letter](bench)
        print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)
        if bench.failed:
            break
    print(json.dumps(bench.figures))
    if bench.failed:
        sys.exit(f"failed: {', '.join(bench.failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
