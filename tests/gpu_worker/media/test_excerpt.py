"""Parts of a long file, fetched by range: the same pictures and sounds, a small share of the
bytes.
"""

import subprocess
import threading

import numpy as np
import pytest

from gpu_worker import bucket as storage
from gpu_worker.errors import StorageUnavailable
from gpu_worker.host.guard import Guard
from gpu_worker.media.decode import decode
from gpu_worker.media.excerpt import (
    BLOCK_BYTES,
    RANGE_BYTES,
    Remote,
    blocks_of,
    fetch_excerpt,
    fetch_whole,
    ranges_of,
)
from gpu_worker.media.probe import probe
from tests.gpu_worker.footage import FFMPEG, make

pytestmark = pytest.mark.editing


@pytest.fixture(scope="module")
def game(tmp_path_factory):
    """Two minutes of noise with a tone, about 40 MB, key frames every four seconds."""
    noise = "nullsrc=s=320x240:r=25:d=120,geq=random(1)*255:128:128"
    return make(
        tmp_path_factory.mktemp("game") / "a.mp4",
        "-f",
        "lavfi",
        "-i",
        noise,
        "-f",
        "lavfi",
        "-i",
        "sine=d=120",
        "-c:v",
        "libx264",
        "-preset",
        "ultrafast",
        "-g",
        "100",
        "-bf",
        "2",
        "-b:v",
        "2800k",
        "-maxrate",
        "3M",
        "-bufsize",
        "3M",
    )


def excerpt(original, path, parts):
    """Fetches parts; returns how many bytes that took."""
    body = original.read_bytes()
    return fetch_excerpt(remote(body), path, parts)


def remote(body, read_range=None):
    """What stands for a file in the bucket."""
    return Remote(len(body), body[:RANGE_BYTES], read_range or (lambda begin, end: body[begin:end]))


def frames(path, first, count):
    facts = probe(path)
    with decode(path, facts, first, count, Guard()) as decoded:
        return np.stack([frame.y.numpy() for frame in decoded])


@pytest.mark.parametrize(
    ("blocks", "blocks_in_all", "expected"),
    [
        ([], 10, []),
        ([3], 10, [(3, 4)]),
        ([1, 0], 10, [(0, 2)]),
        ([0, 1, 2, 3, 4], 10, [(0, 2), (2, 4), (4, 5)]),
        ([0, 2, 3, 7], 10, [(0, 1), (2, 4), (7, 8)]),
        ([9], 9.5, [(9, 9.5)]),
    ],
)
def test_neighbouring_blocks_are_fetched_in_one_range(blocks, blocks_in_all, expected):
    """Up to what one request takes, and not beyond the end of the file."""
    ranges = ranges_of(blocks, int(blocks_in_all * BLOCK_BYTES))
    assert [(a / BLOCK_BYTES, b / BLOCK_BYTES) for a, b in ranges] == expected


@pytest.mark.parametrize(
    ("begin", "end", "blocks"),
    [(0, 1, [0]), (0, BLOCK_BYTES, [0]), (1, BLOCK_BYTES + 1, [0, 1]), (BLOCK_BYTES, 2**21, [1])],
)
def test_bytes_lie_in_blocks(begin, end, blocks):
    """From the one that holds the first to the one that holds the last."""
    assert list(blocks_of(begin, end)) == blocks


def test_the_index_says_what_is_fetched_and_several_ranges_are_at_once(game, tmp_path):
    """The walk finds all of a stretch there: after the header, nothing waits for one answer after
    the other.
    """
    body, asked, stretch = game.read_bytes(), [], []
    together = threading.Event()

    def read_range(begin, end):
        asked.append((begin, end))
        if 15 << 20 < begin < 40 << 20:
            stretch.append((begin, end))
            if len(stretch) == 2:
                together.set()
            assert together.wait(10)
        return body[begin:end]

    fetched = fetch_excerpt(remote(body, read_range), tmp_path / "part.mp4", [(62.0, 75.0)])
    stretch.sort()
    assert 3 < len(stretch) < 7
    assert [end for _, end in stretch[:-1]] == [begin for begin, _ in stretch[1:]]
    assert fetched == RANGE_BYTES + sum(b - a for a, b in asked) < len(body) / 2


def test_a_range_that_fails_ends_the_fetch(game, tmp_path):
    """With its own error; the rest is not asked for."""
    body, asked = game.read_bytes(), []

    def read_range(begin, end):
        asked.append(begin)
        if 3 << 20 < begin < 40 << 20:
            raise StorageUnavailable("The object store failed or could not be reached.")
        return body[begin:end]

    with pytest.raises(StorageUnavailable):
        fetch_excerpt(remote(body, read_range), tmp_path / "part.mp4", [(20.0, 100.0)])
    assert len(asked) < 20


@pytest.mark.parametrize("at", [0.0, 41.4, 60.0, 117.0])
def test_the_parts_are_the_originals(game, tmp_path, measured, at):
    """Every frame, bit for bit, at the original's times; most of the file stays where it is."""
    path = tmp_path / "part.mp4"
    fetched = excerpt(game, path, [(at, at + 2.5)])
    whole = game.stat().st_size
    measured(
        f"excerpt of 2.5 s at {at} s: {fetched / 2**20:.1f} of {whole / 2**20:.1f} MiB fetched"
    )
    assert path.stat().st_size == whole
    assert fetched < whole / 2
    assert probe(path) == probe(game)
    first = round(at * 25)
    assert (frames(path, first, 62) == frames(game, first, 62)).all()


def test_the_sound_of_a_part_is_the_originals(game, tmp_path):
    """Read as the encoder reads it: from two seconds before the part."""
    path = tmp_path / "part.mp4"
    excerpt(game, path, [(60.0, 62.0)])

    def samples(file):
        begin = ["-ss", "58", "-vn", "-i", str(file), "-t", "4"]
        return subprocess.run(
            [FFMPEG, "-v", "error", *begin, "-f", "f32le", "pipe:1"],
            check=True,
            capture_output=True,
        ).stdout

    assert len(samples(path)) > 4 * 44100 * 3.9
    assert samples(path) == samples(game)


@pytest.mark.parametrize("size", [0, 1, RANGE_BYTES, RANGE_BYTES + 1, 5 * RANGE_BYTES + 3])
def test_a_whole_file_is_fetched_byte_for_byte(tmp_path, size):
    """Of any size: what the first answer brought, and the rest in ranges."""
    body = np.random.default_rng(1).integers(0, 256, size, np.uint8).tobytes()
    fetch_whole(remote(body), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == body


def test_several_parts_in_any_order(game, tmp_path):
    """As an annotator lists them."""
    path = tmp_path / "part.mp4"
    excerpt(game, path, [(90.0, 91.0), (20.0, 21.0)])
    for at in (20.0, 90.0):
        assert (frames(path, round(at * 25), 25) == frames(game, round(at * 25), 25)).all()


@pytest.mark.parametrize(
    "options", [["-movflags", "frag_keyframe+empty_moov"], ["-f", "matroska"], ["-f", "mpegts"]]
)
def test_other_containers_are_fetched_whole(game, tmp_path, options):
    """Where a reader looks around for its way, a hole would lead it astray."""
    other = make(
        tmp_path / "other",
        "-i",
        game,
        "-t",
        "8",
        "-c",
        "copy",
        *(options or []),
        *(["-f", "mp4"] if "-f" not in options else []),
    )
    assert excerpt(other, tmp_path / "part", [(1.0, 2.0)]) is None


def test_a_damaged_file_is_fetched_whole(tmp_path):
    """So that the probe can say what is wrong with it."""
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\x00" * 100_000)
    assert excerpt(broken, tmp_path / "part.mp4", [(1.0, 2.0)]) is None


def test_a_long_source_is_fetched_by_range_from_the_bucket(
    game, bucket, objects, user_id, tmp_path, monkeypatch
):
    """The real store; only the parts arrive."""
    monkeypatch.setattr(storage, "WHOLE_BYTES", 1 << 20)
    objects.put(f"{user_id}/game.mp4", game.read_bytes())
    path = tmp_path / "part.mp4"
    bucket.fetch(f"{user_id}/game.mp4", path, 1 << 30, [(60.0, 62.0)])
    assert (frames(path, 1500, 50) == frames(game, 1500, 50)).all()
    assert path.stat().st_blocks * 512 < path.stat().st_size / 2 + BLOCK_BYTES
