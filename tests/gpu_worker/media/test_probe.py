"""What is in a file, and what is no video at all."""

import resource
import struct
import subprocess
import sys
from fractions import Fraction

import pytest

from gpu_worker.errors import (
    InvalidMedia,
    MediaTooLarge,
    MediaTooLong,
    TooManyStreams,
    UnsupportedMedia,
)
from gpu_worker.media.facts import Limits
from gpu_worker.media.probe import output_facts, probe
from tests.gpu_worker.footage import make
from tests.gpu_worker.test_cases import CASES

PICTURE = ["-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=1"]
TONE = ["-f", "lavfi", "-i", "sine=d=1"]


def test_a_real_clip_is_described(big_buck_bunny):
    """Size, exact rate, length of the picture (not of the longer sound), codecs, colour."""
    facts = probe(big_buck_bunny)
    assert (facts.width, facts.height, facts.fps, facts.duration_seconds) == (
        1280,
        720,
        Fraction(25),
        5.28,
    )
    assert (facts.video_codec, facts.audio_codec, facts.matrix, facts.full_range) == (
        "h264",
        "aac",
        "bt709",
        False,
    )


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        pytest.param("a.mp4", ["-vf", "setsar=4/3"], (427, 240), id="wide-pixels"),
        pytest.param(
            "a.mkv", ["-vf", "scale=321:241", "-pix_fmt", "yuv444p"], (321, 241), id="odd"
        ),
        pytest.param("a.ts", [], (320, 240), id="transport-stream"),
        pytest.param("a.webm", ["-c:v", "libvpx"], (320, 240), id="webm"),
    ],
)
def test_the_size_is_that_of_square_pixels(tmp_path, name, options, size):
    """As decode delivers it."""
    facts = probe(make(tmp_path / name, *PICTURE, *options))
    assert (facts.width, facts.height) == size


@pytest.mark.parametrize(
    ("degrees", "size"), [(90, (240, 320)), (180, (320, 240)), (270, (240, 320))]
)
def test_rotation_metadata_is_applied(tmp_path, degrees, size):
    """A phone held upright films a portrait."""
    flat = make(tmp_path / "flat.mp4", *PICTURE)
    turned = make(tmp_path / "turned.mp4", "-display_rotation", degrees, "-i", flat, "-c", "copy")
    facts = probe(turned)
    assert (facts.width, facts.height) == size


@pytest.mark.parametrize("rate", ["30000/1001", "24000/1001", "25", "60", "50"])
def test_rates_are_kept_as_fractions(tmp_path, rate):
    """29.97 is 30000/1001, not a float near it."""
    clip = make(tmp_path / "a.mp4", "-f", "lavfi", "-i", f"testsrc2=s=64x64:r={rate}:d=2")
    assert probe(clip).fps == Fraction(rate)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
@pytest.mark.parametrize("rate", ["1", "5/4", "3", "15/2"])
def test_small_rates_are_exact(tmp_path, name, rate):
    """Recordings of screens and of the sky."""
    source = ("-f", "lavfi", "-i", f"testsrc2=s=64x64:r={rate}:d=10", "-c:v", "libx264")
    facts = probe(make(tmp_path / name, *source))
    assert facts.fps == Fraction(rate)
    assert facts.duration_seconds == pytest.approx(10, abs=float(1 / Fraction(rate)))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize(("rate", "shown"), [("1/2", "1"), ("2/5", "6/5"), ("1/60", "1")])
def test_rates_below_one_a_second_are_multiplied(tmp_path, name, rate, shown):
    """A result of two seconds is not one frame of a minute."""
    source = ("-f", "lavfi", "-i", f"testsrc2=s=64x64:r={rate}:d=180", "-c:v", "libx264")
    assert probe(make(tmp_path / name, *source)).fps == Fraction(shown)


@pytest.mark.parametrize("factor", [0.25, 3.0])
@pytest.mark.parametrize("box", [b"mdhd", b"tkhd", b"mvhd"])
def test_a_length_in_an_mp4s_header_is_not_believed(tmp_path, box, factor):
    """The index has 100 pictures at 25 a second, whatever the header says."""
    body = bytearray((CASES / "plain.mp4").read_bytes())
    at = body.index(box) + {b"mdhd": 20, b"tkhd": 24, b"mvhd": 20}[box]
    length = int.from_bytes(body[at : at + 4], "big")
    body[at : at + 4] = int(length * factor).to_bytes(4, "big")
    path = tmp_path / "a.mp4"
    path.write_bytes(body)
    facts = probe(path)
    assert (facts.fps, facts.duration_seconds) == (25, pytest.approx(4.0))


def test_a_variable_rate_is_read_onto_the_finer_grid(tmp_path):
    """No frame of the fast part is lost."""
    drop = "select='if(lt(t,1),1,not(mod(n,3)))'"
    source = "testsrc2=s=64x64:r=30:d=3"
    clip = make(tmp_path / "a.mp4", "-f", "lavfi", "-i", source, "-vf", drop, "-fps_mode", "vfr")
    assert probe(clip).fps == 30


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", id="playlist"),
        pytest.param(b"\xef\xbb\xbf\n#EXTM3U\n", id="playlist-behind-a-byte-order-mark"),
        pytest.param(b"ffconcat version 1.0\nfile /etc/passwd\n", id="concat-script"),
        pytest.param(b"<?xml version='1.0'?><MPD/>", id="dash-manifest"),
    ],
)
def test_playlists_and_scripts_are_refused_by_their_content(tmp_path, body):
    """Whatever they are called: they could make ffmpeg open other files."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(body)
    with pytest.raises(UnsupportedMedia, match="playlist or a script"):
        probe(path)


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        (Limits(pixels=320 * 240 - 1), MediaTooLarge),
        (Limits(seconds=0.5), MediaTooLong),
        (Limits(streams=0), TooManyStreams),
    ],
)
def test_each_limit_has_its_own_error(tmp_path, limits, error):
    """And is not exceeded before it is checked."""
    with pytest.raises(error):
        probe(make(tmp_path / "a.mp4", *PICTURE), limits)


def test_a_clip_without_sound_says_so(tmp_path):
    """None, not an empty string."""
    assert probe(make(tmp_path / "a.mp4", *PICTURE)).audio_codec is None


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="zero-bytes"),
        pytest.param(b"dear diary " * 100, id="text"),
        pytest.param(
            b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2" + b"\x00" * 500, id="no-moov"
        ),
    ],
)
def test_what_is_no_video_is_refused(tmp_path, body):
    """With a sentence for the user, whatever the file is called."""
    path = tmp_path / "a.mp4"
    path.write_bytes(body)
    with pytest.raises(InvalidMedia, match=r"^The file .*\.$"):
        probe(path)


def test_sound_alone_is_no_video(tmp_path):
    """Nor is sound with a cover picture."""
    clip = make(tmp_path / "a.mp4", *TONE)
    with pytest.raises(InvalidMedia, match="no video track"):
        probe(clip)
    cover = make(tmp_path / "cover.png", *PICTURE, "-frames:v", "1")
    with_cover = make(
        tmp_path / "b.mp4",
        "-i",
        clip,
        "-i",
        cover,
        "-map",
        "0",
        "-map",
        "1",
        "-c",
        "copy",
        "-disposition:v:0",
        "attached_pic",
    )
    with pytest.raises(InvalidMedia, match="no video track"):
        probe(with_cover)


def test_a_video_without_a_frame_is_refused(tmp_path):
    """A header promises a track, but nothing is in it."""
    whole = make(
        tmp_path / "whole.mp4", *PICTURE, "-movflags", "frag_keyframe+empty_moov"
    ).read_bytes()
    header_only = tmp_path / "a.mp4"
    header_only.write_bytes(whole[: whole.index(b"moof") - 4])
    with pytest.raises(InvalidMedia, match=r"without a single frame\.$"):
        probe(header_only)


def test_a_finished_file_is_counted(big_buck_bunny):
    """Frames by packets, not by what the header claims."""
    facts = output_facts(big_buck_bunny)
    assert (facts.frames, facts.fps, facts.width, facts.audio_codec) == (132, 25.0, 1280, "aac")


@pytest.mark.abuse
def test_wide_pixels_count_as_what_they_become(tmp_path):
    """320x240 pixels, each 60 times as wide as high, are frames of 19200x240."""
    wide = make(tmp_path / "a.mp4", *PICTURE, "-vf", "setsar=60")
    assert probe(wide).width == 19200
    with pytest.raises(MediaTooLarge, match="19200x240"):
        probe(wide, Limits(pixels=320 * 240))


def forged(path, box, offset, value):
    """Overwrites a number in a box of a file: `offset` bytes behind the box's name."""
    data = bytearray(path.read_bytes())
    struct.pack_into(">I", data, data.index(box) + 4 + offset, value)
    path.write_bytes(data)


def claims_samples(path, count):
    """A MOV of ten frames whose tables claim so many samples of one byte."""
    make(path, *PICTURE, "-c:v", "mjpeg", "-frames:v", "10")
    for box, offset, value in (
        (b"stsz", 4, 1),
        (b"stsz", 8, count),
        (b"stsc", 12, count),
        (b"stts", 8, count),
    ):
        forged(path, box, offset, value)
    return path


def claims_a_fragment(path, count):
    """A fragmented MP4 whose first run claims so many samples, with a size for all of them."""
    make(path, *PICTURE, "-movflags", "frag_keyframe+empty_moov+default_base_moof")
    forged(path, b"trun", 0, 0x000001)
    forged(path, b"trun", 4, count)
    return path


PEAK = """
import sys
from pathlib import Path
from gpu_worker.errors import InvalidMedia
from gpu_worker.media.excerpt import RANGE_BYTES, Remote, fetch_excerpt
from gpu_worker.media.probe import probe

path = Path(sys.argv[1])
try:
    probe(path)
except InvalidMedia as error:
    print(error)
body = path.read_bytes()
remote = Remote(len(body), body[:RANGE_BYTES], lambda begin, end: body[begin:end])
fetch_excerpt(remote, path.with_suffix(".part"), [(0, 1)])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024)
"""


@pytest.mark.abuse
@pytest.mark.parametrize("forge", [claims_samples, claims_a_fragment])
@pytest.mark.parametrize("count", [20_000_000, 300_000_000])
def test_a_forged_index_takes_no_more_memory_than_a_large_video(tmp_path, measured, forge, count):
    """20 KB that claim 300 million samples would take 10 GB; the worker goes on."""
    path = forge(tmp_path / "a.mov", count)
    run = subprocess.run(
        [sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True, timeout=120
    )
    *_, peak = run.stdout.split()
    measured(f"{forge.__name__} {count}: {path.stat().st_size} bytes, {peak} MiB at the peak")
    assert int(peak) < 1300


@pytest.mark.abuse
def test_the_bound_on_memory_ends_with_the_probe(tmp_path):
    """A worker needs more for the edit than for the probe."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(InvalidMedia):
        probe(claims_samples(tmp_path / "a.mov", 300_000_000))
    assert resource.getrlimit(resource.RLIMIT_AS) == before
