"""Whole compositions: picture and sound in their places, any mix of sources, honest errors, true
quality.
"""

import itertools
import re
import subprocess
from dataclasses import replace

import av
import numpy as np
import pytest
import torch

from gpu_worker.edits.compose import Kit, Source, compose
from gpu_worker.edits.crop import Resampler
from gpu_worker.edits.fonts import Fonts
from gpu_worker.errors import InvalidMedia, InvalidParams, OutputTooLarge, OutputTooLong
from gpu_worker.host.guard import Guard
from gpu_worker.media.encode import Quality
from gpu_worker.media.probe import output_facts, probe
from gpu_worker.media.remux import prepare
from gpu_worker.render import render as rendering
from gpu_worker.render.render import OutputLimits, Stage, render
from schemas.jobs import JobType
from tests.gpu_worker.footage import (
    FFMPEG,
    beeps,
    flash_and_beep,
    flashes,
    luma,
    make,
    make_raw,
    sound,
)
from tests.gpu_worker.pictures import same

pytestmark = pytest.mark.editing
CPU = torch.device("cpu")
SMALL = {"output_width": 64, "output_height": 64}
EXACT, LIMITS = Quality("ultrafast", 1), OutputLimits()


def composition(job_type, params, files, pngs=None):
    params = JobType(job_type).params_model.model_validate(params)
    sources = {key: Source(path, prepare(path, Guard())) for key, path in files.items()}
    return compose(params, "a", Kit(lambda params, ratio: None, sources, pngs or {}, Fonts(), CPU))


def rendered(path, job_type, params, files, quality=EXACT, limits=LIMITS, **kwargs):
    """Renders an edit of {key: file} and returns the composition."""
    made = composition(job_type, params, files, **kwargs)
    render(made, path, quality, Guard(), lambda done, count: None, limits)
    return made


# ── time ──────────────────────────────────────────────────────────────────────────────────────────

COMBINATIONS = list(
    itertools.product(
        (False, True), (0.5, 1.0, 2.0), ("cut", "fade", "dissolve"), (None, 29.97, 60.0)
    )
)


@pytest.fixture(scope="module")
def flashing(tmp_path_factory):
    """Six seconds with a flash and a beep at each whole one."""
    return flash_and_beep(tmp_path_factory.mktemp("flashing") / "a.mp4")


def where_beats_are(made):
    """Returns when the whole seconds of the sources come in the output, away from transitions and
    cuts.
    """
    line, beats = made.timeline, []
    margin = line.transition.duration + 0.3
    for clip, start in zip(line.clips, line.clip_starts, strict=True):
        for second in range(7):
            for span, begin in zip(clip.spans, clip.span_starts, strict=True):
                at = begin + (second - span.start) / span.speed
                inside = span.start + 0.1 <= second <= span.end - 0.3
                if inside and margin < at < clip.output_seconds - margin:
                    beats.append((start + at, 0.12 / span.speed))
    return beats


@pytest.mark.parametrize(("trim", "speed", "transition", "fps"), COMBINATIONS)
def test_picture_and_sound_stay_together(
    flashing, tmp_path, measured, trim, speed, transition, fps
):
    """Two clips, each with a trim, a segment at another speed, a transition between, at another
    rate: at most 20 ms.
    """
    clip = {"input_key": "a", "segments": [{"start": 2.5, "end": 4.5, "speed": speed}]}
    if trim:
        clip |= {"start_time": 0.37, "end_time": 5.81}
    params = {
        **SMALL,
        "clips": [clip, clip],
        "transition": {"type": transition, "duration": 0.4},
        "target_fps": fps,
    }
    path = tmp_path / "out.mp4"
    made = rendered(path, "multi_clip", params, {"a": flashing})
    facts = output_facts(path)
    assert (
        abs(facts.duration_seconds - made.timeline.output_seconds) <= 0.5 / float(made.fps) + 1e-3
    )
    seen, heard = flashes(path), beeps(path).mean(axis=1)
    drifts = []
    for at, length in where_beats_are(made):
        flash = seen[np.abs(seen - at).argmin()]
        beep = heard[np.abs(heard - (at + length / 2)).argmin()]
        # A flash begins with the first frame that shows it: of the source at 25 a second, then of
        # the output.
        frame = 1 / float(made.fps) + (1 / 25 / speed if speed != 1 else 0)
        assert -1e-3 <= flash - at <= frame + 1e-3
        drifts.append(abs(beep - (at + length / 2)))
    assert len(drifts) >= 4
    measured(
        f"A/V trim={trim!s:5} speed={speed} {transition:8} fps={fps or 25}: sound within "
        f"{1000 * max(drifts):.1f} ms, "
        f"length {1000 * (facts.duration_seconds - made.timeline.output_seconds):+.1f} ms"
    )
    assert max(drifts) < 0.020


def test_a_clip_is_cut_at_exact_times_wherever_key_frames_are(tmp_path):
    """annotate: each first frame is the one on screen at its start time, in groups of pictures of
    four seconds.
    """
    frames = np.stack([np.full((64, 96), 20 + n, np.uint8) for n in range(200)])
    clip = make_raw(tmp_path / "a.mp4", frames, "25", "-g", "100", "-bf", "3")
    asked = [
        {"start_time": 7.04, "end_time": 7.2},
        {"start_time": 1.0, "end_time": 1.12},
        {"start_time": 3.96, "end_time": 4.08},
    ]
    rendered(tmp_path / "out.mp4", "annotate", {"clips": asked}, {"a": clip})
    pictures, _ = luma(tmp_path / "out.mp4")
    shown = [round(float(picture[20, 20])) - 20 for picture in pictures]
    assert shown == pytest.approx([176, 177, 178, 179, 25, 26, 27, 99, 100, 101], abs=1)


@pytest.mark.parametrize("speed", [0.25, 0.5])
def test_slow_motion_can_be_made_smooth(tmp_path, speed):
    """A bar that moves 4 pixels a frame: repeated it jumps; interpolated it is near where it should
    be in between.
    """
    x = np.arange(128)[None]
    frames = np.stack(
        [
            np.broadcast_to(
                np.where((x >= 8 + 4 * n) & (x < 24 + 4 * n), 200, 40), (96, 128)
            ).astype(np.uint8)
            for n in range(24)
        ]
    )
    clip = make_raw(tmp_path / "a.mp4", frames, "24")
    params = {
        "output_width": 128,
        "output_height": 96,
        "segments": [{"start": 0.25, "end": 0.75, "speed": speed}],
    }
    jumps = {}
    for way in ("repeat", "interpolate"):
        path = tmp_path / f"{way}.mp4"
        made = rendered(path, "framing", {**params, "slow_motion": way}, {"a": clip})
        pictures, times = luma(path)
        assert len(pictures) == made.timeline.frame_count(made.fps)
        moments = np.array([made.timeline.clips[0].source_time(t) for t in times])
        slow = (moments > 0.3) & (moments < 0.7)
        bright = pictures[:, 48].astype(float) - 40
        centres = (bright * np.arange(128)).sum(axis=1) / bright.sum(axis=1)
        wanted = 15.5 + 4 * 24 * moments
        jumps[way] = np.abs(centres - wanted)[slow].max()
    assert jumps["repeat"] > 1.9
    assert jumps["interpolate"] < 1.0


def path_oracle(keys, moment, spline):
    """x, y, width and height at a moment, from the Hermite form of the uniform Catmull-Rom spline
    with clamped tangents, in float64.
    """
    times = [key[0] for key in keys]
    points = np.array([key[1:] for key in keys], float)
    n = min(max(np.searchsorted(times, moment, "right") - 1, 0), len(keys) - 2)
    t = np.clip((moment - times[n]) / (times[n + 1] - times[n]), 0, 1)
    if not spline:
        return points[n] * (1 - t) + points[n + 1] * t
    before = points[n - 1] if n > 0 else 2 * points[n] - points[n + 1]
    after = points[n + 2] if n + 2 < len(keys) else 2 * points[n + 1] - points[n]
    ways = np.diff(np.stack([before, points[n], points[n + 1], after]), axis=0)
    tangents = []
    for into, out in ((ways[0], ways[1]), (ways[1], ways[2])):
        limit = 3 * np.minimum(abs(into), abs(out))
        tangents.append(np.where(into * out > 0, np.clip((into + out) / 2, -limit, limit), 0.0))
    basis = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [-3, -2, 3, -1], [2, 1, -2, 1]])
    return (
        np.array([1, t, t**2, t**3])
        @ basis
        @ np.stack([points[n], tangents[0], points[n + 1], tangents[1]])
    )


@pytest.mark.parametrize("interpolation", ["linear", "catmull_rom"])
def test_the_crop_is_where_its_keyframes_say(tmp_path, measured, interpolation):
    """Pan and zoom over waves of 16 pixels, whose phase tells the place: within 0.05 of a pixel
    near both edges, each frame.
    """
    wave = (128 + 100 * np.sin(2 * np.pi * (np.arange(200) + 0.5) / 16)).round().astype(np.uint8)
    across, down = np.broadcast_to(wave, (200, 200)), np.broadcast_to(wave[:, None], (200, 200))
    keys = [
        (0.0, 10.5, 20.25, 90.0, 90.0),
        (0.4, 60.0, 30.0, 120.0, 120.0),
        (0.7, 75.75, 90.5, 80.0, 80.0),
        (1.0, 20.0, 50.0, 100.0, 100.0),
    ]
    asked = [dict(zip(("time", "x", "y", "width", "height"), key, strict=True)) for key in keys]
    params = {
        "output_width": 256,
        "output_height": 256,
        "crop_keyframes": asked,
        "interpolation": interpolation,
    }
    files = [
        make_raw(tmp_path / f"{n}.mp4", np.stack([plane] * 25), "25")
        for n, plane in enumerate((across, down))
    ]
    errors = []
    for axis, clip in enumerate(files):
        made = composition("framing", params, {"a": clip})
        with Stage(made, Guard()) as stage:
            for n, picture in enumerate(stage.pictures(n / 25 for n in range(25))):
                line = picture.y.numpy().astype(float).mean(axis=axis) - 128
                wanted = path_oracle(keys, n / 25, interpolation == "catmull_rom")
                place = wanted[axis] + (np.arange(256) + 0.5) / 256 * wanted[axis + 2]
                for half in (slice(4, 128), slice(128, 252)):
                    turned = line[half] * np.hanning(124) * np.exp(-2j * np.pi * place[half] / 16)
                    errors.append(abs(np.angle(turned.sum() * 1j)) * 16 / (2 * np.pi))
    measured(f"crop, {interpolation}: at most {max(errors):.4f} pixels off")
    assert max(errors) < 0.05


# ── any mix of sources ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Three sources that have nothing in common; each of one grey."""
    folder = tmp_path_factory.mktemp("mixed")

    def grey(name, level, size, rate, *options):
        picture = f"color=black:s={size}:r={rate}:d=2,geq=lum={level}:cb=128:cr=128"
        tags = "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
        return make(folder / name, "-f", "lavfi", "-i", f"{picture},{tags}", *options)

    tone = ["-f", "lavfi", "-i", "sine=1000:d=2:r=44100", "-ac", "1"]
    return {
        "a": grey("a.mp4", 60, "128x96", "25", *tone),
        "b": grey("b.mkv", 120, "96x160", "30000/1001"),
        "c": grey("c.mov", 180, "160x90", "50", *tone, "-c:a", "pcm_s16le"),
    }


@pytest.mark.parametrize(("kind", "seconds"), [("cut", 6.0), ("fade", 6.0), ("dissolve", 5.0)])
def test_any_mix_of_sources_is_joined(mixed, tmp_path, kind, seconds):
    """Sizes, rates, with and without sound: exact length, each level in its place, sound where
    there is some.
    """
    params = {
        **SMALL,
        "clips": [{"input_key": key} for key in "abc"],
        "transition": {"type": kind, "duration": 0.5},
    }
    path = tmp_path / "out.mp4"
    made = rendered(path, "multi_clip", params, mixed)
    assert made.fps == 50
    pictures, times = luma(path)
    assert made.timeline.output_seconds == pytest.approx(seconds, abs=0.01)
    assert len(pictures) == round(made.timeline.output_seconds * 50)
    levels = pictures.mean(axis=(1, 2))
    starts = made.timeline.clip_starts
    for level, start in zip((60, 120, 180), starts, strict=True):
        assert levels[np.abs(times - (start + 1)).argmin()] == pytest.approx(level, abs=1.5)
    half = levels[np.abs(times - (starts[1] + (0.25 if kind != "cut" else 0))).argmin()]
    assert half == pytest.approx({"cut": 120, "fade": 68, "dissolve": 90}[kind], abs=2)
    volume = np.abs(sound(path))
    loud = [volume[round((start + 1) * 48000) :][:4800].max() for start in starts]
    assert [level > 0.05 for level in loud] == [True, False, True]


def test_a_transitions_sound_follows_its_picture(mixed, tmp_path):
    """Half of a fade, half of a dissolve: a tone has half its size."""
    files = {"a": mixed["a"], "b": mixed["a"]}
    clips = [{"input_key": "a"}, {"input_key": "b"}]
    for kind, at, share in (("fade", 1.75, 0.5), ("fade", 2.25, 0.5), ("fade", 2.0, 0.0)):
        path = tmp_path / "out.mp4"
        params = {**SMALL, "clips": clips, "transition": {"type": kind, "duration": 0.5}}
        rendered(path, "multi_clip", params, files)
        volume = np.abs(sound(path))
        full = volume[48000 : 48000 + 960].max()
        assert volume[round(at * 48000) - 240 :][:480].max() / full == pytest.approx(
            share, abs=0.08
        )


def test_each_clip_has_its_own_framing(tmp_path):
    """Left half of one, right half of the other."""
    columns = np.broadcast_to(np.where(np.arange(128) < 64, 60, 200), (64, 128)).astype(np.uint8)
    clip = make_raw(tmp_path / "a.mp4", np.stack([columns] * 10), "25")
    left = {"time": 0.0, "x": 0.0, "y": 0.0, "width": 60.0, "height": 60.0}
    clips = [{"crop_keyframes": [left]}, {"crop_keyframes": [left | {"x": 68.0}]}]
    rendered(tmp_path / "out.mp4", "multi_clip", {**SMALL, "clips": clips}, {"a": clip})
    pictures, _ = luma(tmp_path / "out.mp4")
    assert [round(float(p[32, 32])) for p in pictures] == pytest.approx(
        [60] * 10 + [200] * 10, abs=1
    )


def test_a_damaged_clip_fails_the_job_and_is_named(mixed, tmp_path):
    """Never skipped."""
    whole = make(
        tmp_path / "w.mp4", "-f", "lavfi", "-i", "testsrc2=s=128x96:d=2", "-movflags", "+faststart"
    )
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    params = {**SMALL, "clips": [{"input_key": "a"}, {"input_key": "x"}]}
    with pytest.raises(InvalidMedia, match=r"params.clips\[1\]: The video is damaged"):
        rendered(tmp_path / "out.mp4", "multi_clip", params, {"a": mixed["a"], "x": broken})


def test_a_clip_behind_the_end_is_named(mixed, tmp_path):
    """With the length of the video."""
    asked = [{"start_time": 0.0, "end_time": 1.0}, {"start_time": 5.0, "end_time": 6.0}]
    with pytest.raises(InvalidParams, match=r"params.clips\[1\].start_time \(5 s\).*2.00 s"):
        rendered(tmp_path / "out.mp4", "annotate", {"clips": asked}, mixed)


# ── overlay, annotate ─────────────────────────────────────────────────────────────────────────────


def test_an_overlay_keeps_size_rate_and_untouched_frames(tmp_path):
    """Odd sizes lose their last column and row; before the encoder, untouched frames are the
    source's, bit for bit.
    """
    noise = np.random.default_rng(3).integers(30, 220, (8, 64, 96)).astype(np.uint8)
    clip = make_raw(tmp_path / "a.mp4", noise, "30000/1001")
    region = {
        "start_time": 0.1,
        "end_time": 0.2,
        "keyframes": [{"x": 50, "y": 30, "radius_x": 20, "radius_y": 10}],
    }
    params = {"highlight_regions": [region], "effect_type": "spotlight", "fade_seconds": 0}
    made = composition("overlay", params, {"a": clip})
    assert (made.size, made.fps) == ((96, 64), probe(clip).fps)
    with Stage(made, Guard()) as stage:
        pictures = [
            picture.y.numpy() for picture in stage.pictures(float(n / made.fps) for n in range(8))
        ]
    same = [
        bool((picture == original).all()) for picture, original in zip(pictures, noise, strict=True)
    ]
    assert same == [True, True, True, False, False, False, True, True]


def test_an_annotated_clip_carries_its_caption(tmp_path):
    """Dark below, untouched above; another clip has another caption; without words there is
    none.
    """
    clip = make_raw(tmp_path / "a.mp4", np.full((75, 180, 320), 150, np.uint8), "25")
    asked = [
        {"start_time": 0.0, "end_time": 1.0, "name": "First", "rating": 5},
        {"start_time": 1.0, "end_time": 2.0, "name": "Second half"},
        {"start_time": 2.0, "end_time": 3.0},
    ]
    rendered(tmp_path / "out.mp4", "annotate", {"clips": asked}, {"a": clip})
    pictures, _ = luma(tmp_path / "out.mp4")
    assert pictures.shape == (75, 180, 320)
    first, second, plain = (pictures[n].astype(int) for n in (12, 37, 62))
    assert np.abs(first[:60] - 150).max() <= 2
    assert np.abs(plain - 150).max() <= 2
    assert first[-8:, 200:].mean() < 60
    assert first[100:].max() > 210
    assert np.abs(first[100:] - second[100:]).max() > 100


def test_a_picture_of_the_bucket_lies_over_the_film(tmp_path):
    """A PNG layer, at the frame's full size, with a hole."""
    import io

    from PIL import Image

    clip = make_raw(tmp_path / "a.mp4", np.full((10, 64, 96), 100, np.uint8), "25")
    veil = Image.new("RGBA", (96, 64), "#ffffffff")
    veil.paste((0, 0, 0, 0), (32, 16, 64, 48))
    file = io.BytesIO()
    veil.save(file, "PNG")
    layer = {"png_key": "veil.png", "fade_seconds": 0}
    path = tmp_path / "out.mp4"
    rendered(
        path, "overlay", {"text_layers": [layer]}, {"a": clip}, pngs={"veil.png": file.getvalue()}
    )
    pictures, _ = luma(path)
    assert pictures[5][5, 5] == pytest.approx(235, abs=1)
    assert pictures[5][32, 48] == pytest.approx(100, abs=1)


@pytest.mark.parametrize("begins", [0.0, 0.2])
def test_frames_that_the_decoder_cuts_are_the_same_frames(big_buck_bunny, begins):
    """A crop that stays in a part of the picture: bit for bit as from whole frames."""
    keys = [
        {"time": 0, "x": 300.4, "y": 100, "width": 300, "height": 400},
        {"time": 2, "x": 500, "y": 90.3, "width": 250, "height": 333},
        {"time": 3, "x": 350, "y": 120, "width": 300, "height": 400},
    ]
    params = SMALL | {"crop_keyframes": keys, "interpolation": "catmull_rom", "end_time": 1.0}
    params["start_time"] = begins
    made = composition("framing", params, {"a": big_buck_bunny})
    (clip,) = made.clips
    assert clip.look.window is not None
    whole = replace(made, clips=(replace(clip, look=replace(clip.look, window=None)),))
    moments = [float(n / made.fps) for n in range(made.timeline.frame_count(made.fps))]

    def pictures(composition):
        with Stage(composition, Guard()) as stage:
            return list(stage.pictures(moments))

    assert same(pictures(made), pictures(whole))


@pytest.mark.parametrize(
    ("size", "batch", "memory", "expected"),
    [
        ((1920, 1080), 1, 64 << 30, 3),
        ((1920, 1080), 8, 64 << 30, 16),
        ((3840, 2160), 8, 64 << 30, 16),
        ((7680, 4320), 8, 64 << 30, 10),
        ((3840, 2160), 8, 4 << 30, 5),
        ((7680, 4320), 8, 1 << 30, 1),
    ],
)
def test_two_batches_wait_between_stages_as_far_as_memory_allows(
    monkeypatch, size, batch, memory, expected
):
    """One is made while the next arrives; a small container holds fewer large frames."""
    monkeypatch.setattr(rendering, "memory_bytes", lambda: memory)
    assert rendering._depth(size, batch) == expected


class Several(Resampler):
    """Resamples, and wants several frames at once; says how many it got."""

    batch = 8

    def __init__(self):
        super().__init__(CPU)
        object.__setattr__(self, "got", [])

    def __call__(self, frames, boxes, width, height):
        self.got.append(len(frames))
        return super().__call__(frames, boxes, width, height)


@pytest.mark.parametrize("transition", ["cut", "fade", "dissolve"])
def test_frames_in_batches_are_the_same_frames(tmp_path, transition):
    """Each once, in order, also across clips and where two are seen."""
    noise = np.random.default_rng(3).integers(16, 235, (30, 64, 64), np.uint8)
    clip = make_raw(tmp_path / "a.mp4", noise, "25")
    keys = [
        {"time": 0, "x": 0, "y": 0, "width": 30, "height": 30},
        {"time": 1, "x": 20, "y": 9, "width": 30, "height": 30},
    ]
    one = {"input_key": "a", "crop_keyframes": keys, "end_time": 1}
    params = {
        "clips": [one, one | {"start_time": 0.4}],
        "transition": {"type": transition, "duration": 0.2},
        **SMALL,
    }
    made = composition("multi_clip", params, {"a": clip})
    moments = [float(n / made.fps) for n in range(made.timeline.frame_count(made.fps))]

    def pictures(engine):
        clips = tuple(replace(clip, look=replace(clip.look, engine=engine)) for clip in made.clips)
        with Stage(replace(made, clips=clips), Guard()) as stage:
            return [picture.y.numpy() for picture in stage.pictures(moments)]

    several = Several()
    assert np.array_equal(pictures(Resampler(CPU)), pictures(several))
    assert several.got[0] == 8
    assert sum(several.got) == sum(len(made.timeline.shown(moment)) for moment in moments)


# ── quality and limits ────────────────────────────────────────────────────────────────────────────


def test_the_default_quality_is_seen_as_the_same(big_buck_bunny, tmp_path, measured):
    """VMAF of at least 95 between the finished file and the edit before encoding, on real
    footage.
    """
    params = {"output_width": 1080, "output_height": 1920, "start_time": 1.0, "end_time": 2.6}
    path, raw = tmp_path / "out.mp4", tmp_path / "raw.yuv"
    made = rendered(path, "framing", params, {"a": big_buck_bunny}, quality=Quality())
    with raw.open("wb") as file, Stage(made, Guard()) as stage:
        for picture in stage.pictures(
            float(n / made.fps) for n in range(made.timeline.frame_count(made.fps))
        ):
            for plane in picture.planes:
                file.write(plane.contiguous().numpy().tobytes())
    reference = [
        "-f",
        "rawvideo",
        "-pix_fmt",
        "yuv420p",
        "-s",
        "1080x1920",
        "-r",
        "25",
        "-i",
        str(raw),
    ]
    graph = "[0:v]setpts=PTS-STARTPTS[a];[1:v]setpts=PTS-STARTPTS[b];"
    graph += "[a][b]libvmaf=n_threads=2:n_subsample=4"
    command = [
        FFMPEG,
        "-hide_banner",
        "-i",
        str(path),
        *reference,
        "-lavfi",
        graph,
        "-f",
        "null",
        "-",
    ]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    score = float(re.search(r"VMAF score: ([\d.]+)", said).group(1))
    measured(f"VMAF at the default settings: {score:.2f}")
    assert score >= 95


BARS = [
    (191, 191, 191),
    (191, 191, 0),
    (0, 191, 191),
    (0, 191, 0),
    (191, 0, 191),
    (191, 0, 0),
    (0, 0, 191),
    (16, 16, 16),
]
LUMA_WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}


def coded(rgb, matrix):
    """R', G', B' of 0 to 255 to Y, U, V in limited range, from the definition."""
    kr, kb = LUMA_WEIGHTS[matrix]
    r, g, b = (value / 255 for value in rgb)
    y = kr * r + (1 - kr - kb) * g + kb * b
    return 16 + 219 * y, 128 + 224 * (b - y) / (2 - 2 * kb), 128 + 224 * (r - y) / (2 - 2 * kr)


def seen(y, u, v):
    """Y, U, V of BT.709 in limited range to what a player shows."""
    y, u, v = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    kr, kb = LUMA_WEIGHTS["bt709"]
    r, b = y + v * (2 - 2 * kr), y + u * (2 - 2 * kb)
    return np.clip(255 * np.array([r, (y - kr * r - kb * b) / (1 - kr - kb), b]), 0, 255)


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_colours_survive_the_whole_way(tmp_path, measured, matrix):
    """Colour bars, at the default quality: within 2 of 255."""
    planes = np.array([coded(rgb, matrix) for rgb in BARS]).round().astype(np.uint8).T
    luma_plane = np.broadcast_to(np.repeat(planes[0], 40), (160, 320)).tobytes()
    chroma = b"".join(
        np.broadcast_to(np.repeat(plane, 20), (80, 160)).tobytes() for plane in planes[1:]
    )
    tag = {"bt601": "smpte170m", "bt709": "bt709"}[matrix]
    clip = make(
        tmp_path / "a.mp4",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "yuv420p",
        "-s",
        "320x160",
        "-r",
        "25",
        "-i",
        "pipe:0",
        "-vf",
        f"setparams=range=tv:colorspace={tag}:color_primaries={tag}:color_trc={tag}",
        "-c:v",
        "libx264",
        "-qp",
        "0",
        input=(luma_plane + chroma) * 10,
    )
    path = tmp_path / "out.mp4"
    rendered(
        path, "framing", {"output_width": 640, "output_height": 320}, {"a": clip}, quality=Quality()
    )
    with av.open(str(path)) as container:
        picture = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)][5]
    y, u, v = (
        picture[160],
        picture[320:400].reshape(160, 320)[80],
        picture[400:].reshape(160, 320)[80],
    )
    errors = [
        np.abs(seen(y[40 + 80 * n], float(u[20 + 40 * n]), float(v[20 + 40 * n])) - rgb).max()
        for n, rgb in enumerate(BARS)
    ]
    measured(f"colour bars from {matrix}: at most {max(errors):.1f} of 255 off after the whole way")
    assert max(errors) <= 2


def test_a_result_that_would_be_too_long_is_not_begun(mixed, tmp_path):
    """Known before a frame is made."""
    with pytest.raises(OutputTooLong, match=r"2 seconds long"):
        rendered(tmp_path / "out.mp4", "framing", SMALL, mixed, limits=OutputLimits(seconds=1.5))


def test_a_result_that_becomes_too_large_is_given_up(tmp_path):
    """While it is written; noise does not compress."""
    noise = np.random.default_rng(3).integers(30, 220, (100, 128, 128)).astype(np.uint8)
    clip = make_raw(tmp_path / "a.mp4", noise, "25")
    size = {"output_width": 128, "output_height": 128}
    with pytest.raises(OutputTooLarge, match="larger than 100000 bytes"):
        rendered(
            tmp_path / "out.mp4", "framing", size, {"a": clip}, limits=OutputLimits(bytes=100_000)
        )
