"""The engine: the same picture as the reference in fp32, in its place, in its colours, whole or in
tiles.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from gpu_worker.edits.crop import crop
from gpu_worker.errors import OutOfMemory
from gpu_worker.host.guard import Guard
from gpu_worker.media.decode import decode
from gpu_worker.media.frames import Box, Frame
from gpu_worker.media.probe import probe
from gpu_worker.media.transfer import Landing
from gpu_worker.upscale import precision
from gpu_worker.upscale.precision import dtype_for
from gpu_worker.upscale.upscaler import Upscaler
from gpu_worker.upscale.weights import Loaded, load_model

pytestmark = pytest.mark.editing
CPU = torch.device("cpu")
NOWHERE = Path("/nonexistent")
BOX = Box(500.3, 200.6, 120.0, 160.0)


class Repeat(torch.nn.Module):
    """A network that knows nothing: each pixel `factor` times along each axis. Says how large
    pictures were.

    There is room for so many pixels of a picture; with `whole`, of all pictures of a batch.
    """

    def __init__(self, factor=2, room=None, whole=False):
        super().__init__()
        self.factor, self.room, self.whole, self.seen = factor, room, whole, []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        pixels = x.shape[2] * x.shape[3] * (x.shape[0] if self.whole else 1)
        if self.room is not None and pixels > self.room:
            raise torch.OutOfMemoryError("no room")
        return x.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


def repeating(factor=2, room=None, whole=False, **how):
    network = Repeat(factor, room, whole)
    return Upscaler(Loaded("repeat", network, factor, "here"), CPU, torch.float32, **how), network


@pytest.fixture(scope="module")
def frames(big_buck_bunny):
    """Three frames of real footage, two seconds in."""
    with decode(big_buck_bunny, probe(big_buck_bunny), 50, 3, Guard()) as decoded:
        return list(decoded)


def one(engine, frame, box, width, height):
    """One frame through an engine."""
    return engine([frame], [box], width, height)[0]


def decibels(a, b, peak=255.0):
    error = torch.mean((a.double() - b.double()) ** 2).item()
    return float("inf") if error == 0 else 10 * np.log10(peak**2 / error)


@pytest.mark.parametrize(
    ("device", "bf16_seconds", "dtype"),
    [
        ("cpu", 0.5, torch.bfloat16),
        ("cpu", 0.9, torch.float32),
        ("cpu", 10.0, torch.float32),
        ("cuda", 10.0, torch.float16),
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


def test_an_exact_repetition_is_not_computed_again(frames):
    """The same pixels in the same place: one run; any other: another one."""
    engine, network = repeating()
    first = one(engine, frames[0], BOX, 240, 320)
    again = Frame(*(plane.clone() for plane in frames[0].planes))
    assert one(engine, again, BOX, 240, 320) is first
    assert len(network.seen) == 1
    one(engine, again, Box(BOX.x + 0.1, BOX.y, BOX.width, BOX.height), 240, 320)
    one(engine, frames[1], BOX, 240, 320)
    assert len(network.seen) == 3


def test_odd_pictures_are_no_trouble():
    """Crops up to an odd edge, and networks that look at every second pixel."""
    noise = np.random.default_rng(2)
    planes = (
        torch.from_numpy(noise.integers(16, 235, shape, np.uint8))
        for shape in ((33, 41), (17, 21), (17, 21))
    )
    made = one(repeating()[0], Frame(*planes), Box(0.0, 0.0, 41.0, 33.0), 82, 66)
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
    """A device's memory: `room` bytes, of which one picture takes `cost`."""

    def __init__(self, room, cost):
        self.room, self.cost, self.tried = room, cost, 0

    def free(self):
        return self.room

    def peak(self, work):
        self.tried += 1
        work()
        return self.cost


def moved(count):
    """As many places of one crop."""
    return [Box(BOX.x + n / 2, BOX.y, BOX.width, BOX.height) for n in range(count)]


@pytest.mark.parametrize(
    ("room", "sizes"), [(10_000, [1, 6]), (500, [1, 4, 2]), (300, [1, 2, 2, 2]), (10, [1] * 7)]
)
def test_batches_fill_the_memory_that_is_free(frames, room, sizes):
    """What one picture takes is measured once a shape; 80 % of what is free is filled, with 8 at
    most.
    """
    memory = Memory(room, 100)
    engine, network = repeating(memory=memory)
    made = engine([frames[0]] * 6, moved(6), 240, 320)
    assert [shape[0] for shape in network.seen] == sizes
    assert memory.tried == 1
    alone = [one(repeating()[0], frames[0], box, 240, 320) for box in moved(6)]
    assert all(
        torch.equal(x, y)
        for a, b in zip(made, alone, strict=True)
        for x, y in zip(a.planes, b.planes, strict=True)
    )


def test_a_batch_too_large_is_halved(frames):
    """And batches stay as small as they had to become."""
    engine, network = repeating(room=60_000, memory=Memory(10_000, 1), whole=True)
    assert engine.batch == 8
    engine([frames[0]] * 8, moved(8), 240, 320)
    assert [shape[0] for shape in network.seen] == [1, 8, 4, 2, 2, 4, 2, 2]
    assert engine.batch == 2


def test_repetitions_within_a_batch_are_computed_once(frames):
    """Also where they repeat what the batch before ended with."""
    engine, network = repeating(memory=Memory(10_000, 1))
    a, b = frames[0], frames[1]
    made = engine([a, a, b, b], [BOX] * 4, 240, 320)
    assert made[0] is made[1]
    assert made[2] is made[3]
    again = engine([b, a], [BOX] * 2, 240, 320)
    assert again[0] is made[3]
    assert sum(shape[0] for shape in network.seen) == 1 + 2 + 1


def test_crops_of_several_sizes_are_not_mixed(frames):
    """A zoom changes what the network sees; each still shows its own."""
    engine, _ = repeating(memory=Memory(10_000, 1))
    boxes = [Box(500.0, 200.0, size, size) for size in (100.0, 100.5, 140.0, 140.0)]
    made = engine(frames[:1] * 4, boxes, 240, 240)
    assert made[3] is made[2]
    for box, frame in zip(boxes, made, strict=True):
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
