"""The broker's start and memory with Modal off, on, and off again: what a second provider costs.

Each broker is started anew, in turn; the figures are medians. The last column is the ratio to Modal
off.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from broker.embedded.ports import free_ports

SETTINGS = {
    "R2_ENDPOINT": "http://127.0.0.1:9",
    "R2_ACCESS_KEY_ID": "x",
    "R2_SECRET_ACCESS_KEY": "x",
    "R2_BUCKET_NAME": "x",
    "RUNPOD_API_KEY": "x",
    "RUNPOD_ENDPOINT_URL": "http://127.0.0.1:9/v2/x",
    "REELBROKER_API_KEY": "x" * 16,
}
MODAL = {
    "MODAL_ENABLED": "true",
    "MODAL_TOKEN_ID": "ak-x",
    "MODAL_TOKEN_SECRET": "as-x",
    "MODAL_SERVER_URL": "http://127.0.0.1:9",
}
CASES = {"Modal off": {}, "Modal on": MODAL, "Modal off again": {}}


def started(folder: Path, more: dict[str, str]) -> tuple[float, float]:
    """Starts a broker; returns the seconds until it answers, and its memory in MB then."""
    (port,) = free_ports(1)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **SETTINGS, **more}
    environment["REELBROKER_PORT"] = str(port)
    began = time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "broker.cli.main", "serve"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        while process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == httpx.codes.OK:
                    return time.monotonic() - began, _megabytes(process.pid)
            except httpx.TransportError:
                time.sleep(0.01)
        raise SystemExit((folder / "log").read_text())
    finally:
        process.terminate()
        process.wait()


def _megabytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(prog="scripts/bench-start", description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(runs):
        for name, more in CASES.items():
            with tempfile.TemporaryDirectory(prefix="reelbroker-start-") as folder:
                seen[name].append(started(Path(folder), more))
    medians = {
        name: tuple(statistics.median(column) for column in zip(*rows, strict=True))
        for name, rows in seen.items()
    }
    base = medians["Modal off"]
    print(f"{'':18}{'start':>10}{'memory':>12}{'ratio':>16}")
    for name, (seconds, megabytes) in medians.items():
        ratio = f"{seconds / base[0]:.2f} / {megabytes / base[1]:.2f}"
        print(f"{name:18}{seconds:>8.2f} s{megabytes:>9.1f} MB{ratio:>16}")


if __name__ == "__main__":
    main()
