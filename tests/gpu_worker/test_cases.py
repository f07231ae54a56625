"""Files from the wild, of kinds that once came out wrong without a word, or were refused.

The coded film: 320x180, 25 frames a second. The frame's number stands as ten black or white blocks
over the upper third; four colours are below: (180,30,30) (30,150,30) (40,40,180) (200,180,40).
"""

import asyncio
import itertools
import json
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from gpu_worker.edits.fonts import Fonts, clusters, drawable, one_line
from gpu_worker.edits.text import Ink, _eight_bits, set_lines
from gpu_worker.errors import InvalidMedia, MediaTooLarge, UnsupportedMedia
from gpu_worker.media.probe import probe
from gpu_worker.runner import Runner
from tests.gpu_worker.footage import beeps, luma, make, sound
from tests.gpu_worker.render.test_render import rendered

pytestmark = pytest.mark.editing
CASES = Path(__file__).parent / "cases"
SIZE = {"output_width": 320, "output_height": 180}


def codes(pictures):
    """Returns the number that each frame of a coded film has."""
    found = []
    for picture in pictures:
        blocks = [picture[15:45, 32 * n + 10 : 32 * n + 22].mean() > 128 for n in range(10)]
        found.append(int("".join("01"[int(bit)] for bit in blocks), 2))
    return found


def numbers(path):
    return codes(luma(path)[0])


def exported_file(tmp_path, source, **params):
    out = tmp_path / "out.mp4"
    rendered(out, "framing", SIZE | params, {"a": source})
    return out


def exported(tmp_path, name, **params):
    return exported_file(tmp_path, Path(shutil.copy(CASES / name, tmp_path)), **params)


def runs(values):
    return [(value, len(list(same))) for value, same in itertools.groupby(values)]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("plain.mp4", 100),
        # A recording whose picture becomes smaller in the middle.
        ("midres.ts", 100),
        ("midres.webm", 100),
        # Two recordings as one file; a clock that jumps by two hours.
        ("tscat.ts", 100),
        ("tsjump.ts", 100),
        # A tag says 1 s, or 3 s, of a film of 2 s.
        ("stale-short.mkv", 50),
        ("stale.mkv", 50),
        # A format whose length is an estimate.
        ("ps-dvd-53.vob", 53),
        ("ps-vob-100.vob", 100),
        ("low.mp4", 60),
        # Sound that nobody decodes.
        ("apac-first.mp4", 50),
        ("apac-only.mp4", 50),
        # HDR and wide gamut with tags that are missing.
        ("pq-nomatrix.mp4", 25),
        ("pq-only-trc.mp4", 25),
        ("bt2020-notrc.mp4", 25),
        ("bt2020-slog.mp4", 25),
        ("hlg-nomatrix.mp4", 25),
        ("hlg-noprim.mp4", 25),
    ],
)
def test_each_frame_is_there_once(tmp_path, name, count):
    """In order, and none of another moment."""
    assert numbers(exported(tmp_path, name)) == list(range(count))


@pytest.mark.parametrize("name", ["hold.mp4", "hold.mkv"])
def test_a_picture_that_was_on_screen_before_a_cut_is_shown(tmp_path, name):
    """A screen recording with pictures at 0, 0.5, 1, 6, 6.5 and 7 s."""
    whole = runs(numbers(exported(tmp_path, name, target_fps=10)))
    assert whole == [(1, 5), (2, 5), (3, 50), (4, 5), (5, 5), (6, 10)]
    cut = exported(tmp_path, name, target_fps=10, start_time=3, end_time=7.5)
    assert runs(numbers(cut)) == [(3, 30), (4, 5), (5, 5), (6, 5)]
    late = exported(tmp_path, name, target_fps=10, start_time=0.6, end_time=7.5)
    assert runs(numbers(late)) == [(2, 4), (3, 50), (4, 5), (5, 5), (6, 5)]


@pytest.mark.parametrize("name", ["firefox.webm", "firefox-v.webm"])
def test_a_browsers_recording_keeps_each_picture_at_60_a_second(tmp_path, name):
    """Its time base is no rate; each picture is within a frame of its moment."""
    times = json.loads((CASES / "firefox.json").read_text())
    assert probe(CASES / name).fps == 60
    found = numbers(exported(tmp_path, name))
    assert sorted(set(found)) == list(range(len(times)))
    for number, milliseconds in enumerate(times):
        assert abs(found.index(number) / 60 - milliseconds / 1000) <= 1 / 60


def test_an_upload_that_broke_off_is_refused(tmp_path):
    """Of a variable rate too: the index lists 67 pictures, and 33 are there."""
    with pytest.raises(InvalidMedia, match="only 33 of 67 pictures"):
        probe(CASES / "vfrcut.mp4")


def test_a_codec_that_nobody_has_is_named_once():
    """The picture's ends the job; the first sound's brings the next one; the only sound's, none."""
    with pytest.raises(UnsupportedMedia, match="codec"):
        probe(CASES / "unknown-video.mp4")
    second, none = probe(CASES / "apac-first.mp4"), probe(CASES / "apac-only.mp4")
    assert (second.audio_codec, second.audio_track) == ("aac", 1)
    assert "next track" in second.warning
    assert (none.audio_codec, "silent" in none.warning) == (None, True)
    assert probe(CASES / "plain.mp4").warning is None


def test_the_next_sound_track_is_heard(tmp_path):
    """Beeps, where the first track has a codec that nobody has."""
    heard = sound(exported(tmp_path, "apac-first.mp4"))
    assert np.abs(heard).max() > 0.1


def test_a_photo_is_no_video(tmp_path):
    """HEIC and AVIF are ISO files as MP4 is."""
    for brand in (b"heic", b"mif1", b"avif"):
        photo = tmp_path / "photo"
        photo.write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0" * 64)
        with pytest.raises(UnsupportedMedia, match="photo"):
            probe(photo)


def test_pixels_are_counted_after_their_aspect(tmp_path):
    """1280x720 of pixels that are 100 times as wide as high."""
    with pytest.raises(MediaTooLarge, match="128000x720"):
        probe(CASES / "sar100.mp4")


def test_a_picture_that_begins_late_is_late(tmp_path):
    """In a transport stream, whose clock begins anywhere: a second after the sound; the first
    picture is shown until then.
    """
    out = exported(tmp_path, "off-picture_1_s_late.ts")
    shown = runs(numbers(out))
    assert [number for number, _ in shown] == list(range(100))
    assert shown[0][1] in (26, 27)
    assert {count for _, count in shown[1:]} == {1}
    assert beeps(out)[:, 0] == pytest.approx([0.25, 1.25, 2.25, 3.25], abs=0.03)


def test_sound_that_drifts_stays_with_its_timestamps(tmp_path):
    """A recorder whose clock is 1 % slow."""
    heard = beeps(exported(tmp_path, "drift.mkv"))[:, 0]
    assert heard == pytest.approx((np.arange(len(heard)) + 0.25) * 1.01, abs=0.045)


@pytest.mark.parametrize(
    ("options", "joined"),
    [
        pytest.param((("-ac", "2"), ("-ac", "6")), "a.mkv", id="layout"),
        pytest.param((("-ac", "6"), ("-ac", "1")), "a.mp4", id="layout-mp4"),
        pytest.param((("-ar", "48000"), ("-ar", "32000")), "a.mkv", id="rate"),
        pytest.param((("-ac", "2"), ("-ac", "6", "-ar", "32000")), "a.ts", id="both"),
    ],
)
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_sound_that_changes_in_mid_stream_stays_in_its_place(tmp_path, options, joined, start):
    """A broadcast whose film has 5.1 channels, and whose advertisement has two."""
    parts = [
        make(
            tmp_path / f"{n}.ts",
            *("-ss", str(2 * n), "-t", "2", "-i", CASES / "plain.mp4"),
            *("-c:v", "libx264", "-crf", "18", "-c:a", "ac3", *one),
        )
        for n, one in enumerate(options)
    ]
    (tmp_path / "list.txt").write_text("".join(f"file {part}\n" for part in parts))
    whole = ("-f", "concat", "-safe", "0", "-i", tmp_path / "list.txt", "-c", "copy")
    out = exported_file(tmp_path, make(tmp_path / joined, *whole), start_time=start)
    first = round(25 * start)
    # The first part's last picture stays until its sound is over.
    assert [number for number, _ in runs(numbers(out))] == list(range(first, 100))
    expected = [at - start for at in (0.25, 1.25, 2.25, 3.25) if at > start]
    # The first part's sound lasts up to a packet longer than its picture.
    assert beeps(out)[:, 0] == pytest.approx(expected, abs=0.045)
    assert beeps(out)[0, 0] == pytest.approx(expected[0], abs=0.01)


def test_a_programme_that_becomes_interlaced_is_deinterlaced(tmp_path):
    """From 1 s on; what comes before keeps its lines."""
    pictures, _ = luma(exported(tmp_path, "mixed.ts"))
    lines = pictures.astype(float)
    combs = np.abs(lines[:, 1:-1] - (lines[:, :-2] + lines[:, 2:]) / 2).mean(axis=(1, 2))
    assert combs.max() < 0.1


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("a.gif", ("-vf", "fps=5"), None),
        ("a.ogv", ("-c:v", "libtheora", "-q:v", "9", "-c:a", "libvorbis"), range(50)),
        ("a.mxf", ("-c:v", "mpeg2video", "-q:v", "2", "-ar", "48000"), range(50)),
        ("a.dv", ("-target", "pal-dv"), range(50)),
        ("a.mpg", ("-c:v", "mpeg2video", "-q:v", "2"), range(50)),
    ],
)
def test_containers_that_people_ask_for(tmp_path, name, options, expected):
    """From a browser, a broadcaster, a tape and a DVD."""
    source = make(tmp_path / name, "-i", CASES / "plain.mp4", "-t", "2", *options)
    found = numbers(exported_file(tmp_path, source))
    assert found == (sorted(set(found)) if expected is None else list(expected))
    assert len(found) == (10 if expected is None else 50)


@pytest.mark.parametrize("rate", ["1048576/46851", "12.3456789", "239.99"])
def test_odd_rates_are_exported(tmp_path, rate):
    """Encoders round a rate of large terms, so that the numbers of frames would not fit."""
    source = ("-f", "lavfi", "-i", f"testsrc2=s=64x64:r={rate}:d=0.5", "-c:v", "libx264")
    out = exported_file(tmp_path, make(tmp_path / "a.mkv", *source))
    assert len(luma(out)[0]) == pytest.approx(0.5 * float(Fraction(rate)), abs=1)


def test_raw_video_is_refused_by_its_name(tmp_path):
    """It is text at its beginning."""
    raw = make(tmp_path / "a.y4m", "-i", CASES / "plain.mp4", "-t", "0.2")
    with pytest.raises(UnsupportedMedia, match="Y4M"):
        probe(raw)


@pytest.mark.parametrize(
    "segments",
    [
        pytest.param([{"start": 1.0, "end": 1.01, "speed": 2.0}], id="10-ms"),
        pytest.param([{"start": 1.0, "end": 1.02, "speed": 4.0}], id="20-ms-at-4x"),
        pytest.param([{"start": 0.0, "end": 3.995, "speed": 0.5}], id="5-ms-are-left"),
        pytest.param(
            [
                {"start": n * 0.008, "end": n * 0.008 + 0.004, "speed": (0.5, 2.0)[n % 2]}
                for n in range(500)
            ],
            id="500-ramps",
        ),
    ],
)
def test_any_number_of_spans_of_any_length(tmp_path, segments):
    """The graph of the sound is a file, and a blip is resampled; picture and sound end together."""
    out = exported(tmp_path, "plain.mp4", segments=segments)
    length = 4 + sum((one["end"] - one["start"]) * (1 / one["speed"] - 1) for one in segments)
    assert len(numbers(out)) == pytest.approx(length * 25, abs=1)
    assert len(sound(out)) / 48_000 == pytest.approx(length, abs=0.06)


def test_spans_after_the_end_of_the_sound_are_silent(tmp_path):
    """At several speeds; the sound of a recording may end long before its picture."""
    source = make(tmp_path / "a.mp4", "-i", CASES / "plain.mp4", "-c", "copy", "-map", "0:v",
                  "-map", "0:a", "-bsf:a", "noise=drop='gt(pts*tb,0.5)'")  # fmt: skip
    segments = [{"start": 2, "end": 3, "speed": 2.0}, {"start": 3.2, "end": 3.4, "speed": 0.5}]
    for start in (0.0, 1.0):
        out = exported_file(tmp_path, source, segments=segments, start_time=start)
        assert len(numbers(out)) == pytest.approx(25 * (3.7 - start), abs=1)
        heard = sound(out)
        assert len(heard) / 48_000 == pytest.approx(3.7 - start, abs=0.06)
        assert np.abs(heard[48_000:]).max() < 0.01


def test_what_is_lost_is_in_the_result(settings, bucket, objects, user_id):
    """The job's result lists it, for the page and the user's own program."""
    objects.put(f"{user_id}/in.mp4", (CASES / "apac-only.mp4").read_bytes())
    sent = {"job_id": "j1", "user_id": user_id, "type": "framing", "input_key": "in.mp4"}
    sent |= {"attempt_token": "0" * 32, "params": SIZE}

    async def nowhere(_):
        pass

    result = asyncio.run(Runner(settings(), bucket).run(sent, "rp-1", nowhere))
    (warning,) = result.facts.warnings
    assert warning == "in.mp4: The sound's codec is not known here; the export is silent."


# ── colour ────────────────────────────────────────────────────────────────────────────────────────


def colours(path):
    """Returns the four colours of the first frame, by BT.709."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        planes = frame.to_ndarray(format="yuv444p").astype(float)
    found = []
    for x in (40, 120, 200, 280):
        y, u, v = planes[:, 120, x] - (16, 128, 128)
        rgb = y * 255 / 219 + np.array([1.5748 * v, -0.18733 * u - 0.46813 * v, 1.8556 * u]) * (
            255 / 224
        )
        found.append(np.clip(rgb, 0, 255))
    return np.array(found)


SHOWN = np.array([(180, 30, 30), (30, 150, 30), (40, 40, 180), (200, 180, 40)])


def test_display_p3_becomes_bt709(tmp_path):
    """The film's red in P3 is a stronger one in BT.709."""
    assert colours(exported(tmp_path, "p3.mov"))[0] == pytest.approx((199, 8, 20), abs=2)


@pytest.mark.parametrize(
    "name",
    [
        "pq-nomatrix.mp4",
        "pq-only-trc.mp4",
        "bt2020-notrc.mp4",
        "hlg-nomatrix.mp4",
        "hlg-noprim.mp4",
    ],
)
def test_what_a_tag_leaves_out_is_as_usual(tmp_path, name):
    """HDR without a matrix or primaries is BT.2020."""
    assert colours(exported(tmp_path, name)) == pytest.approx(SHOWN, abs=10)


def test_gray_keeps_its_levels(tmp_path):
    """The scaler takes each gray picture for a full one."""
    with av.open(str(CASES / "gray-hevc.mp4")) as container:
        source = next(container.decode(video=0)).to_ndarray()
    pictures, _ = luma(exported(tmp_path, "gray-hevc.mp4"))
    assert np.abs(pictures[0].astype(int) - source)[100:160].mean() < 1


def test_16_bit_gray_of_a_png_is_not_cut_off():
    """20000 of 65535 is 78 of 255."""
    with Image.open(CASES / "gray16.png") as picture:
        assert set(np.unique(np.asarray(_eight_bits(picture)))) == {78, 255}


# ── text ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Zu\u0308rich", "Zürich"),
        ("a\tb\x07c\r\nd\ud800", "a b c\nd "),
        ("plain", "plain"),
    ],
)
def test_text_is_composed_and_has_no_control_characters(text, expected):
    """Names from a Mac come decomposed; no font has a glyph for a tab."""
    assert drawable(text) == expected


def test_a_name_with_a_line_break_is_one_line():
    """A caption's name and tags have one."""
    assert one_line("Goal\nby\r\nMia") == "Goal by Mia"


def test_marks_and_joined_emoji_stay_together():
    """A font is chosen for all of a cluster."""
    family = "👩\u200d👧"
    assert list(clusters(f"e\u0301x{family}👍🏽")) == ["e\u0301", "x", family, "👍🏽"]


@pytest.mark.parametrize("text", ["هدف 2-1 رائع", "שלום 123 abc", "اللاعب Messi 👍 سجل"])
def test_a_line_from_right_to_left_is_set_as_a_whole(text):
    """Its first word stands at the right and its last one at the left, whichever fonts it needs."""
    line = np.asarray(set_lines([text], Ink(40), Fonts()))[..., 3].astype(int)
    words = text.split()
    for word, columns in ((words[0], slice(-1, None, -1)), (words[-1], slice(None))):
        alone = np.asarray(set_lines([word], Ink(40), Fonts()))[..., 3].astype(int)
        width = alone.shape[1] - 4
        assert np.abs(line[:, columns][:, :width] - alone[:, columns][:, :width]).mean() < 12


def test_emoji_have_their_colours():
    """Where a font has them: skin, flags, keys and hearts, in one line with letters."""
    shades = {
        "👍🏽": (180, 130, 105),
        "⚽": (245, 245, 245),
        "🇩🇪": (225, 10, 10),
        "❤️": (245, 60, 60),
    }
    for emoji, expected in shades.items():
        picture = np.asarray(set_lines([emoji], Ink(60, "#00ff00"), Fonts())).astype(int)
        solid = picture[picture[..., 3] == 255][:, :3]
        assert (np.abs(solid - expected).max(1) < 40).mean() > 0.15, emoji
        assert not (np.abs(solid - (0, 255, 0)).max(1) < 40).any()
    coloured = [run.text for run in Fonts().runs("Goal 👍🏽 1️⃣ 12 #1", 40, False) if run.is_coloured]
    assert coloured == ["👍🏽", "1️⃣"]
