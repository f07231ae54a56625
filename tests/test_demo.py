"""scripts/demo and scripts/up as a newcomer runs them: they end well, say why not, and leave
nothing running.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import imageio_ffmpeg

from gpu_worker.media.probe import output_facts
from tests.stack_thread import processes_in

DEMO = Path(__file__).parents[1] / "scripts" / "demo.py"
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def start(command, folder):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PATH": os.environ["PATH"], "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
    )


def read_until(process, words):
    """Reads the output up to the line with `words` in it."""
    for line in process.stdout:
        if words in line:
            return line
    raise AssertionError(f"the output ended without {words!r}")


def make_clip(path, *options):
    """Makes two seconds of test picture, with a tone unless the options say otherwise."""
    picture = ["-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=2"]
    tone = ["-f", "lavfi", "-i", "sine=d=2"]
    subprocess.run([FFMPEG, "-v", "error", *picture, *tone, *options, str(path)], check=True)
    return path


def test_the_demo_takes_any_clip(tmp_path):
    """Of odd size, turned as phones do it, without sound: exit 0, upright in out/, its facts and
    curl printed, nothing left running.
    """
    flat = make_clip(
        tmp_path / "flat.mp4", "-map", "0:v", "-vf", "scale=321:241", "-pix_fmt", "yuv444p"
    )
    turned = tmp_path / "phone.mp4"
    command = [
        FFMPEG,
        "-v",
        "error",
        "-display_rotation",
        "90",
        "-i",
        str(flat),
        "-c",
        "copy",
        str(turned),
    ]
    subprocess.run(command, check=True)
    process = start([DEMO, turned], tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "phone.mp4: 241x321" in output
    (made,) = (tmp_path / "out").glob("*.mp4")
    facts = output_facts(made)
    assert (facts.width, facts.height, facts.frames, facts.audio_codec) == (1080, 1920, 50, None)
    assert "1080x1920, 2.00 s, 50 frames, 25 fps" in output
    assert "curl" in output
    assert processes_in(tmp_path) == []


def test_ctrl_c_in_the_demo_leaves_nothing_behind(tmp_path, big_buck_bunny):
    """Interrupted while the export runs: exit 130, all processes gone, no traceback."""
    process = start([DEMO, big_buck_bunny], tmp_path)
    read_until(process, "Starting")
    deadline = time.monotonic() + 60
    while not any("gpu_worker" in line for line in processes_in(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert processes_in(tmp_path) == []


def test_up_keeps_its_folder_to_itself_until_ctrl_c(tmp_path):
    """It lets the pages in that it was told of; a second one says that the folder is taken, and
    leaves the first alone, which ends with 0.
    """
    page = "http://localhost:5173"
    first = start(["-m", "broker.cli.main", "up", "--origin", page], tmp_path)
    url = read_until(first, "Reelbroker is up").split()[-1]
    asked = {"Origin": page, "Access-Control-Request-Method": "POST"}
    assert (
        httpx.options(f"{url}/api/jobs", headers=asked).headers["access-control-allow-origin"]
        == page
    )
    second = start(["-m", "broker.cli.main", "up"], tmp_path)
    output, _ = second.communicate(timeout=30)
    assert (second.returncode, "another stack is running" in output) == (1, True)
    assert first.poll() is None
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=30)
    assert first.returncode == 0, output
    assert processes_in(tmp_path) == []


def test_a_supervisor_killed_outright_leaves_nothing_behind_either(tmp_path):
    """It cannot say goodbye, but its parts notice and end."""
    process = start(["-m", "broker.cli.main", "up"], tmp_path)
    read_until(process, "Reelbroker is up")
    process.kill()
    process.communicate(timeout=10)
    deadline = time.monotonic() + 30
    while (left := processes_in(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []


def test_a_part_that_cannot_start_is_named_with_the_end_of_its_log(tmp_path):
    """The store was up already when the endpoint failed; it is stopped again."""
    stack = tmp_path / ".reelbroker"
    stack.mkdir()
    (stack / "endpoint.db").write_text("this is not a database, " * 100)
    process = start(["-m", "broker.cli.main", "up"], tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "endpoint ended with code" in output
    assert "not a database" in output
    assert processes_in(tmp_path) == []


def test_a_port_in_use_is_said(tmp_path):
    """Before anything is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start(["-m", "broker.cli.main", "up", "--port", taken.getsockname()[1]], tmp_path)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "is in use" in output
    assert processes_in(tmp_path) == []


def test_the_demo_says_what_is_wrong_with_a_file(tmp_path):
    """Exit 2 before anything is started."""
    (tmp_path / "notes.mp4").write_text("dear diary")
    process = start([DEMO, "notes.mp4"], tmp_path)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, "notes.mp4" in output) == (2, True)
