"""Frames by index, upright, with square pixels and right colours, from whatever the file is."""

import numpy as np
import pytest

from gpu_worker.errors import InvalidMedia, MediaTooLarge
from gpu_worker.host.guard import Guard
from gpu_worker.media.decode import decode
from gpu_worker.media.facts import Limits
from gpu_worker.media.frames import Region, frame_bytes
from gpu_worker.media.hardware import HardwareDecoder
from gpu_worker.media.probe import probe
from tests.gpu_worker.codecs import Chip
from tests.gpu_worker.footage import make, make_raw
from tests.gpu_worker.pictures import same


def decoded(path, first=0, count=None):
    """Returns the luma of the frames, (n, height, width)."""
    facts = probe(path)
    count = count or round(facts.duration_seconds * facts.fps) - first
    with decode(path, facts, first, count, Guard()) as frames:
        return np.stack([frame.y.numpy() for frame in frames])


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """80 frames at 30000/1001, each with its own even grey, in long groups of pictures with
    B-frames.
    """
    frames = np.stack([np.full((64, 96), 20 + 2 * n, np.uint8) for n in range(80)])
    path = tmp_path_factory.mktemp("decode") / "numbered.mp4"
    return make_raw(path, frames, "30000/1001", "-g", "60", "-bf", "3")


def numbers(pictures):
    return [(int(picture[30, 40]) - 20) // 2 for picture in pictures]


@pytest.mark.parametrize("first", [0, 1, 7, 29, 59, 60, 61, 79])
def test_frame_i_is_frame_i_wherever_one_begins(numbered, first):
    """A cut is exact, never at a keyframe nearby."""
    assert numbers(decoded(numbered, first, min(5, 80 - first))) == list(
        range(first, min(first + 5, 80))
    )


@pytest.mark.parametrize("frames_before", [None, 0, 1, 30])
def test_a_gpus_decoder_that_fails_costs_no_frame(numbered, tmp_path, monkeypatch, frames_before):
    """At the start or in the middle: the CPU goes on from the frame reached, and does the rest of
    the file.
    """
    fails = {} if frames_before is None else {"decoder": frames_before * frame_bytes(64, 96)}
    chip = Chip(tmp_path, monkeypatch, **fails)
    facts, hardware = probe(numbered), HardwareDecoder()
    for _ in range(2):
        with decode(numbered, facts, 7, 60, Guard(), hardware=hardware) as frames:
            assert numbers([frame.y.numpy() for frame in frames]) == list(range(7, 67))
    assert hardware.failed is (frames_before is not None)
    assert chip.used == ["decoder"] * (1 if hardware.failed else 2)


def test_a_damaged_video_is_damaged_for_both(numbered, tmp_path, monkeypatch):
    """The CPU's word counts, after the GPU's decoder has failed at it."""
    chip = Chip(tmp_path, monkeypatch)
    cut = tmp_path / "cut.mp4"
    moved = make(tmp_path / "moved.mp4", "-i", numbered, "-c", "copy", "-movflags", "+faststart")
    cut.write_bytes(moved.read_bytes()[: moved.stat().st_size // 2])
    with (
        decode(cut, probe(cut), 0, 80, Guard(), hardware=HardwareDecoder()) as frames,
        pytest.raises(InvalidMedia, match="damaged"),
    ):
        list(frames)
    assert chip.used == ["decoder"]


@pytest.mark.parametrize(
    "window", [Region(20, 10, 40, 50), Region(2, 0, 63, 33), Region(100, 60, 21, 11)]
)
def test_a_window_is_a_part_of_each_frame(tmp_path, window):
    """Bit for bit, of odd sizes too, to the last column."""
    clip = make_raw(
        tmp_path / "a.mp4", np.random.default_rng(1).integers(16, 236, (5, 72, 122), np.uint8), "25"
    )
    facts = probe(clip)
    with decode(clip, facts, 0, 5, Guard()) as frames:
        expected = [frame.region(window) for frame in frames]
    with decode(clip, facts, 0, 5, Guard(), window=window) as frames:
        assert same(list(frames), expected)


def test_every_frame_comes_once(numbered):
    """None twice, none left out, in order."""
    assert numbers(decoded(numbered)) == list(range(80))


def test_a_variable_rate_comes_out_even(tmp_path):
    """One second at 30 frames a second, two at 10: all on a grid of 30, each at its time."""
    grey = "geq=lum='20+2*N':cb=128:cr=128"
    drop = "select='if(lt(t,1),1,not(mod(n,3)))'"
    tags = "setparams=range=tv:colorspace=bt709"
    clip = make(
        tmp_path / "a.mp4",
        "-f",
        "lavfi",
        "-i",
        f"color=s=64x64:r=30:d=3,{grey},{drop},{tags}",
        "-fps_mode",
        "vfr",
        "-c:v",
        "libx264",
        "-qp",
        "0",
    )
    pictures = decoded(clip, count=90)
    seen = numbers(pictures)
    assert 88 <= len(seen) <= 90
    assert seen[:30] == list(range(30))
    assert all(abs(n - i) <= 2 for i, n in enumerate(seen[30:88], start=30))


def test_a_picture_that_starts_late_shows_its_first_frame_from_the_beginning(tmp_path):
    """Sound from 0 s, picture from 0.4 s: 10 frames of waiting, sync kept."""
    picture = ["-itsoffset", "0.4", "-f", "lavfi", "-i", "color=gray:s=64x64:r=25:d=1"]
    clip = make(
        tmp_path / "a.mkv", "-f", "lavfi", "-i", "sine=d=2", *picture, "-map", "1", "-map", "0"
    )
    assert len(decoded(clip, count=35)) == 35


def test_a_turned_picture_comes_upright(tmp_path):
    """White on the left, filmed turned by 90 degrees, is white at the bottom or top, as players
    show it.
    """
    left = np.full((64, 96), 16, np.uint8)
    left[:, :48] = 235
    flat = make_raw(tmp_path / "flat.mp4", np.stack([left] * 5), "25")
    turned = make(tmp_path / "turned.mp4", "-display_rotation", "90", "-i", flat, "-c", "copy")
    picture = decoded(turned)[0]
    assert picture.shape == (96, 64)
    # Counter-clockwise by 90 degrees: what was on the left is at the bottom.
    assert picture[80:].mean() > 225
    assert picture[:16].mean() < 26


@pytest.mark.parametrize(
    ("matrix", "range_", "tags"),
    [
        pytest.param("bt601", "tv", ["-colorspace", "smpte170m"], id="bt601"),
        pytest.param("bt709", "tv", ["-colorspace", "bt709"], id="bt709"),
        pytest.param("bt601", "pc", ["-colorspace", "smpte170m"], id="full-range"),
        pytest.param("bt601", "tv", [], id="untagged-sd"),
    ],
)
def test_colours_arrive_in_bt709(tmp_path, matrix, range_, tags):
    """Pure red is the same red, whatever matrix and range it was stored in."""
    convert = f"format=rgb24,scale=out_color_matrix={matrix}:out_range={range_},format=yuv444p"
    clip = make(
        tmp_path / "a.mp4",
        "-f",
        "lavfi",
        "-i",
        "color=red:s=64x64:r=25:d=0.4",
        "-vf",
        convert,
        "-c:v",
        "libx264",
        "-qp",
        "0",
        *tags,
        "-color_range",
        range_,
    )
    facts = probe(clip)
    with decode(clip, facts, 0, 1, Guard()) as frames:
        frame = next(frames)
    middle = [int(plane[plane.shape[0] // 2, plane.shape[1] // 2]) for plane in frame.planes]
    assert np.abs(np.array(middle) - [63, 102, 240]).max() <= 2


def test_a_truncated_file_is_not_a_short_film(tmp_path, big_buck_bunny):
    """The header promises 5.3 s; what can be read is said."""
    path = make(
        tmp_path / "front.mp4", "-i", big_buck_bunny, "-c", "copy", "-movflags", "+faststart"
    )
    half = tmp_path / "half.mp4"
    half.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InvalidMedia, match=r"only \d\.\d of 5\.3 seconds can be read"):
        decoded(half, count=132)


def test_memory_does_not_grow_with_the_clip(big_buck_bunny):
    """A frame is gone once the next one is asked for: leaving early leaves no process either."""
    with decode(big_buck_bunny, probe(big_buck_bunny), 0, 132, Guard()) as frames:
        first = next(frames)
        address = first.y.data_ptr()
        del first
        assert any(next(frames).y.data_ptr() == address for _ in range(20))


@pytest.mark.abuse
def test_a_picture_that_grows_within_the_video_is_not_decoded(tmp_path):
    """The header and the first second say 64x64; a frame of 640x480 ends the job by its name, at a
    limit of 64x64.
    """
    parts = [
        make(
            tmp_path / f"{size}.ts",
            "-f",
            "lavfi",
            "-i",
            f"testsrc2=s={size}:r=25:d=1",
            "-c:v",
            "mpeg2video",
        )
        for size in ("64x64", "640x480")
    ]
    grown = tmp_path / "grown.ts"
    grown.write_bytes(b"".join(part.read_bytes() for part in parts))
    facts = probe(grown, Limits(pixels=64 * 64))
    with (
        decode(grown, facts, 0, 50, Guard(), max_pixels=64 * 64) as frames,
        pytest.raises(MediaTooLarge, match="4096 pixels are taken"),
    ):
        list(frames)
