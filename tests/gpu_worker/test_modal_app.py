"""Modal's entry of the worker: its settings, its cancel, and a machine that is not fit.

tests/test_modal.py runs it in Modal's own container runtime.
"""

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from pydantic import ValidationError

IMAGE = {"REELBROKER_MODAL_IMAGE": "registry/worker:1"}


@pytest.fixture
def modal_app(monkeypatch):
    """The module, as a deployer imports it."""
    monkeypatch.setenv("REELBROKER_MODAL_IMAGE", IMAGE["REELBROKER_MODAL_IMAGE"])
    from gpu_worker import modal_app

    return modal_app


def test_the_module_imports_nothing_of_the_worker(tmp_path):
    """The machine that deploys has no torch."""
    program = "import gpu_worker.modal_app, sys; sys.exit('torch' in sys.modules)"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)} | IMAGE
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, b"")


def test_the_container_reads_the_settings_of_the_deployer(modal_app, monkeypatch):
    """Modal compares what the code declares in both; the image carries the settings."""
    monkeypatch.setenv("REELBROKER_MODAL_SECRETS", "bucket,fonts")
    monkeypatch.setenv("REELBROKER_MODAL_GPUS", "L40S")
    monkeypatch.setenv("REELBROKER_MODAL_MAX_CONTAINERS", "3")
    deployed = modal_app.Deployment()
    for name in deployed.environment:
        monkeypatch.delenv(name, raising=False)
    for name, value in deployed.environment.items():
        monkeypatch.setenv(name, value)
    assert modal_app.Deployment() == deployed
    assert (deployed.secrets, deployed.gpus) == (("bucket", "fonts"), ("L40S",))


def test_an_app_without_an_image_is_refused(modal_app, monkeypatch):
    """By the name of the setting."""
    monkeypatch.delenv("REELBROKER_MODAL_IMAGE")
    with pytest.raises(ValidationError, match="REELBROKER_MODAL_IMAGE"):
        modal_app.Deployment()


def test_a_cancel_reaches_the_work_and_nothing_else(modal_app):
    """Modal's own handler would raise in whatever task runs at the moment."""
    seen = []

    async def bystander():
        while True:
            await asyncio.sleep(0)

    async def work():
        others = asyncio.create_task(bystander())
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            seen.append(others.done())
            raise
        finally:
            others.cancel()

    def runtime(number, frame):
        raise AssertionError("the runtime's handler ran")

    former = signal.signal(signal.SIGUSR1, runtime)
    try:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(modal_app._cancellable(work()))
        assert seen == [False]
        assert signal.getsignal(signal.SIGUSR1) is runtime
    finally:
        signal.signal(signal.SIGUSR1, former)


async def test_an_unfit_machine_hands_the_job_on_and_takes_no_other(modal_app, monkeypatch):
    """Another container may be fit; this one would fail every job that follows."""
    stopped = []

    async def stop():
        stopped.append(True)

    def unfit():
        raise SystemExit("This worker is not fit for work: no device")

    monkeypatch.setattr(modal_app, "_started", unfit)
    monkeypatch.setattr(modal_app.modal.experimental.stop_fetching_inputs, "aio", stop)
    output = await modal_app._export({}, "fc-1")
    assert (output["error_code"], output["retryable"], stopped) == ("worker_lost", True, [True])
    assert "no device" in output["detail"]
