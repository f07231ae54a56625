"""The GPU's codecs: used where a trial shows that they work, and for sizes that they take."""

import pytest

from gpu_worker.media.hardware import encodes, nvdec_works, nvenc_works
from tests.gpu_worker.codecs import Chip


@pytest.mark.parametrize(
    ("width", "height", "taken"),
    [
        (1080, 1920, True),
        (145, 49, True),
        (144, 256, False),
        (256, 48, False),
        (4096, 4096, True),
        (4098, 100, False),
        (2160, 7680, False),
    ],
)
def test_sizes_are_those_of_the_chip(width, height, taken):
    """For H.264; others go to the CPU at once."""
    assert encodes(width, height) is taken


@pytest.mark.parametrize("fails", [{}, {"decoder": 0}, {"encoder": 0}])
def test_a_trial_shows_what_works(tmp_path, monkeypatch, fails):
    """Each for itself, and once a process."""
    chip = Chip(tmp_path, monkeypatch, **fails)
    for _ in range(2):
        assert nvdec_works() is ("decoder" not in fails)
        assert nvenc_works() is ("encoder" not in fails)
    assert chip.used == ["decoder", "encoder"]
    for trial in (nvdec_works, nvenc_works):
        trial.cache_clear()


def test_this_machine_without_a_gpu_fails_both_trials():
    """ffmpeg lists the codecs all the same: the trial must prove that the GPU did the work."""
    for trial in (nvdec_works, nvenc_works):
        trial.cache_clear()
    torch = pytest.importorskip("torch")
    assert nvdec_works() is torch.cuda.is_available()
    assert nvenc_works() in (False, torch.cuda.is_available())
