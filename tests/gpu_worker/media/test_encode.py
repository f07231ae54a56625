"""What the encoder writes: exact frames, exact rate, right tags, a file that starts at once."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from gpu_worker.errors import FfmpegFailed, HardwareEncoderFailed
from gpu_worker.host.guard import Guard
from gpu_worker.media.encode import Quality, encode
from gpu_worker.media.frames import Frame, frame_bytes
from gpu_worker.media.probe import output_facts
from tests.gpu_worker.codecs import Chip
from tests.gpu_worker.footage import luma, psnr

NEARLY_LOSSLESS = Quality("ultrafast", 1)


def grey(level, width=64, height=96):
    half = torch.full((height // 2, width // 2), 128, dtype=torch.uint8)
    return Frame(torch.full((height, width), level, dtype=torch.uint8), half, half)


@pytest.mark.parametrize(
    "fps",
    [
        Fraction(25),
        Fraction(30000, 1001),
        Fraction(24000, 1001),
        Fraction(60),
        Fraction(23999, 100),
    ],
)
def test_as_many_frames_at_exactly_that_rate(tmp_path, fps):
    """Rational rates stay rational."""
    path = tmp_path / "a.mp4"
    with encode(path, (64, 96), fps, NEARLY_LOSSLESS, Guard()) as encoder:
        for n in range(10):
            encoder.write(grey(20 + n))
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == fps
    pictures, times = luma(path)
    assert [int(picture[5, 5]) for picture in pictures] == pytest.approx(list(range(20, 30)), abs=1)
    assert times == pytest.approx([float(n / fps) for n in range(10)], abs=1e-4)


def test_the_file_has_its_colours_as_tags(tmp_path):
    """BT.709, limited range, 8-bit 4:2:0."""
    path = tmp_path / "a.mp4"
    with encode(path, (64, 96), Fraction(25), Quality(), Guard()) as encoder:
        encoder.write(grey(100))
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        tags = (
            codec.colorspace,
            codec.color_primaries,
            codec.color_trc,
            codec.color_range,
            codec.pix_fmt,
        )
    assert tags == (1, 1, 1, 1, "yuv420p")
    assert output_facts(path).audio_codec is None


@pytest.mark.parametrize("frames_before", [0, 1, 5])
def test_a_gpus_encoder_that_fails_is_told_from_an_ffmpeg_that_fails(
    tmp_path, monkeypatch, frames_before
):
    """So that the CPU's can do the job; at the start as well as in the middle."""
    Chip(tmp_path, monkeypatch, encoder=frames_before * frame_bytes(64, 96))
    quality = Quality(hardware=True)
    with (
        pytest.raises(HardwareEncoderFailed) as raised,
        encode(tmp_path / "a.mp4", (64, 96), Fraction(25), quality, Guard()) as encoder,
    ):
        for n in range(50):
            encoder.write(grey(20 + n))
    assert "OpenEncodeSessionEx failed" in raised.value.detail


def test_a_gpus_encoder_that_works_writes_the_file(tmp_path, monkeypatch):
    """With the GPU's options, and as many frames."""
    chip = Chip(tmp_path, monkeypatch)
    path = tmp_path / "a.mp4"
    with encode(path, (64, 96), Fraction(25), Quality(hardware=True), Guard()) as encoder:
        for n in range(10):
            encoder.write(grey(20 + n))
    assert output_facts(path).frames == 10
    assert chip.used == ["encoder"]


def test_the_default_quality_is_hard_to_tell_from_the_source(tmp_path):
    """Over 40 dB on a picture with structure."""
    x, y = np.meshgrid(np.arange(128), np.arange(192))
    picture = (128 + 60 * np.sin(x / 5) * np.cos(y / 7)).astype(np.uint8)
    frame = Frame(torch.from_numpy(picture), *(torch.full((96, 64), 128, dtype=torch.uint8),) * 2)
    path = tmp_path / "a.mp4"
    with encode(path, (128, 192), Fraction(25), Quality(), Guard()) as encoder:
        for _ in range(5):
            encoder.write(frame)
    assert min(psnr(made, picture) for made in luma(path)[0]) > 40


def test_a_dead_encoder_is_reported_in_its_own_words(tmp_path):
    """An error of ffmpeg is no broken pipe of ours."""

    def write_into_nowhere():
        with encode(
            tmp_path / "no" / "a.mp4", (64, 96), Fraction(25), Quality(), Guard()
        ) as encoder:
            for _ in range(1000):
                encoder.write(grey(100))

    with pytest.raises(FfmpegFailed) as caught:
        write_into_nowhere()
    assert "No such file or directory" in caught.value.detail
