"""The engine: the same picture as the reference in fp32, in its place, in its colours, whole or in
tiles.
"""

from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

from gpu_worker.errors import OutOfMemory
from gpu_worker.host.guard import Guard
from gpu_worker.media.decode import decode
from gpu_worker.media.frames import Box, Frame
from gpu_worker.media.probe import probe
from gpu_worker.media.transfer import Landing
from gpu_worker.upscale import precision
from gpu_worker.upscale.batches import Batches
from gpu_worker.upscale.precision import dtype_for
from gpu_worker.upscale.upscaler import BUCKET_SHARE, Upscaler, bucket
from gpu_worker.upscale.weights import Loaded, load_model
from tests.gpu_worker.pictures import CPU, crop, decibels, noise, same

pytestmark = pytest.mark.editing
NOWHERE = Path("/nonexistent")
BOX = Box(500.3, 200.6, 120.0, 160.0)


class Repeat(torch.nn.Module):
    """A network that knows nothing: each pixel `factor` times along each axis. Says how large
    pictures were.

    There is room for so many pixels of a picture; with `whole`, of all pictures of a batch.
    """

    def __init__(self, factor=2, room=None, whole=False, error=None):
        super().__init__()
        self.factor, self.room, self.whole, self.seen = factor, room, whole, []
        self.error = error or torch.OutOfMemoryError("no room")

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        pixels = x.shape[2] * x.shape[3] * (x.shape[0] if self.whole else 1)
        if self.room is not None and pixels > self.room:
            raise self.error
        return x.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


def repeating(device=CPU, **how):
    network = Repeat(**how)
    model = Loaded("repeat", network, network.factor, "here")
    return Upscaler(model, device, torch.float32), network


@pytest.fixture(scope="module")
def frames(big_buck_bunny):
    """Three frames of real footage, two seconds in."""
    with decode(big_buck_bunny, probe(big_buck_bunny), 50, 3, Guard()) as decoded:
        return list(decoded)


def one(engine, frame, box, width, height):
    """One frame through an engine."""
    return engine([frame], [box], width, height)[0]


@pytest.mark.parametrize(
    ("device", "bf16_seconds", "dtype"),
    [
        ("cpu", 0.5, torch.bfloat16),
        ("cpu", 0.9, torch.float32),
        ("cpu", 10.0, torch.float32),
        ("meta", 10.0, torch.float16),
    ],
)
def test_the_numbers_are_chosen_by_trying(monkeypatch, device, bf16_seconds, dtype):
    """bf16 where it is clearly faster than fp32 (1 s here), else fp32; a GPU is not asked."""
    seconds = {torch.float32: 1.0, torch.bfloat16: bf16_seconds}
    monkeypatch.setattr(precision, "_seconds", seconds.__getitem__)
    assert dtype_for.__wrapped__(torch.device(device)) is dtype


def test_the_fast_numbers_make_the_same_picture(frames, measured):
    """Against fp32 of the same weights, on real footage: 45 dB and more in 16 bits, in each
    plane.
    """
    fast = Upscaler(load_model("realesr-animevideov3", NOWHERE), CPU)
    full = Upscaler(load_model("realesr-animevideov3", NOWHERE), CPU, torch.float32)
    a, b = one(fast, frames[0], BOX, 480, 640), one(full, frames[0], BOX, 480, 640)
    values = [decibels(x, y) for x, y in zip(a.planes, b.planes, strict=True)]
    measured(f"animevideov3 in {fast.dtype} against fp32: {min(values):.1f} dB")
    assert min(values) >= (45 if fast.dtype is not torch.float32 else 100)


@pytest.mark.parametrize(
    ("name", "margin_decibels"), [("realesr-animevideov3", 60), ("x4plus-anime", 60)]
)
def test_tiles_leave_no_seam(frames, measured, name, margin_decibels):
    """Whole and in tiles: 60 dB and more over the whole picture, in fp32."""
    model = load_model(name, NOWHERE)
    whole = Upscaler(model, CPU, torch.float32)
    tiled = Upscaler(model, CPU, torch.float32, tile=64)
    box = Box(500.0, 200.0, 96.0, 72.0)
    a, b = one(whole, frames[0], box, 384, 288), one(tiled, frames[0], box, 384, 288)
    measured(f"{name} in tiles of 64 against whole: {decibels(a.y, b.y):.1f} dB")
    assert decibels(a.y, b.y) >= margin_decibels


def test_the_picture_is_where_the_crop_is(frames):
    """A network that only repeats gives what resampling gives, at any offset: no shift, no colour
    lost.
    """
    engine, _ = repeating()
    for x, y in ((500.0, 200.0), (500.3, 200.6), (501.75, 199.25), (0.0, 0.0), (1159.5, 559.5)):
        box = Box(x, y, 120.0, 160.0)
        made, plain = one(engine, frames[0], box, 240, 320), crop(frames[0], box, 240, 320)
        moved = crop(frames[0], Box(min(x + 0.5, 1160.0), y, 120.0, 160.0), 240, 320)
        assert decibels(made.y, plain.y) > max(27.0, decibels(made.y, moved.y))
        for a, b in zip(made.planes, plain.planes, strict=True):
            assert abs(a.float().mean() - b.float().mean()) < 0.6


@pytest.mark.parametrize(
    ("y", "u", "v"),
    [
        (16, 128, 128),
        (235, 128, 128),
        (126, 128, 128),
        (63, 102, 240),
        (173, 42, 26),
        (32, 240, 118),
    ],
)
def test_colours_come_back_as_they_were(y, u, v):
    """There and back through R'G'B': within one level."""
    half = (16, 20)
    frame = Frame(
        torch.full((32, 40), y, dtype=torch.uint8),
        torch.full(half, u, dtype=torch.uint8),
        torch.full(half, v, dtype=torch.uint8),
    )
    made = one(repeating()[0], frame, Box(3.0, 4.0, 20.0, 16.0), 40, 32)
    assert [
        abs(int(plane[5, 5]) - value) <= 1
        for plane, value in zip(made.planes, (y, u, v), strict=True)
    ] == [True] * 3


def test_only_what_is_seen_is_computed(frames):
    """The crop and a little around it; one shape for all places of a crop of one size."""
    engine, network = repeating()
    for x in (500.0, 500.4, 501.0, 501.9):
        one(engine, frames[0], Box(x, 200.3, 120.0, 160.0), 240, 320)
    assert len(set(network.seen)) == 1
    _, _, height, width = network.seen[0]
    assert (height, width) <= (160 + 20, 120 + 20)


def test_odd_pictures_are_no_trouble():
    """Crops up to an odd edge, and networks that look at every second pixel."""
    made = one(repeating()[0], noise(41, 33), Box(0.0, 0.0, 41.0, 33.0), 82, 66)
    assert (made.width, made.height) == (82, 66)


def test_too_little_memory_makes_tiles_then_smaller_ones(frames):
    """And what comes out is the same; the next frame begins with what worked."""
    plenty, _ = repeating()
    scarce, network = repeating(room=250 * 250)
    box = Box(300.0, 10.0, 600.0, 700.0)
    a, b = one(plenty, frames[0], box, 300, 350), one(scarce, frames[0], box, 300, 350)
    assert all(torch.equal(x, y) for x, y in zip(a.planes, b.planes, strict=True))
    failed = sum(shape[2] * shape[3] > 250 * 250 for shape in network.seen)
    assert failed == 3
    one(scarce, frames[1], box, 300, 350)
    assert sum(shape[2] * shape[3] > 250 * 250 for shape in network.seen) == failed


def test_no_memory_at_all_is_said():
    """Not even the smallest tile."""
    engine, _ = repeating(room=1)
    grey = torch.full((256, 256), 128, dtype=torch.uint8)
    with pytest.raises(OutOfMemory):
        one(engine, Frame(grey, grey[:128, :128], grey[:128, :128]), Box(0, 0, 256, 256), 512, 512)


def test_threads_are_given_back(frames):
    """The crop and the encoder want the cores again."""
    before = torch.get_num_threads()
    one(repeating()[0], frames[0], BOX, 240, 320)
    assert torch.get_num_threads() == before


class Memory:
    """A device's memory: `room` bytes, of which a pixel takes `cost`."""

    def __init__(self, room, cost):
        self.room, self.cost = room, cost

    def free_bytes(self):
        return self.room

    def peak_bytes(self, work):
        return work() * self.cost


@pytest.mark.parametrize(
    ("room", "pixels", "size"),
    [(100_000, 100, 8), (5_000, 100, 4), (5_000, 200, 2), (3_000, 100, 2), (10, 100, 1)],
)
def test_batches_fill_the_memory_that_is_free(room, pixels, size):
    """What a pixel takes is measured at any shape; 80 % of what is free is filled, with 8 pictures
    at most.
    """
    batches = Batches(Memory(room, 10))
    assert batches.size(pixels) == 1
    batches.measured(50, lambda: 50)
    assert batches.size(pixels) == size


def test_a_cpu_takes_pictures_one_by_one():
    """Its caches are the limit."""
    batches = Batches(None)
    batches.measured(100, lambda: 100)
    assert (batches.largest, batches.size(100)) == (1, 1)


def moved(count, step=0.5):
    """As many places of one crop."""
    return [Box(BOX.x + n * step, BOX.y, BOX.width, BOX.height) for n in range(count)]


def landed(frames):
    return Landing(frames).frames()


def test_the_first_picture_is_measured_and_kept(frames, pretend):
    """The rest follows as one batch: nothing is computed twice. The CPU makes the same, bit for
    bit.
    """
    engine, network = repeating(pretend.device)
    made = landed(engine([frames[0]] * 6, moved(6), 240, 320))
    assert [shape[0] for shape in network.seen] == [1, 5]
    assert same(made, [one(repeating()[0], frames[0], box, 240, 320) for box in moved(6)])


def test_the_real_network_makes_the_same_picture_on_a_device(frames, pretend):
    """Eight at once on the device, one by one on the CPU, in float32: bit for bit."""
    model = "realesr-animevideov3"
    device = Upscaler(load_model(model, NOWHERE), pretend.device, torch.float32)
    host = Upscaler(load_model(model, NOWHERE), CPU, torch.float32)
    boxes = [Box(500.0 + 1.3 * n, 200.6, 48.0, 64.0) for n in range(8)]
    made = landed(device([frames[0]] * 8, boxes, 192, 256))
    assert same(made, [one(host, frames[0], box, 192, 256) for box in boxes])


def test_a_batch_too_large_is_halved_for_its_shape(frames, pretend):
    """Pictures of another shape, and those of the next clip, begin with whole batches."""
    engine, network = repeating(pretend.device, room=120_000, whole=True)
    engine([frames[0]] * 9, moved(9), 240, 320)
    assert [shape[0] for shape in network.seen] == [1, 8, 4, 4]
    small = [Box(10.0 + n, 20.0, 30.0, 40.0) for n in range(8)]
    network.seen.clear()
    engine([frames[0]] * 8, small, 60, 80)
    engine([frames[0]] * 8, moved(8), 240, 320)
    assert [shape[0] for shape in network.seen] == [8, 4, 4]
    engine.let_go()
    network.seen.clear()
    engine([frames[0]] * 8, moved(8), 240, 320)
    assert [shape[0] for shape in network.seen] == [8, 4, 4]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no room"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    ],
)
def test_every_kind_of_too_little_memory_halves(frames, pretend, error):
    """Of torch's allocator, of cuDNN and of cuBLAS."""
    engine, network = repeating(pretend.device, room=60_000, whole=True, error=error)
    made = landed(engine([frames[0]] * 5, moved(5), 240, 320))
    assert [shape[0] for shape in network.seen] == [1, 4, 2, 2]
    assert same(made, [one(repeating()[0], frames[0], box, 240, 320) for box in moved(5)])


def test_another_error_is_raised(frames, pretend):
    """It is not about memory: once, and no tiles."""
    engine, network = repeating(pretend.device, room=1, error=RuntimeError("launch failure"))
    with pytest.raises(RuntimeError, match="launch failure"):
        engine([frames[0]] * 4, moved(4), 240, 320)
    assert len(network.seen) == 1


def test_memory_that_really_runs_out_makes_smaller_batches(frames, pretend):
    """The pretend device has a limit: what does not fit is made in parts."""
    engine, network = repeating(pretend.device)
    engine([frames[0]], moved(1), 240, 320)
    pretend.limit = pretend.used + 12_000_000
    # The device says that all is free, so that only failing shows what fits.
    engine._batches._bytes_a_pixel = 1e-9
    made = landed(engine([frames[0]] * 8, moved(8), 240, 320))
    assert [shape[0] for shape in network.seen] != [1, 8]
    assert same(made, [one(repeating()[0], frames[0], box, 240, 320) for box in moved(8)])


def zoom(count, first, last):
    """Crops from one width to another."""
    sizes = [first + (last - first) * n / (count - 1) for n in range(count)]
    return [Box(640 - w / 2, 360 - w * 2 / 3, w, w * 4 / 3) for w in sizes]


@pytest.mark.parametrize(("first", "last"), [(405.0, 270.0), (405.0, 380.0), (100.0, 300.0)])
def test_a_zoom_costs_hardly_more_than_a_pan(frames, pretend, measured, first, last):
    """24 frames: as many pictures, in few shapes, and at most 1.15 times the pixels of their
    crops.
    """
    engine, network = repeating(pretend.device)
    boxes = zoom(24, first, last)
    for start in range(0, 24, 8):
        engine([frames[0]] * 8, boxes[start : start + 8], 60, 80)
    exact, network_exact = repeating()
    for box in boxes:
        one(exact, frames[0], box, 60, 80)
    pictures = sum(shape[0] for shape in network.seen)
    share = pixels(network.seen) / pixels(network_exact.seen)
    shapes = {shape[2:] for shape in network.seen}
    measured(
        f"pretend: zoom {first:g} to {last:g}, 24 frames: {pictures} pictures in "
        f"{len(network.seen)} calls and {len(shapes)} shapes, {share:.3f} of the pixels"
    )
    assert pictures == 24
    assert share <= 1.15
    assert len(network.seen) <= 10


def pixels(shapes):
    return sum(count * height * width for count, _, height, width in shapes)


@given(st.integers(1, 10_000))
def test_a_side_is_rounded_up_a_little(length):
    """To an even one, by at most the share, or by 1."""
    assert length <= bucket(length) <= max(length + 1, length * (1 + BUCKET_SHARE))
    assert bucket(length) % 2 == 0


def test_crops_of_several_sizes_show_their_own(frames, pretend):
    """A zoom changes what the network sees; the picture stays the same but for the context."""
    engine, _ = repeating(pretend.device)
    boxes = [Box(500.0, 200.0, size, size) for size in (100.0, 100.5, 140.0, 140.0)]
    for box, frame in zip(boxes, landed(engine(frames[:1] * 4, boxes, 240, 240)), strict=True):
        assert torch.equal(frame.y, one(repeating()[0], frames[0], box, 240, 240).y)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_makes_the_same_picture(frames):
    """In fp16 on the GPU against fp32 on the CPU: 50 dB and more."""
    gpu = torch.device("cuda", 0)
    engine = Upscaler(load_model("realesr-animevideov3", NOWHERE), gpu)
    full = Upscaler(load_model("realesr-animevideov3", NOWHERE), CPU, torch.float32)
    assert engine.batch > 1
    made = Landing(engine(frames * 4, moved(len(frames) * 4), 480, 640)).frames()
    assert not any(plane.is_cuda for frame in made for plane in frame.planes)
    for frame, box, result in list(zip(frames * 4, moved(len(frames) * 4), made, strict=True))[::5]:
        wanted = one(full, frame, box, 480, 640)
        assert min(decibels(a, b) for a, b in zip(result.planes, wanted.planes, strict=True)) >= 50
