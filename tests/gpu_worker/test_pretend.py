"""Every job type on a pretend accelerator: the CPU's pictures, bit for bit, without waiting.

The budgets hold in the steady state: from the second batch on, of a clip that is one for a while.
`scripts/test -k pretend` prints what was counted.
"""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

from gpu_worker.control import ControlDocuments
from gpu_worker.edits.compose import Kit, Source, compose
from gpu_worker.edits.fonts import Fonts
from gpu_worker.fitness import check_fitness
from gpu_worker.host.guard import Guard
from gpu_worker.media import hardware
from gpu_worker.media.probe import output_facts, probe
from gpu_worker.media.transfer import Landing
from gpu_worker.pipeline import Execution
from gpu_worker.render.render import Stage
from gpu_worker.runner import Runner, one_thread
from gpu_worker.settings import Settings
from gpu_worker.upscale.models import Models
from gpu_worker.upscale.upscaler import Upscaler
from gpu_worker.upscale.weights import load_model
from schemas.jobs import JobType
from schemas.worker import Result, WorkerInput
from tests.gpu_worker.codecs import Chip
from tests.gpu_worker.footage import beeps, flash_and_beep, flashes, luma, make
from tests.gpu_worker.pictures import CPU, decibels, noise, same
from tests.gpu_worker.pretend import OnDevice

pytestmark = pytest.mark.editing
MODEL = "realesr-animevideov3"
SIZE = {"output_width": 144, "output_height": 256}
PAN = [
    {"time": 0.0, "x": 400.0, "y": 300.0, "width": 54.0, "height": 96.0},
    {"time": 3.0, "x": 520.5, "y": 330.0, "width": 54.0, "height": 96.0},
]
ZOOM = [PAN[0], {"time": 3.0, "x": 420.0, "y": 320.0, "width": 36.0, "height": 64.0}]
#: The overlay's keys, in pixels of the 1280x720 source.
PLACES = [
    {"time": 0.0, "x": 300.0, "y": 360.0, "radius_x": 120.0, "radius_y": 160.0},
    {"time": 5.0, "x": 900.0, "y": 360.0, "radius_x": 120.0, "radius_y": 160.0},
]
REGION = {"start_time": 0.0, "end_time": 5.0, "keyframes": PLACES}
TITLE = {"text": "Title", "x": 20.0, "y": 20.0, "font_size": 24.0}
CLIPS = [
    {"input_key": "in.mp4", "crop_keyframes": PAN, "end_time": 1.6},
    {"input_key": "in.mp4", "start_time": 1.0, "end_time": 2.4},
]
JOBS = {
    "framing FAST": ("framing", SIZE | {"crop_keyframes": PAN, "end_time": 1.6}),
    "framing turned": ("framing", SIZE | {"crop_keyframes": PAN, "rotation": 7, "end_time": 1.6}),
    "framing QUALITY": (
        "framing",
        SIZE | {"crop_keyframes": PAN, "export_mode": "QUALITY", "end_time": 1.6},
    ),
    "overlay": (
        "overlay",
        {"highlight_regions": [REGION], "text_layers": [TITLE], "end_time": 1.6},
    ),
    "overlay blur": (
        "overlay",
        {"effect_type": "blur", "highlight_regions": [REGION], "end_time": 1.6},
    ),
    "annotate": ("annotate", {"clips": [{"start_time": 0.5, "end_time": 2.0, "name": "A goal"}]}),
    "multi_clip": (
        "multi_clip",
        SIZE | {"clips": CLIPS, "transition": {"type": "dissolve", "duration": 0.4}},
    ),
    "upscale": (
        "upscale",
        SIZE | {"crop_keyframes": PAN, "model": MODEL, "export_mode": "QUALITY", "end_time": 1.6},
    ),
}
#: Copies a frame in the steady state: a batch of eight goes up in one copy and comes back in one.
COPIES = 2 / 8
#: What is turned comes up whole, and the filters of its crop after it; two clips come up for a
#: dissolve.
MORE_COPIES = {"framing turned": 3 / 8, "multi_clip": 5 / 8}


class Counted(torch.nn.Module):
    """A network that counts its pictures."""

    def __init__(self, network):
        super().__init__()
        self.network, self.pictures = network, 0

    def forward(self, x):
        self.pictures += len(x)
        return self.network(x)


def engines_on(device):
    """Returns a kit's engines, in float32, and the network's count."""
    upscaler = Upscaler(load_model(MODEL, Path("/nonexistent")), device, torch.float32)
    upscaler.network = Counted(upscaler.network)
    upscaler.run_by(upscaler.network)
    return lambda params, ratio: upscaler if params.export_mode == "QUALITY" else None, upscaler


def stage_of(job, source, device):
    """Returns the composition of an edit (its type and params) on a device, and its network."""
    job_type, params = job
    engines, upscaler = engines_on(device)
    kit = Kit(engines, {"in.mp4": Source(source, probe(source))}, {}, Fonts(), device)
    params = JobType(job_type).params_model.model_validate(params)
    return compose(params, "in.mp4", kit), upscaler.network


def pictures_of(composition, after=lambda done: None):
    count = composition.timeline.frame_count(composition.fps)
    made = []
    with Stage(composition, Guard()) as stage:
        for picture in stage.pictures(float(n / composition.fps) for n in range(count)):
            made.append(picture)
            after(len(made))
        stage.finish()
    return made


@pytest.mark.parametrize("job", JOBS)
def test_pretend_device_makes_the_cpus_pictures_without_waiting(
    pretend, measured, big_buck_bunny, job
):
    """No synchronising call, a copy each way for a batch, each picture computed once."""
    composition, _ = stage_of(JOBS[job], big_buck_bunny, CPU)
    expected = pictures_of(composition)
    composition, network = stage_of(JOBS[job], big_buck_bunny, pretend.device)
    pretend.counts.clear()
    marks = {}

    def after(done):
        marks[done] = pretend.counts.copy()

    made = pictures_of(composition, after)
    spent = marks[32] - marks[16]
    copies = (spent["uploads"] + spent["downloads"]) / 16
    pictures = network.pictures / len(made)
    measured(
        f"pretend: {job:15} a frame: {spent['syncs'] / 16:.2f} synchronising calls, "
        f"{copies:.2f} copies, {pictures:.2f} pictures of the network, "
        f"{spent['operations'] / 16:.0f} operations"
    )
    assert same(made, expected)
    assert np.ptp(made[0].y.numpy()) > 100
    assert pretend.counts["syncs"] == 0
    assert copies <= MORE_COPIES.get(job, COPIES)
    assert pictures == (1 if "QUALITY" in str(JOBS[job]) else 0)


def test_pretend_device_gets_the_crop_alone(pretend, big_buck_bunny):
    """And some pixels around it, and the filters; a frame has 1.3 MB, the crop 8 kB."""
    composition, _ = stage_of(JOBS["framing FAST"], big_buck_bunny, pretend.device)
    pretend.counts.clear()
    frames = len(pictures_of(composition))
    assert 8_000 < pretend.counts["uploaded_bytes"] / frames < 40_000


def test_pretend_zoom_is_the_cpus_picture_but_for_its_context(pretend, big_buck_bunny):
    """Neighbours share a shape, so that the network sees some real pixels more around the crop."""
    zoom = SIZE | {"crop_keyframes": ZOOM, "export_mode": "QUALITY", "end_time": 1.0}
    expected = pictures_of(stage_of(("framing", zoom), big_buck_bunny, CPU)[0])
    composition, network = stage_of(("framing", zoom), big_buck_bunny, pretend.device)
    made = pictures_of(composition)
    assert network.pictures == len(made)
    assert min(decibels(a.y, b.y) for a, b in zip(made, expected, strict=True)) > 45


class OnPretend(Settings):
    """Settings of a worker whose GPU is the pretend one."""

    @property
    def torch_device(self):
        return torch.device("pretend", 0)


@pytest.fixture
def worker(settings, pretend):
    """Settings of a worker on the device, with a model for QUALITY jobs."""
    plain = settings(REELBROKER_QUALITY_MODEL=MODEL)
    return OnPretend.model_construct(**plain.__dict__)


def asked(user_id, job_type, params):
    """The input of a job from a console."""
    return {
        "job_id": f"j-{job_type}",
        "user_id": user_id,
        "type": job_type,
        "input_key": "in.mp4",
        "output_key": f"{job_type}.mp4",
        "params": params,
    }


def run(worker, bucket, device, raw_input, report=lambda progress: None):
    """Runs a job as the runner does, without the runner; returns its result."""
    job = WorkerInput.model_validate(raw_input)
    control, models = ControlDocuments(bucket, job), Models(worker.models_dir, device)
    return Execution(job, "rp", bucket, control, worker, models, report, Guard()).run()


async def send(progress):
    """A provider that takes progress, and keeps none."""


def test_pretend_worker_does_all_job_types_in_one_thread(
    worker, pretend, bucket, objects, user_id, tmp_path, measured, monkeypatch
):
    """Warm-up and five jobs, from bucket to bucket: all work on the device in one thread, and
    nobody waits but for what has landed.
    """
    pattern = ("-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=1.2", "-pix_fmt", "yuv420p")
    source = make(tmp_path / "a.mp4", *pattern)
    objects.put(f"{user_id}/in.mp4", source.read_bytes())
    # The CPU computes: at the size of a phone's clip, warm-up takes half a minute.
    monkeypatch.setattr("gpu_worker.upscale.models.DEVICE_WARM_UP", ((36, 64), (128, 96)))
    models, thread = Models(worker.models_dir, pretend.device, MODEL), one_thread()
    upscaler = models.get(MODEL)
    models._loaded[MODEL] = Upscaler(
        load_model(MODEL, Path("/nonexistent")), pretend.device, torch.float32
    )
    assert upscaler.dtype is torch.float16
    pretend.reset()
    facts = thread.submit(check_fitness, worker, models).result()
    assert (facts["device"], facts["model"]) == ("pretend", MODEL)
    runner = Runner(worker, bucket, models, thread)
    crop = [{"time": 0.0, "x": 40.0, "y": 40.0, "width": 36.0, "height": 64.0}]
    edits = {
        "framing": SIZE | {"crop_keyframes": crop, "export_mode": "QUALITY", "end_time": 0.4},
        "overlay": {"text_layers": [TITLE], "end_time": 0.8},
        "annotate": {"clips": [{"start_time": 0.2, "end_time": 0.9, "name": "A goal"}]},
        "multi_clip": SIZE | {"clips": [{"end_time": 0.4}, {"start_time": 0.5, "end_time": 0.9}]},
        "upscale": SIZE | {"crop_keyframes": crop, "model": MODEL, "end_time": 0.4},
    }
    for job_type, params in edits.items():
        job = asked(user_id, job_type, params)
        result = asyncio.run(runner.run(job, "call", send))
        assert isinstance(result, Result), result
        assert result.gpu == "pretend"
        path = tmp_path / f"{job_type}.mp4"
        path.write_bytes(objects.get(f"{user_id}/{result.output_key}"))
        assert output_facts(path).frames == result.facts.frames > 9
        assert np.ptp(luma(path)[0][5]) > 60
    assert len(pretend.threads) == 1
    measured(f"pretend: a worker's five jobs: {pretend.counts['syncs']} synchronising calls")


@pytest.mark.parametrize(
    ("fails", "size", "used", "fallbacks"),
    [
        ({}, (160, 96), ["decoder", "encoder"], []),
        ({"decoder": 200_000}, (160, 96), ["decoder", "encoder"], ["decoder"]),
        ({"encoder": 0}, (160, 96), ["decoder", "encoder", "decoder"], ["encoder"]),
        ({"encoder": 100_000}, (160, 96), ["decoder", "encoder", "decoder"], ["encoder"]),
        ({}, (144, 256), ["decoder"], []),
    ],
)
def test_pretend_codecs_that_fail_leave_the_job_to_the_cpu(
    worker, pretend, bucket, objects, user_id, tmp_path, monkeypatch, fails, size, used, fallbacks
):
    """At the start or in the middle, and for sizes that the chip does not take: the file is whole,
    progress never falls, and the result lists what failed.
    """
    chip = Chip(tmp_path, monkeypatch, trials=1, **fails)
    assert hardware.nvdec_works()
    assert hardware.nvenc_works()
    source = flash_and_beep(tmp_path / "a.mp4", seconds=2)
    objects.put(f"{user_id}/in.mp4", source.read_bytes())
    params = {"output_width": size[0], "output_height": size[1]}
    seen = []
    result = run(
        worker,
        bucket,
        pretend.device,
        asked(user_id, "framing", params),
        lambda progress: seen.append(progress.progress),
    )
    assert sorted(chip.used[2:]) == sorted(used)
    assert [one.codec for one in result.fallbacks] == fallbacks
    assert {one.key for one in result.fallbacks if one.codec == "decoder"} <= {"in.mp4"}
    assert seen == sorted(seen)
    path = tmp_path / "o.mp4"
    path.write_bytes(objects.get(f"{user_id}/{result.output_key}"))
    assert output_facts(path).frames == 50
    assert flashes(path) == pytest.approx(flashes(source), abs=0.001)
    assert beeps(path)[:, 0] == pytest.approx(beeps(source)[:, 0], abs=0.01)


def test_pretend_device_that_dies_ends_the_worker(worker, pretend, bucket, user_id, monkeypatch):
    """Whatever class the error has that the job ends with."""

    def lose(self):
        pretend.dead = True
        raise ValueError("a result that made no sense")

    def leave(code):
        raise ConnectionAbortedError(code)

    monkeypatch.setattr(Execution, "run", lose)
    monkeypatch.setattr("os._exit", leave)
    models = Models(worker.models_dir, pretend.device)
    job = asked(user_id, "framing", SIZE)
    with pytest.raises(ConnectionAbortedError, match="70"):
        asyncio.run(Runner(worker, bucket, models).run(job, "call", send))


@pytest.mark.parametrize("job", ["framing FAST", "framing turned", "overlay blur"])
def test_pretend_device_with_little_memory_makes_smaller_batches(pretend, big_buck_bunny, job):
    """Room for a few frames and not for eight: the same pictures."""
    expected = pictures_of(stage_of(JOBS[job], big_buck_bunny, CPU)[0])
    composition, _ = stage_of(JOBS[job], big_buck_bunny, pretend.device)
    (clip,) = composition.clips

    def eight():
        moments = [0.1 * n for n in range(8)]
        with torch.inference_mode():
            Landing(clip.look.of([noise(1280, 720)] * 8, moments)).frames()

    needed = pretend.accelerator.peak_bytes(eight)
    pretend.limit = pretend.used + needed * 3 // 4
    with pytest.raises(torch.OutOfMemoryError):
        eight()
    assert same(pictures_of(composition), expected)


def test_pretend_device_without_memory_ends_the_job_alone(
    worker, pretend, bucket, objects, user_id, big_buck_bunny
):
    """As `out_of_memory`; the worker goes on."""
    objects.put(f"{user_id}/in.mp4", big_buck_bunny.read_bytes())
    pretend.limit = pretend.used + 1000
    held = OnDevice(torch.zeros(10))
    job = asked(user_id, "framing", SIZE | {"crop_keyframes": PAN})
    with pytest.raises(Exception, match="too little memory") as raised:
        run(worker, bucket, pretend.device, job)
    assert raised.value.code == "out_of_memory"
    assert held.device == pretend.device
