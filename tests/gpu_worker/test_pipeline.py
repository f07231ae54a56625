"""A job from bucket to bucket, with the real store, real ffmpeg, and everything measured on the
file that came out.
"""

import hashlib
import json
import threading
import time
from importlib.metadata import version

import numpy as np
import pytest

from gpu_worker.control import ControlDocuments
from gpu_worker.errors import (
    Cancelled,
    InvalidMedia,
    InvalidParams,
    ModelUnavailable,
    SourceNotFound,
)
from gpu_worker.host.guard import Guard
from gpu_worker.media.encode import Quality
from gpu_worker.media.facts import Limits
from gpu_worker.media.probe import output_facts
from gpu_worker.pipeline import Execution, models_of
from gpu_worker.render.render import OutputLimits
from gpu_worker.settings import Settings
from schemas.worker import Result, WorkerInput
from tests.gpu_worker.footage import beeps, flash_and_beep, flashes, luma, make, make_raw

TOKEN = "0123456789abcdef" * 2
SMALL = {"output_width": 64, "output_height": 96}


class Job:
    """One job of one user, run by this test as often as it likes."""

    def __init__(self, settings, bucket, objects, user_id):
        self.settings, self.bucket, self.objects, self.user_id = settings, bucket, objects, user_id
        self.guard = Guard()
        self.progress = []

    def source(self, path):
        self.objects.put(f"{self.user_id}/in.mp4", path.read_bytes())
        return self

    def run(self, token=TOKEN, report=None, bucket=None, job_type="framing", **params):
        where = {"attempt_token": token} if token else {"output_key": "out/exactly.mp4"}
        asked = {
            "job_id": "j1",
            "user_id": self.user_id,
            "type": job_type,
            "input_key": "in.mp4",
            "params": params,
        }
        job = WorkerInput.model_validate(asked | where)
        report = report or self.progress.append
        bucket = bucket or self.bucket
        return Execution(
            job,
            "rp-1",
            bucket,
            ControlDocuments(bucket, job),
            self.settings,
            models_of(self.settings),
            report,
            self.guard,
        ).run()

    def document(self, name):
        return f"{self.user_id}/jobs/j1/{TOKEN}/{name}"

    def fetched(self, result, path):
        path.write_bytes(self.objects.get(f"{self.user_id}/{result.output_key}"))
        return path

    def outputs(self):
        return self.objects.keys(f"{self.user_id}/final_videos/")


@pytest.fixture
def job(settings, bucket, objects, user_id):
    """A job whose source is still to be put."""
    return Job(settings(), bucket, objects, user_id)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Ten frames of test picture with a tone."""
    folder = tmp_path_factory.mktemp("short")
    return make(
        folder / "a.mp4",
        "-f",
        "lavfi",
        "-i",
        "testsrc2=s=320x240:r=25:d=0.4",
        "-f",
        "lavfi",
        "-i",
        "sine=d=0.4",
    )


# ── the commit protocol ───────────────────────────────────────────────────────────────────────────


def test_a_job_is_done_from_bucket_to_bucket(job, short, tmp_path):
    """Started, made, uploaded, committed: the facts are those of the very object."""
    result = job.source(short).run(**SMALL)
    started = json.loads(job.objects.get(job.document("started.json")))
    assert (started["runpod_job_id"], started["worker_id"]) == ("rp-1", "local")
    assert started["version"] == version("reelbroker")
    assert Result.model_validate_json(job.objects.get(job.document("result.json"))) == result
    body = job.fetched(result, tmp_path / "out.mp4").read_bytes()
    assert (result.facts.bytes, result.facts.sha256) == (
        len(body),
        hashlib.sha256(body).hexdigest(),
    )
    assert (result.facts.width, result.facts.height, result.facts.frames) == (64, 96, 10)
    assert result.output_key.startswith("final_videos/framing_j1_")


def test_progress_comes_from_frames_and_never_falls(job, short):
    """Every phase in its order, the bar rising through the frames, never 100."""
    job.source(short).run(**SMALL)
    percent = [told.progress for told in job.progress]
    phases = list(dict.fromkeys(told.phase for told in job.progress))
    assert phases == ["downloading", "processing", "uploading", "verifying"]
    assert percent == sorted(percent)
    assert len({told.progress for told in job.progress if told.phase == "processing"}) == 10
    assert max(percent) == 99


def test_a_second_delivery_returns_what_the_first_committed(job, short):
    """No work, no second file."""
    first = job.source(short).run(**SMALL)
    job.progress.clear()
    assert job.run(**SMALL) == first
    assert (len(job.outputs()), job.progress) == (1, [])


def test_of_two_deliveries_at_once_one_is_published(job, short):
    """The one that commits second takes its own file away and returns the other's."""
    job.source(short)
    results = []
    threads = [threading.Thread(target=lambda: results.append(job.run(**SMALL))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1]
    assert job.outputs() == [f"{job.user_id}/{results[0].output_key}"]


def test_a_fenced_attempt_is_not_begun(job, short):
    """No started.json, no fetch, no file."""
    job.source(short).objects.put(job.document("stop.json"), b"{}")
    with pytest.raises(Cancelled):
        job.run(**SMALL)
    assert job.objects.keys(f"{job.user_id}/jobs/") == [job.document("stop.json")]


def test_an_attempt_fenced_while_it_worked_publishes_nothing(job, short):
    """It looks once more before it commits, and takes its file away."""

    class FencedMeanwhile:
        def __getattr__(self, name):
            return getattr(job.bucket, name)

        def upload(self, path, key):
            job.bucket.upload(path, key)
            job.objects.put(job.document("stop.json"), b"{}")

    with pytest.raises(Cancelled):
        job.source(short).run(bucket=FencedMeanwhile(), **SMALL)
    assert job.outputs() == []
    assert job.document("result.json") not in job.objects.keys(f"{job.user_id}/jobs/")


def test_a_job_from_the_console_is_written_where_it_says(job, short):
    """Exactly that key, and no control documents."""
    result = job.source(short).run(token=None, **SMALL)
    assert result.output_key == "out/exactly.mp4"
    assert job.objects.keys(f"{job.user_id}/") == [
        f"{job.user_id}/in.mp4",
        f"{job.user_id}/out/exactly.mp4",
    ]


def test_a_cancel_stops_within_a_frame_and_leaves_nothing(job, big_buck_bunny):
    """No file in the bucket, no file on disk; the frames that were left are not made."""
    stopped = []

    def cancel_at_10(progress):
        job.progress.append(progress)
        if progress.progress > 10 and not stopped:
            stopped.append(time.monotonic())
            job.guard.stop(Cancelled("The job was cancelled."))

    with pytest.raises(Cancelled):
        job.source(big_buck_bunny).run(report=cancel_at_10)
    assert time.monotonic() - stopped[0] < 2
    assert job.progress[-1].progress < 15
    assert job.outputs() == []
    assert list(job.settings.work_dir.iterdir()) == []


# ── what cannot be done ───────────────────────────────────────────────────────────────────────────


def test_a_missing_source_is_said(job):
    """And nothing is left on disk."""
    with pytest.raises(SourceNotFound):
        job.run(**SMALL)
    assert list(job.settings.work_dir.iterdir()) == []


def test_a_missing_model_is_refused_before_anything_is_fetched(job):
    """The source is not even looked for."""
    with pytest.raises(ModelUnavailable, match=r"nothing\.pth.*FAST"):
        job.run(job_type="upscale", model="nothing")


@pytest.mark.parametrize(
    ("params", "error"),
    [
        pytest.param({"start_time": 9.0}, InvalidParams, id="starts-behind-the-end"),
        pytest.param(
            {"crop_keyframes": [{"time": 0, "x": 300, "y": 0, "width": 90, "height": 90}]},
            InvalidParams,
            id="outside",
        ),
    ],
)
def test_params_that_do_not_fit_the_video_are_named(job, short, params, error):
    """The sentence names the field."""
    with pytest.raises(error, match=r"params\.(start_time|crop_keyframes\[0\])"):
        job.source(short).run(**params)


def test_a_damaged_video_publishes_nothing(job, big_buck_bunny, tmp_path):
    """Half a file is an error, not half a film."""
    half = tmp_path / "half.mp4"
    half.write_bytes(big_buck_bunny.read_bytes()[: big_buck_bunny.stat().st_size // 2])
    with pytest.raises(InvalidMedia):
        job.source(half).run(**SMALL)
    assert job.outputs() == []


# ── what comes out ────────────────────────────────────────────────────────────────────────────────


def test_each_frame_shows_its_own_crop(job, tmp_path):
    """The crop's place, read off a coordinate-coded picture after the whole way, encoder and
    all.
    """
    ramp = np.tile((16 + np.arange(200)).astype(np.uint8), (120, 1))
    clip = make_raw(tmp_path / "ramp.mp4", np.stack([ramp] * 25), "25")
    box = {"y": 10, "width": 64, "height": 96}
    keys = [{"time": 0.0, "x": 10.0, **box}, {"time": 0.96, "x": 100.0, **box}]
    result = job.source(clip).run(crop_keyframes=keys, output_width=128, output_height=192)
    pictures, times = luma(job.fetched(result, tmp_path / "out.mp4"))
    for picture, moment in zip(pictures, times, strict=True):
        seen = picture[20:-20, 20:-20].astype(float).mean()
        x = 10 + 90 * moment / 0.96
        expected = 16 + x + ((np.arange(128) + 0.5) * 0.5 - 0.5)[20:-20].mean()
        assert (
            abs(seen - expected) < 0.3
            # With H.264's own error; test_render.py looks before encoding.
        )


SLOW = {"start": 1.5, "end": 3.5, "speed": 0.5}
FAST = {"start": 1.5, "end": 3.5, "speed": 2.0}
CRAWL = {"start": 2.5, "end": 4.5, "speed": 0.25}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        pytest.param({}, {0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1}, id="whole"),
        pytest.param({"start_time": 1.5, "end_time": 4.5}, {0.5: 1, 1.5: 1, 2.5: 1}, id="trim"),
        pytest.param(
            {"start_time": 0.77},
            {0.23: 1, 1.23: 1, 2.23: 1, 3.23: 1, 4.23: 1},
            id="trim-between-frames",
        ),
        pytest.param({"segments": [SLOW]}, {0: 1, 1: 1, 2.5: 0.5, 4.5: 0.5, 6: 1, 7: 1}, id="slow"),
        pytest.param({"segments": [FAST]}, {0: 1, 1: 1, 1.75: 2, 2.25: 2, 3: 1, 4: 1}, id="fast"),
        pytest.param(
            {"segments": [CRAWL]}, {0: 1, 1: 1, 2: 1, 4.5: 0.25, 8.5: 0.25, 11: 1}, id="crawl"
        ),
        pytest.param({"target_fps": 60.0}, {0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1}, id="60fps"),
        pytest.param(
            {"target_fps": 29.97, "start_time": 0.5}, {n + 0.5: 1 for n in range(5)}, id="ntsc-trim"
        ),
        pytest.param(
            {"segments": [FAST], "start_time": 0.5, "target_fps": 30.0},
            {0.5: 1, 1.25: 2, 1.75: 2, 2.5: 1, 3.5: 1},
            id="fast-trim-30fps",
        ),
    ],
)
def test_picture_and_sound_stay_together(job, tmp_path, params, expected):
    """Each flash is on the frame where it belongs, and the middle of each beep within 20 ms, from
    beginning to end.
    """
    clip = flash_and_beep(tmp_path / "clip.mp4")
    result = job.source(clip).run(**SMALL, **params)
    path = job.fetched(result, tmp_path / "out.mp4")
    begins = list(expected)
    assert flashes(path) == pytest.approx(begins, abs=1 / result.facts.fps + 1e-3)
    middles = [begin + 0.06 / speed for begin, speed in expected.items()]
    assert beeps(path).mean(axis=1) == pytest.approx(middles, abs=0.020)


@pytest.mark.parametrize("delay", ["0.3", "-0.3"], ids=["late-sound", "early-sound"])
def test_sound_that_begins_elsewhere_stays_where_it_was(job, tmp_path, delay):
    """A track with an offset of its own is not pulled to the beginning."""
    clip = flash_and_beep(tmp_path / "clip.mp4")
    both = ["-i", clip, "-itsoffset", delay, "-i", clip, "-map", "0:v", "-map", "1:a", "-c", "copy"]
    shifted = make(tmp_path / "shifted.mp4", *both)
    path = job.fetched(job.source(shifted).run(**SMALL), tmp_path / "out.mp4")
    apart = beeps(path)[1:4, 0] - flashes(path)[1:4]
    assert apart % 1 == pytest.approx([float(delay) % 1] * 3, abs=0.020)


def test_the_sample_clips_sound_is_where_it_was(job, big_buck_bunny, tmp_path):
    """Real footage, 5.1 sound: the best match of the two sounds is within 20 ms of no shift at
    all.
    """
    from tests.gpu_worker.footage import sound

    path = job.fetched(job.source(big_buck_bunny).run(**SMALL), tmp_path / "out.mp4")
    before, after = sound(big_buck_bunny, 8000), sound(path, 8000)
    length = min(len(before), len(after))
    spectrum = np.fft.rfft(before[:length], 2 * length).conj() * np.fft.rfft(
        after[:length], 2 * length
    )
    shift = int(np.argmax(np.fft.irfft(spectrum)))
    shift = shift - 2 * length if shift > length else shift
    assert abs(shift / 8000) < 0.020
    assert abs(length / 8000 - 5.28) < 0.05


def test_a_clip_without_sound_or_without_wanting_it_is_silent(job, tmp_path, short):
    """No empty track."""
    assert job.source(short).run(**SMALL, include_audio=False).facts.audio_codec is None


def test_the_length_is_the_timelines(job, tmp_path):
    """To half a frame, for picture and container alike."""
    clip = flash_and_beep(tmp_path / "clip.mp4")
    params = {
        "start_time": 0.3,
        "end_time": 4.9,
        "segments": [{"start": 1, "end": 2, "speed": 0.7}],
    }
    result = job.source(clip).run(**SMALL, **params)
    expected = 4.6 - 1 + 1 / 0.7
    facts = output_facts(job.fetched(result, tmp_path / "out.mp4"))
    assert abs(facts.frames / facts.fps - expected) <= 0.5 / 25 + 1e-6
    assert abs(facts.duration_seconds - expected) <= 0.5 / 25 + 1e-3


def test_the_defaults_are_the_settings():
    """One default, said twice, is the same."""

    def default(name):
        return Settings.model_fields[name].default

    assert Quality(default("x264_preset"), default("x264_crf")) == Quality()
    assert (
        Limits(default("max_pixels"), default("max_source_seconds"), default("max_streams"))
        == Limits()
    )
    assert (
        OutputLimits(default("max_output_seconds"), default("max_output_bytes")) == OutputLimits()
    )
