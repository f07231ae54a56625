"""Transport and program streams: one clock for picture and sound, whatever theirs does."""

import shutil

import pytest

from gpu_worker.errors import InvalidMedia
from gpu_worker.host.guard import Guard
from gpu_worker.media.facts import Limits
from gpu_worker.media.probe import probe
from gpu_worker.media.remux import with_one_clock
from tests.gpu_worker.footage import beeps, make
from tests.gpu_worker.test_cases import CASES, exported_file, numbers, runs

pytestmark = pytest.mark.editing
PLAIN = CASES / "plain.mp4"
MPEG2 = ("-c:v", "mpeg2video", "-q:v", "2", "-bf", "2")


def joined(path, *parts):
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def ts(path, *options, start=0.0, seconds=2.0, clock=0.0):
    """Makes a stretch of the coded film, whose clock begins at `clock`."""
    codecs = options or ("-c:v", "libx264", "-crf", "18", "-c:a", "aac")
    cut = ("-ss", str(start), "-t", str(seconds))
    return make(path, *cut, "-i", PLAIN, *codecs, "-output_ts_offset", str(clock))


@pytest.mark.parametrize("clock", [0.0, 20.0, 7200.0, 95443.0], ids=str)
def test_a_clock_that_jumps_anywhere(tmp_path, clock):
    """Back, forth by hours, and to where its 33 bits are over within a second."""
    first = ts(tmp_path / "a.ts", clock=100.0)
    second = ts(tmp_path / "b.ts", start=2.0, clock=clock)
    out = exported_file(tmp_path, joined(tmp_path / "c.ts", first, second))
    assert numbers(out) == list(range(100))
    # The sound of the first part is some milliseconds longer than its picture.
    assert beeps(out)[:, 0] == pytest.approx([0.25, 1.25, 2.27, 3.27], abs=0.03)


def test_a_pause_of_the_recorder_stays_a_pause(tmp_path):
    """A clock that goes on by less than ten seconds is no other clock, as FFmpeg has it."""
    first = ts(tmp_path / "a.ts", clock=100.0)
    second = ts(tmp_path / "b.ts", start=2.0, clock=105.0)
    out = exported_file(tmp_path, joined(tmp_path / "c.ts", first, second))
    shown = numbers(out)
    assert len(shown) == pytest.approx(175, abs=3)
    assert shown.count(49) == pytest.approx(76, abs=3)
    assert beeps(out)[:, 0] == pytest.approx([0.25, 1.25, 5.25, 6.25], abs=0.03)


@pytest.mark.parametrize("pieces", [(0.4, 0.4, 0.4), (2.0, 0.4, 2.0)], ids=str)
def test_recordings_of_any_length_one_after_the_other(tmp_path, pieces):
    """Each frame of each, in order."""
    parts = [ts(tmp_path / f"{n}.ts", seconds=length) for n, length in enumerate(pieces)]
    out = exported_file(tmp_path, joined(tmp_path / "c.ts", *parts))
    assert numbers(out) == [n for length in pieces for n in range(round(25 * length))]


def test_a_recording_whose_picture_begins_late(tmp_path):
    """After another one: its sound comes first, and the last pictures of the other after that."""
    first = ts(tmp_path / "a.ts", "-c:v", "libx264", "-crf", "18", "-c:a", "mp2")
    late = ("-itsoffset", "0.5", "-i", PLAIN, "-i", PLAIN, "-map", "0:v", "-map", "1:a")
    second = make(
        tmp_path / "b.ts", *late, "-t", "2.5", "-c:v", "libx264", "-crf", "18", "-c:a", "mp2"
    )
    out = exported_file(tmp_path, joined(tmp_path / "c.ts", first, second))
    shown = runs(numbers(out))
    assert [number for number, _ in shown] == [*range(50)] * 2
    assert {count for number, count in shown if number != 49} == {1}
    assert shown[49][1] == pytest.approx(13, abs=1)
    assert beeps(out)[:, 0] == pytest.approx([0.25, 1.25, 2.25, 3.25, 4.25], abs=0.03)


def test_program_streams_one_after_the_other(tmp_path):
    """As a DVD's titles are copied."""
    part = ts(tmp_path / "a.mpg", *MPEG2, "-c:a", "mp2")
    out = exported_file(tmp_path, joined(tmp_path / "c.mpg", part, part))
    assert numbers(out) == [*range(50)] * 2
    assert beeps(out)[:, 0] == pytest.approx([0.25, 1.25, 2.25, 3.25], abs=0.03)


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
def test_sound_that_begins_late_is_late(tmp_path, suffix):
    """By 0.7 s."""
    codecs = ("-map", "0:v", "-map", "1:a", *MPEG2, "-c:a", "mp2")
    source = make(tmp_path / f"a.{suffix}", "-i", PLAIN, "-itsoffset", "0.7", "-i", PLAIN, *codecs)
    out = exported_file(tmp_path, source)
    assert numbers(out) == list(range(100))
    assert beeps(out)[:, 0] == pytest.approx([0.95, 1.95, 2.95, 3.95], abs=0.01)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.ts", (*MPEG2, "-c:a", "ac3")),
        ("a.ts", ("-c:v", "libx265", "-x265-params", "log-level=none", "-c:a", "dca")),
        ("a.vob", (*MPEG2, "-c:a", "ac3")),
        # QuickTime has no name for a disc's sound.
        ("a.m2ts", ("-c:v", "copy", "-c:a", "pcm_bluray", "-ar", "48000")),
    ],
)
def test_the_codecs_of_broadcasts_and_discs(tmp_path, name, options):
    """Every frame once, and the beeps with their frames: DTS adds 11 ms."""
    source = make(tmp_path / name, "-i", PLAIN, "-strict", "-2", *options)
    out = exported_file(tmp_path, source)
    assert numbers(out) == list(range(100))
    assert beeps(out)[:, 0] == pytest.approx([0.25, 1.25, 2.25, 3.25], abs=0.012)


def test_other_files_stay_as_they_are(tmp_path):
    """An MP4, and what `probe` refuses with a name."""
    for name, body in (
        ("a.mp4", PLAIN.read_bytes()),
        ("noise", bytes(range(256)) * 20),
        ("empty", b""),
    ):
        path = tmp_path / name
        path.write_bytes(body)
        assert with_one_clock(path, Guard()) is None
        assert path.read_bytes() == body
    crowded = tmp_path / "a.ts"
    shutil.copy(CASES / "tscat.ts", crowded)
    with_one_clock(crowded, Guard(), Limits(streams=1))
    assert crowded.read_bytes() == (CASES / "tscat.ts").read_bytes()


def test_a_stream_with_sound_alone_is_refused_by_name(tmp_path):
    """As every file without a picture is."""
    path = make(tmp_path / "a.ts", "-i", PLAIN, "-vn", "-c:a", "copy")
    with pytest.raises(InvalidMedia, match="no video track"):
        with_one_clock(path, Guard())
    with pytest.raises(InvalidMedia, match="no video track"):
        probe(path)
