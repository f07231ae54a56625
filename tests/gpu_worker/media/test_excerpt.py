"""Parts of a long file, fetched by range: the same pictures and sounds, a small share of the
bytes.
"""

import subprocess

import numpy as np
import pytest

from gpu_worker import bucket as storage
from gpu_worker.host.guard import Guard
from gpu_worker.media.decode import decode
from gpu_worker.media.excerpt import BLOCK_BYTES, fetch_excerpt
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
    return fetch_excerpt(lambda begin, end: body[begin:end], len(body), path, parts)


def frames(path, first, count):
    facts = probe(path)
    with decode(path, facts, first, count, Guard()) as decoded:
        return np.stack([frame.y.numpy() for frame in decoded])


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
