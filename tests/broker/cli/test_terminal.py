"""The developer's commands against a broker on a real port: output, exit codes and JSON."""

import json
import re
import time

import pytest
import structlog
from typer.testing import CliRunner

from broker.bucket import open_bucket
from broker.cli.main import cli, log_to_stderr
from tests.broker.api.served import API_KEY, serve
from tests.broker.provider import Provider
from tests.broker.test_client import finish_soon


@pytest.fixture
def database_url(tmp_path):
    """SQLite is enough: the commands use HTTP only."""
    return f"sqlite:///{tmp_path}/broker.db"


@pytest.fixture
def shell(settings, monkeypatch):
    """A terminal with a broker in its environment."""
    made, provider = settings(), Provider()
    # The broker runs in this process, and its log is not the command's output.
    log_to_stderr("CRITICAL")
    with serve(made, provider) as served:
        monkeypatch.setenv("REELBROKER_URL", served.url)
        monkeypatch.setenv("REELBROKER_API_KEY", API_KEY)

        class Shell:
            bucket = open_bucket(made)

            def types(self, *words, code=0, input=None):
                result = CliRunner().invoke(cli, [str(word) for word in words], input=input)
                assert result.exit_code == code, result.output + result.stderr
                return result.stdout if code == 0 else result.output

        shell = Shell()
        shell.provider, shell.user = provider, made.user_id
        yield shell
    structlog.reset_defaults()


def test_the_whole_journey_is_one_line(shell, tmp_path):
    """A file in, a file out; as JSON, nothing but the job is printed."""
    video, params, out = tmp_path / "[x]clip.mp4", tmp_path / "crop.json", tmp_path / "out.mp4"
    video.write_bytes(b"a video")
    params.write_text('{"output_width": 270, "output_height": 480}')
    working = finish_soon(shell.provider, shell.bucket)
    printed = shell.types(
        "submit",
        video,
        "--params",
        params,
        "--project",
        7,
        "-m",
        "a=b=c",
        "--watch",
        "-o",
        out,
        "--json",
    )
    working.join()
    job = json.loads(printed)
    assert (job["status"], job["project_id"], job["metadata"], job["params"]["output_width"]) == (
        "complete",
        7,
        {"a": "b=c"},
        270,
    )
    assert out.read_bytes() == b"a film"
    assert "complete: 1080x1920, 0.40 s, 6 bytes" in shell.types("watch", job["job_id"])
    again = tmp_path / "again.mp4"
    shell.types("download", job["job_id"], again)
    assert again.read_bytes() == b"a film"
    assert [
        one["job_id"]
        for one in json.loads(shell.types("jobs", "list", "--status", "complete", "--json"))
    ] == [job["job_id"]]
    (listed,) = [line for line in shell.types("jobs", "list").splitlines() if job["job_id"] in line]
    assert re.fullmatch(r"\S+ +framing +complete +\d+ s +Done *", listed)


def test_a_job_that_fails_or_is_cancelled_has_an_exit_code_of_its_own(shell):
    """1 and 3; a retry is a new job."""
    failed = shell.types("submit", "uploads/none.mp4", "--watch", code=1)
    assert "source_not_found" in failed
    shell.provider.fault = lambda request: None
    shell.bucket.write(f"{shell.user}/a.mp4", b"a video")
    job = json.loads(shell.types("submit", "a.mp4", "--json"))["job_id"]
    shell.types("cancel", job)
    assert "cancelled" in shell.types("watch", job, code=3)
    assert json.loads(shell.types("retry", job, "--json"))["retry_of"] == job


def test_a_wrong_command_line_sends_nothing(shell, tmp_path):
    """Exit code 2, with the field's name and without an upload."""
    video = tmp_path / "clip.mp4"
    video.write_bytes(b"a video")
    for words, message in [
        (("submit", video, "--params", '{"end_time": "x"}'), "/params/end_time"),
        (("submit", video, "--params", "{"), "no JSON"),
        (("submit", video, "--params", tmp_path / "none.json"), "No such file"),
        (("submit", video, "-m", "x"), "NAME=VALUE"),
        (("submit", video, "--type", "sharpen"), "sharpen"),
        (("upload", tmp_path / "none.mp4"), "there is no file"),
        (("submit", video, "-o", tmp_path), "is a folder"),
        (("submit", video, "-o", tmp_path / "none" / "out.mp4"), "there is no folder"),
        (("download", "some-job", tmp_path), "is a folder"),
    ]:
        assert message in shell.types(*words, code=2)
    assert list(shell.bucket.listed(f"{shell.user}/uploads/")) == []
    assert "not_found" not in shell.types("watch", "none", code=1)
    key = shell.types("upload", video).strip()
    assert shell.bucket.size(f"{shell.user}/{key}") == 7


def test_a_quote_reads_its_params_from_standard_input(shell):
    """`--params -`, as for `submit`."""
    printed = shell.types(
        "quote",
        "a.mp4",
        "--params",
        "-",
        "--seconds",
        "4",
        input='{"output_width": 540, "output_height": 960}',
    )
    assert printed.startswith("4 s of video: ")
    assert (
        json.loads(shell.types("quote", "a.mp4", "--seconds", "4", "--json"))["source_known"]
        is True
    )


def test_a_missing_broker_is_an_error_in_one_line(monkeypatch):
    """Exit code 1, with the broker's address."""
    monkeypatch.setenv("REELBROKER_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("broker.client.RETRY_SECONDS", (0.01,))
    result = CliRunner().invoke(cli, ["jobs", "list"])
    assert (result.exit_code, "http://127.0.0.1:9" in result.output) == (1, True)


@pytest.mark.abuse
def test_a_workers_error_steers_no_terminal(shell):
    """An error may quote its source. `watch`, `jobs list` and JSON escape control characters."""
    shell.bucket.write(f"{shell.user}/a.mp4", b"a video")
    job = json.loads(shell.types("submit", "a.mp4", "--json"))
    attack = "\x1b]0;owned\x07\x9b2J\u202e"
    while not shell.provider.jobs:
        time.sleep(0.05)
    output = {"error_code": "invalid_media", "retryable": False}
    shell.provider.only().update(status="FAILED", error=f"Not a video: {attack}", output=output)
    texts = [shell.types("watch", job["job_id"], code=1), shell.types("jobs", "list")]
    as_json = shell.types("watch", job["job_id"], "--json", code=1)
    for shown in (*texts, as_json):
        assert not set("\x1b\x07\x9b\u202e") & set(shown)
    for shown in texts:
        assert r"Not a video: \x1b]0;owned\x07\x9b2J\u202e" in shown
    assert json.loads(as_json)["error"].endswith(attack)
