"""Our engine beside upstream's own way, on the same real frames: `scripts/bench-worker --upscale`.

Upstream: `RealESRGANer.enhance`, frame by frame, as its video script calls it. Ours: `Upscaler`,
uint8 planes in and out. The ceiling is what the device reaches in this very run: a matrix product's
rate for the network's operations, a copy's rate for the bytes that its layers must read and write;
the larger of the two times. The last line is one JSON object.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from upstream import upstream

from gpu_worker.host.accelerator import accelerator, chosen_device
from gpu_worker.host.guard import Guard
from gpu_worker.media.decode import decode
from gpu_worker.media.frames import Box, Frame, FrameBatch, planes_of_rgb
from gpu_worker.media.probe import probe
from gpu_worker.media.transfer import Landing
from gpu_worker.upscale.upscaler import TO_RGB, Upscaler, chroma_filters, rgb_of
from gpu_worker.upscale.weights import load_model

NOWHERE = Path("/nonexistent")
#: (model, crop, frames on a CPU, frames on a GPU); a CPU needs minutes for x4plus at full size.
CPU_CASES = (("realesr-animevideov3", (270, 480), 4), ("RealESRGAN_x4plus", (134, 240), 2))
GPU_CASES = (("realesr-animevideov3", (270, 480), 60), ("RealESRGAN_x4plus", (270, 480), 20))


def compare(clip: Path) -> dict[str, Any]:
    """Prints a line a model and returns the figures."""
    device = chosen_device("auto")
    threads = f"CPU, {torch.get_num_threads()} threads"
    name = threads if device.type == "cpu" else accelerator(device).describe()
    figures: dict[str, Any] = {"device": name}
    for model, (width, height), count in CPU_CASES if device.type == "cpu" else GPU_CASES:
        with decode(clip, probe(clip), 40, count + 1, Guard()) as decoded:
            figures[model] = _one(model, list(decoded), Box(500.0, 120.0, width, height), device)
    return figures


def _one(name: str, frames: list[Frame], box: Box, device: torch.device) -> dict[str, float]:
    size = (int(box.width) * 4, int(box.height) * 4)
    ours = Upscaler(load_model(name, NOWHERE), device)
    enhance = upstream(name, device)
    cut = [_bgr(frame, box) for frame in frames]
    made: list[Frame] = []
    theirs: list[np.ndarray] = []

    def run_ours(frames: Sequence[Frame]) -> None:
        """Takes frames from the host and back to it, as `render.Stage` does it.

        One batch lands while the next is made.
        """
        landing: Landing | None = None
        for start in range(0, len(frames), ours.batch):
            batch = frames[start : start + ours.batch]
            following = Landing(ours(batch, [box] * len(batch), *size))
            made.extend(landing.frames() if landing else ())
            landing = following
        made.extend(landing.frames() if landing else ())

    def run_theirs(pictures: Sequence[np.ndarray]) -> None:
        theirs.extend(enhance(picture) for picture in pictures)

    run_ours(frames[:1] + frames[-ours.batch :])
    # Both are warm after this.
    run_theirs(cut[:1])
    made.clear()
    theirs.clear()
    count = len(frames) - 1
    our_fps = count / _timed(lambda: run_ours(frames[1:]))
    upstream_fps = count / _timed(lambda: run_theirs(cut[1:]))
    share = _ceiling_seconds(ours, box, device) * our_fps
    same = float(np.mean([_psnr(a.y, _luma(b)) for a, b in zip(made, theirs, strict=True)]))
    print(
        f"{name:22} {size[0]}x{size[1]} in {ours.dtype}: "
        f"upstream {upstream_fps:.3f}/s  ours {our_fps:.3f}/s  "
        f"ratio {our_fps / upstream_fps:.2f}  {same:.1f} dB between them  "
        f"{100 * share:.0f} % of the ceiling",
        flush=True,
    )
    return {
        "upstream_fps": round(upstream_fps, 4),
        "ours_fps": round(our_fps, 4),
        "ratio": round(our_fps / upstream_fps, 3),
        "psnr_db": round(same, 2),
        "ceiling_share": round(share, 3),
    }


def _bgr(frame: Frame, box: Box) -> np.ndarray:
    left, top, width, height = int(box.x), int(box.y), int(box.width), int(box.height)
    batch = FrameBatch.of([frame])
    rgb = rgb_of(batch, chroma_filters(1, frame.height, frame.width, torch.device("cpu")), TO_RGB)[
        0
    ]
    rgb = rgb[:, top : top + height, left : left + width]
    return (rgb.mul(255).add_(0.5).byte().permute(1, 2, 0).cpu().numpy()[..., ::-1]).copy()


def _luma(bgr: np.ndarray) -> torch.Tensor:
    blue, green, red = (bgr[..., channel].astype(np.float64) / 255 for channel in range(3))
    return torch.from_numpy(planes_of_rgb(red, green, blue)[0])


def _psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    error = torch.mean((a.cpu().double() - b.double()) ** 2).item()
    return 10 * float(np.log10(255**2 / error))


def _ceiling_seconds(ours: Upscaler, box: Box, device: torch.device) -> float:
    """Returns the least time for one frame of the crop, by operations and by bytes."""
    picture = torch.zeros(1, 3, int(box.height), int(box.width), device=device)
    moved = 0

    def count(_: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        nonlocal moved
        moved += (given[0].numel() + made.numel()) * made.element_size()

    network = ours.network
    hooks = [
        one.register_forward_hook(count) for one in network.modules() if isinstance(one, nn.Conv2d)
    ]
    with FlopCounterMode(display=False) as counter:
        ours.enlarge(picture)
    for hook in hooks:
        hook.remove()
    operations = float(counter.get_total_flops())
    return max(operations / _product_rate(ours.dtype, device), moved / _copy_rate(device))


def _product_rate(dtype: torch.dtype, device: torch.device) -> float:
    side = 4096 if device.type == "cpu" else 8192
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    seconds = min(_synchronous(lambda: a @ b, device) for _ in range(3))
    rate: float = 2 * side**3 / seconds
    return rate


def _copy_rate(device: torch.device) -> float:
    a = torch.zeros(1 << 28, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2.0 * a.numel() / min(_synchronous(lambda: b.copy_(a), device) for _ in range(5))


def _synchronous(work: Callable[[], object], device: torch.device) -> float:
    def and_wait() -> None:
        work()
        _wait(device)

    return _timed(and_wait)


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        accelerator(device).synchronize()


def main(clip: Path) -> None:
    """Prints the figures."""
    print(json.dumps(compare(clip)))
