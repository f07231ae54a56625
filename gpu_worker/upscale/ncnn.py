"""Weights as ncnn keeps them, read into tensors: a text of layers (`.param`) and their numbers in
its order (`.bin`).

Formats (Tencent/ncnn, `modelbin.cpp`): a convolution is a 32-bit flag, its weights as OIHW (16-bit
floats, filled up to four bytes, where the flag is set), then its bias in 32-bit floats without a
flag; a PReLU is its slopes in 32-bit floats.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

HALF_FLAG, FULL_FLAG = 0x01306B47, 0


def read_ncnn(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Returns the state dict of a Real-ESRGAN network, float32, as the architectures of
    architectures.py name it.

    Raises:
        ValueError: the two files do not belong together, or are of another network.
    """
    layers = list(_layers((folder / f"{name}.param").read_text()))
    tensors = _tensors(layers, (folder / f"{name}.bin").read_bytes())
    compact = any(kind == "PReLU" for kind, _ in layers)
    names = _compact_names(layers) if compact else _dense_names(len(layers))
    state: dict[str, torch.Tensor] = {}
    for base, (weight, bias) in zip(names, tensors, strict=True):
        state[f"{base}.weight"] = torch.from_numpy(weight.astype(np.float32))
        if bias is not None:
            state[f"{base}.bias"] = torch.from_numpy(bias.copy())
    return state


def _layers(text: str) -> Iterator[tuple[str, dict[int, int]]]:
    """Yields the layers that have numbers, with their parameters."""
    for line in text.splitlines()[2:]:
        kind, _, inputs, outputs, *rest = line.split()
        if kind in ("Convolution", "PReLU"):
            pairs = rest[int(inputs) + int(outputs) :]
            yield (
                kind,
                {
                    int(k): int(v)
                    for k, v in (pair.split("=") for pair in pairs)
                    if v.lstrip("-").isdigit()
                },
            )


def _tensors(
    layers: list[tuple[str, dict[int, int]]], body: bytes
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    found: list[tuple[np.ndarray, np.ndarray | None]] = []
    at = 0

    def take(count: int, kind: str) -> np.ndarray:
        nonlocal at
        values = np.frombuffer(body, kind, count, at)
        at += (values.nbytes + 3) & ~3
        return values

    for kind, given in layers:
        outputs = given[0]
        if kind == "PReLU":
            found.append((take(outputs, "<f4"), None))
            continue
        flag = int(take(1, "<u4")[0])
        if flag not in (HALF_FLAG, FULL_FLAG):
            raise ValueError(f"unknown weight format {flag:#x}")
        side, count = given[1], given[6]
        weights = take(count, "<f2" if flag == HALF_FLAG else "<f4")
        found.append((weights.reshape(outputs, -1, side, side), take(outputs, "<f4")))
    if at != len(body):
        raise ValueError(f"{len(body) - at} bytes are left over")
    return found


def _compact_names(layers: list[tuple[str, dict[int, int]]]) -> list[str]:
    return [f"body.{n}" for n in range(len(layers))]


def _dense_names(count: int) -> list[str]:
    """Names of an RRDBNet's convolutions in the order of the graph: 15 a block, six around them."""
    blocks, rest = divmod(count - 6, 15)
    if rest:
        raise ValueError(f"{count} convolutions are no RRDBNet")
    body = [
        f"body.{block}.rdb{part}.conv{conv}"
        for block in range(blocks)
        for part in (1, 2, 3)
        for conv in (1, 2, 3, 4, 5)
    ]
    return ["conv_first", *body, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
