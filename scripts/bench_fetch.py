"""Measures how fast the worker fetches videos over a slow line, beside how it did so before.

`scripts/bench-fetch [--latency-ms N] [--rounds N]`

The store is SeaweedFS on loopback, behind a proxy that delays each direction by half the latency.
A connection has 3 MiB under way at most, which is what Linux allows by default (half of tcp_rmem):
52 MB/s at 60 ms. Before, videos came one after the other, and a long one's parts in ranges of
2 MiB, one after the other; a whole one came in boto3's way, which asks for the first 8 MiB and then
for the rest in parts. The last line is one JSON object; `ratio` is the geometric mean of the three
cases' ratios, each seconds before by seconds now.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import av
import imageio_ffmpeg
from boto3.s3.transfer import TransferConfig
from own_store import running_store

from broker.embedded.object_store import ObjectStore
from gpu_worker.bucket import FETCHES_AT_ONCE, Bucket, open_bucket
from gpu_worker.media.excerpt import MARGIN_SECONDS
from gpu_worker.settings import Settings

WINDOW_BYTES, PIECE_BYTES = 3 << 20, 1 << 16
OLD_BLOCK_BYTES = 2 << 20
OLD_TRANSFER = TransferConfig(multipart_threshold=100 << 20)
#: Six scenes of a game, in seconds, as somebody marks them.
PARTS = [(20, 25), (55, 60), (90, 96), (130, 135), (170, 175), (205, 211)]


class Line:
    """A proxy before a port: a line with latency, and a window for each connection."""

    def __init__(self, target: int, latency_seconds: float) -> None:
        self._target = target
        self._delay = latency_seconds / 2
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0

    def __enter__(self) -> "Line":
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._connected, "127.0.0.1", 0, limit=PIECE_BYTES), self._loop
        ).result()
        self.port = server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, near: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        far, far_out = await asyncio.open_connection("127.0.0.1", self._target, limit=PIECE_BYTES)
        with suppress(asyncio.CancelledError):
            await asyncio.gather(self._carry(near, far_out), self._carry(far, near_out))

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Hands on what comes in half a latency later; an acknowledgement takes as long back."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        under_way, free = 0, asyncio.Event()

        def acknowledged(count: int) -> None:
            nonlocal under_way
            under_way -= count
            free.set()

        async def deliver() -> None:
            while (piece := await pieces.get())[1]:
                await asyncio.sleep(max(0.0, piece[0] - time.monotonic()))
                sink.write(piece[1])
                await sink.drain()
                self._loop.call_later(self._delay, acknowledged, len(piece[1]))
            sink.close()

        delivery = asyncio.create_task(deliver())
        with suppress(ConnectionError):
            while data := await source.read(PIECE_BYTES):
                while under_way + len(data) > WINDOW_BYTES:
                    free.clear()
                    await free.wait()
                under_way += len(data)
                pieces.put_nowait((time.monotonic() + self._delay, data))
        pieces.put_nowait((0.0, b""))
        await asyncio.gather(delivery, return_exceptions=True)


def film(path: Path, seconds: int) -> Path:
    """Makes a video of about 0.34 MB a second, with its index at the end, as cameras write it."""
    noise = f"nullsrc=s=320x240:r=25:d={seconds},geq=random(1)*255:128:128"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]
    command += ["-f", "lavfi", "-i", noise, "-f", "lavfi", "-i", f"sine=d={seconds}"]
    command += ["-c:v", "libx264", "-preset", "ultrafast", "-g", "50", "-b:v", "2700k"]
    subprocess.run([*command, "-maxrate", "2900k", "-bufsize", "2900k", str(path)], check=True)
    return path


class OldFile:
    """What fetched the parts of a long video before: 2 MiB when they are read."""

    def __init__(self, bucket: Bucket, key: str, path: Path) -> None:
        self._client, self._name, self._key = bucket._client, bucket._name, key
        self._size = self._client.head_object(Bucket=self._name, Key=key)["ContentLength"]
        self._file = path.open("w+b")
        self._file.truncate(self._size)
        self._there: set[int] = set()
        self._position = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, count: int) -> bytes:
        end = min(self._size, self._position + count)
        for block in range(self._position // OLD_BLOCK_BYTES, -(-end // OLD_BLOCK_BYTES)):
            if block not in self._there:
                begin = block * OLD_BLOCK_BYTES
                last = min(self._size, begin + OLD_BLOCK_BYTES) - 1
                answer = self._client.get_object(
                    Bucket=self._name, Key=self._key, Range=f"bytes={begin}-{last}"
                )
                self._file.seek(begin)
                self._file.write(answer["Body"].read())
                self._there.add(block)
        self._file.seek(self._position)
        self._position = end
        return self._file.read(end - self._file.tell())


def parts_before(bucket: Bucket, key: str, path: Path) -> None:
    """Walks through the parts of a long video."""
    with av.open(OldFile(bucket, key, path), "r") as container:
        for start, end in [(0.0, 0.0), *PARTS]:
            container.seek(int(max(0.0, start - MARGIN_SECONDS) * 1_000_000))
            for packet in container.demux():
                if packet.dts is None or packet.time_base is None:
                    continue
                if float(packet.dts * packet.time_base) > end + MARGIN_SECONDS:
                    break


def whole_before(bucket: Bucket, key: str, path: Path) -> None:
    """Asks for the size, and downloads over one connection."""
    bucket._client.head_object(Bucket=bucket._name, Key=key)
    bucket._client.download_file(bucket._name, key, str(path), Config=OLD_TRANSFER)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        long, short = film(folder / "long.mp4", 240), film(folder / "short.mp4", 60)
        whole = folder / "whole.mp4"
        whole.write_bytes(long.read_bytes()[: 60 << 20])
        with (
            running_store(folder) as store,
            Line(store.ports["s3.port"], asked.latency_ms / 1000) as line,
        ):
            bucket = open_bucket(settings_of(store, f"http://127.0.0.1:{line.port}"))
            direct = open_bucket(settings_of(store, store.url))
            for path in (long, whole):
                direct.upload(path, path.name)
            shorts = [f"short-{number}.mp4" for number in range(FETCHES_AT_ONCE)]
            for key in shorts:
                direct.upload(short, key)
            out = folder / "out"
            limit = 1 << 40

            def four_before() -> None:
                for key in shorts:
                    whole_before(bucket, key, folder / f"out-{key}")

            def four_now() -> None:
                with ThreadPoolExecutor(FETCHES_AT_ONCE) as pool:
                    paths = [folder / f"out-{key}" for key in shorts]
                    list(pool.map(bucket.fetch, shorts, paths, [limit] * len(shorts)))

            figures = {
                "parts_ratio": compare(
                    "six parts of a game",
                    lambda: parts_before(bucket, long.name, out),
                    lambda: bucket.fetch(long.name, out, limit, PARTS),
                    asked.rounds,
                ),
                "whole_ratio": compare(
                    "a video of 60 MiB",
                    lambda: whole_before(bucket, whole.name, out),
                    lambda: bucket.fetch(whole.name, out, limit),
                    asked.rounds,
                ),
                "several_ratio": compare(
                    f"4 videos of {short.stat().st_size >> 20} MiB",
                    four_before,
                    four_now,
                    asked.rounds,
                ),
            }
    ratio = round(statistics.geometric_mean(figures.values()), 2)
    print(json.dumps(figures | {"ratio": ratio}))


def settings_of(store: ObjectStore, url: str) -> Settings:
    """Returns a worker's settings for the store at an address."""
    return Settings.model_validate(
        {
            "R2_ENDPOINT": url,
            "R2_ACCESS_KEY_ID": store.access_key,
            "R2_SECRET_ACCESS_KEY": store.secret_key,
            "R2_BUCKET_NAME": store.bucket,
        }
    )


def compare(what: str, before: Callable[[], None], now: Callable[[], None], rounds: int) -> float:
    """Prints the medians of both, and returns their ratio."""
    seconds = [(timed(before), timed(now)) for _ in range(rounds)]
    old, new = (statistics.median(column) for column in zip(*seconds, strict=True))
    print(f"{what:22} before {old:6.2f} s  now {new:6.2f} s  ratio {old / new:.2f}", flush=True)
    return round(float(old / new), 2)


def timed(work: Callable[[], None]) -> float:
    """Returns the wall-clock seconds of a piece of work."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(sys.argv[1:])
