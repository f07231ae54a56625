"""ffmpeg as a child that is owned, listened to, and never left behind."""

import os
from pathlib import Path

import pytest

from gpu_worker.errors import FfmpegFailed
from gpu_worker.host.guard import Guard
from gpu_worker.media.ffmpeg import run_ffmpeg

ENDLESS = ["-f", "lavfi", "-i", "testsrc2=s=320x240", "-f", "rawvideo", "pipe:1"]


def test_leaving_early_kills_it():
    """An endless ffmpeg is gone after the `with`, also when that was left by an error."""
    seen = {}

    def look_and_crash():
        with run_ffmpeg(ENDLESS, Guard(), reads=True) as ffmpeg:
            seen["pid"] = ffmpeg.process.pid
            assert len(ffmpeg.stdout.read(1000)) == 1000
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        look_and_crash()
    with pytest.raises(ProcessLookupError):
        os.kill(seen["pid"], 0)


def test_a_bad_end_comes_with_its_words():
    """What ffmpeg said is kept for the log; the user gets a sentence."""
    with (
        pytest.raises(FfmpegFailed, match=r"could not be processed\.$") as caught,
        run_ffmpeg(["-i", "/nonexistent.mp4", "-f", "null", "-"], Guard()) as ffmpeg,
    ):
        ffmpeg.finish()
    assert "No such file" in caught.value.detail


def test_much_to_say_does_not_block_it():
    """Its stderr is drained while nobody reads it; the end of it is kept."""
    with run_ffmpeg(
        ["-v", "debug", "-f", "lavfi", "-i", "testsrc2=d=20", "-f", "null", "-"], Guard()
    ) as ffmpeg:
        ffmpeg.finish()
    assert 0 < len(ffmpeg.stderr_tail().splitlines()) <= 40


@pytest.mark.abuse
def test_its_environment_has_no_secret(monkeypatch):
    """A file that takes ffmpeg over finds no key of the bucket or of RunPod; it finds which GPU it
    may use.
    """
    secrets = (
        "R2_SECRET_ACCESS_KEY",
        "R2_ACCESS_KEY_ID",
        "RUNPOD_AI_API_KEY",
        "AWS_SESSION_TOKEN",
        "MY_TOKEN",
    )
    for name in secrets:
        monkeypatch.setenv(name, "secret-that-nobody-may-see")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with run_ffmpeg(ENDLESS, Guard(), reads=True) as ffmpeg:
        assert len(ffmpeg.stdout.read(1000)) == 1000
        environment = Path(f"/proc/{ffmpeg.process.pid}/environ").read_bytes().decode().split("\0")
    assert "CUDA_VISIBLE_DEVICES=0" in environment
    assert any(entry.startswith("PATH=") for entry in environment)
    assert [
        entry for entry in environment if entry.startswith(("R2_", "RUNPOD_", "AWS_", "MY_"))
    ] == []
