"""What the documents say is so: commands and code are run, top to bottom, against a real stack;
settings, options and links exist.
"""

import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
from datetime import UTC, datetime
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
import typer
from standardwebhooks import Webhook

from broker.api.routes import ROUTES
from broker.cli.main import cli
from broker.embedded.ports import free_ports
from broker.settings import Settings as BrokerSettings
from gpu_worker.settings import Settings as WorkerSettings
from schemas.jobs import ErrorCode
from tests.http_server import serving
from tests.stack_thread import StackThread

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: What a block may be in. The first three are run; `text` is for drawings, and for what a program
#: prints.
LANGUAGES = {"sh", "python", "js", "yaml", "ini", "nginx", "markdown", "text"}
#: Commands that stand-ins answer here, and where each is run for real.
ELSEWHERE = {
    "docker": "scripts/try-deploy",
    "scripts/check": ".ci/run",
    "scripts/demo": "tests/test_demo.py",
    "scripts/fix": "tests/test_scripts.py",
    "scripts/setup": "scripts/test-tools",
    "scripts/smoke": "scripts/try-deploy",
    "scripts/test": ".ci/run",
    "scripts/up": "tests/test_demo.py",
}
#: Addresses that stand for the reader's own broker.
BROKERS = ("https://broker.example.com", "http://localhost:8000")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def blocks(document):
    """Each fenced block as (language, text)."""
    found = re.findall(
        r"^```(\S*)\n(.*?)^```$", document.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    return [(language, text) for language, text in found]


def code(document, language):
    return "\n".join(text for found, text in blocks(document) if found == language)


def prose(document):
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def named(document):
    return str(document.relative_to(ROOT))


def with_blocks_in(*languages):
    return [
        document
        for document in DOCUMENTS
        if any(code(document, language) for language in languages)
    ]


# ── a place to type them in ───────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def frontend(tmp_path_factory):
    """The origin of a page with nothing but a file input, as a development server has it: not the
    broker's.
    """
    folder = tmp_path_factory.mktemp("frontend")
    (folder / "index.html").write_text(
        '<!doctype html><link rel="icon" href="data:,"><input type="file">'
    )
    with serving(functools.partial(SimpleHTTPRequestHandler, directory=folder)) as port:
        yield f"http://localhost:{port}"


@pytest.fixture(scope="module")
def stack(tmp_path_factory, frontend, clip):
    """Whose pages may call it, and on which a job with a trace has been done already."""
    (port,) = free_ports(1)
    folder = tmp_path_factory.mktemp("stack").resolve()
    (folder / ".env").write_text("REELBROKER_WEBHOOKS_TO_PRIVATE_ADDRESSES=true\n")
    with StackThread(folder, port=port, origins=[frontend]) as stack:
        trace = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        body = {"type": "framing", "input_key": stack.upload(clip), "params": {"end_time": 0.2}}
        stack.finished(stack.client.post("/api/jobs", json=body, headers=trace).headers["location"])
        yield stack


@pytest.fixture
def desk(tmp_path, stack, clip):
    """A folder like the repository's, a clip and the logs in it, and stand-ins for what is run
    elsewhere.
    """
    for path in ROOT.iterdir():
        if path.name not in ("scripts", "out", ".git", ".env"):
            (tmp_path / path.name).symlink_to(path)
    # These are written to.
    for name in ("docs", ".runpod"):
        (tmp_path / name).unlink()
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(clip, tmp_path / "clip.mp4")
    (tmp_path / "scripts").mkdir()
    for path in (ROOT / "scripts").iterdir():
        (tmp_path / "scripts" / path.name).symlink_to(path)
    (tmp_path / "bin").mkdir()
    for command in ELSEWHERE:
        place = tmp_path / command if "/" in command else tmp_path / "bin" / command
        place.unlink(missing_ok=True)
        place.write_text(inside_the_container(stack) if command == "docker" else "#!/bin/bash\n")
        place.chmod(0o755)
    for name, part in (("broker", "broker"), ("worker", "worker-1")):
        (tmp_path / f"{name}.log").symlink_to(stack.stack.folder / "logs" / f"{part}.log")
    return tmp_path


def inside_the_container(stack):
    """A command in the broker's container is one on this machine, with the settings of the broker
    that runs here.
    """
    broker = Path(f"/proc/{stack.stack.pid('broker')}/environ").read_text().split("\0")
    settings = [
        shlex.quote(line) for line in broker if line.startswith(("R2_", "RUNPOD_", "REELBROKER_"))
    ]
    return f"""#!/bin/bash
[ "$1" = compose ] && shift
[ "$1" = exec ] && exec env {" ".join(settings)} "${{@:3}}"
exit 0
"""


def run(desk, stack, script):
    """Types a script; it ends with the first command that fails."""
    for address in BROKERS:
        script = script.replace(address, stack.stack.broker_url)
    environment = {
        "PATH": f"{desk}/bin:{ROOT}/.venv/bin:{os.environ['PATH']}",
        "HOME": str(desk),
        "COLUMNS": "200",
        "REELBROKER_URL": stack.stack.broker_url,
        "REELBROKER_API_KEY": stack.stack.api_key,
    }
    command = ["bash", "-euo", "pipefail", "-c", script]
    ended = subprocess.run(
        command, cwd=desk, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, f"{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    return ended.stdout


# ── they do what they say ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("document", with_blocks_in("sh"), ids=named)
def test_commands_run_as_they_are_written(document, desk, stack):
    """In bash, in their order, in one shell, each with success."""
    run(desk, stack, code(document, "sh"))


@pytest.mark.parametrize(("command", "where"), ELSEWHERE.items())
def test_what_a_stand_in_answers_is_run_elsewhere(command, where):
    """By the file that is said to."""
    assert command in (ROOT / where).read_text()


@pytest.mark.parametrize("document", with_blocks_in("python"), ids=named)
def test_python_runs_as_it_is_written(document, desk, stack, monkeypatch):
    """With what `scripts/up` has one export."""
    monkeypatch.chdir(desk)
    monkeypatch.setenv("REELBROKER_URL", stack.stack.broker_url)
    monkeypatch.setenv("REELBROKER_API_KEY", stack.stack.api_key)
    exec(compile(code(document, "python"), named(document), "exec"), {})
    assert (desk / "out.mp4").stat().st_size > 10_000


@pytest.fixture
def page(chromium, frontend, stack):
    """A page of a frontend, with the guide's own functions."""
    context = chromium.new_context()
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(frontend)
    script = code(ROOT / "docs" / "api.md", "js").replace(
        "http://localhost:8000", stack.stack.broker_url
    )
    page.add_script_tag(content=f'const getToken = async () => "{stack.stack.api_key}"\n{script}')
    yield page
    context.close()


EXPORT = """async (end_time) => {
  const told = []
  const file = document.querySelector("input").files[0]
  const params = {end_time, output_width: 270, output_height: 480}
  const video = document.createElement("video")
  video.src = await exportClip(file, params, (text) => { told.push(text); window.told = text })
  await new Promise((resolve, reject) =>
    Object.assign(video, {onloadeddata: resolve, onerror: reject}))
  return [...told, `${video.videoWidth}x${video.videoHeight}`]
}"""


def test_javascript_runs_in_a_browser_on_a_page_of_another_origin(page, clip):
    """The guide's own functions bring a chosen file to a finished video, which the page then plays;
    a refusal is an error that says why.
    """
    complaints = []
    page.on(
        "console",
        lambda message: complaints.append(message.text) if message.type == "error" else None,
    )
    page.set_input_files("input", clip)
    told = page.evaluate(EXPORT, 1)
    size = clip.stat().st_size
    assert f"{size} of {size} bytes sent" in told
    assert told[-2].startswith("100 % ")
    assert told[-1] == "270x480"
    assert complaints == []
    ask = "ask('POST', '/api/jobs', {body: {type: 'framing'}})"
    ask += ".catch((error) => ({...error, message: error.message}))"
    refused = page.evaluate(ask)
    assert (refused["status"], refused["code"], refused["retryable"]) == (
        422,
        "invalid_request",
        False,
    )
    assert refused["message"]


def test_javascript_watches_through_a_restart_of_the_broker(page, stack, clip):
    """And what is not there, it does not watch for ever."""
    page.set_input_files("input", clip)
    page.evaluate(f"() => {{ window.going = ({EXPORT})(2) }}")
    page.wait_for_function("window.told?.includes('%')")
    stack.kill("broker")
    assert page.evaluate("going")[-1] == "270x480"
    missing = (
        "watch('00000000-0000-4000-8000-000000000000', () => {}).catch((error) => error.status)"
    )
    assert page.evaluate(missing) == 404


def test_javascript_sends_a_large_file_in_parts_through_a_cut(page, stack, tmp_path):
    """Some hundred megabytes; the second part is cut once."""
    large = tmp_path / "large.mp4"
    large.write_bytes(os.urandom(1 << 20) * 101)
    cut = []

    def route(route):
        if "partNumber=2&" in route.request.url and not cut:
            cut.append(route.request.url)
            route.abort()
        else:
            route.continue_()

    page.route("**/*partNumber=*", route)
    page.set_input_files("input", large)
    key = page.evaluate(
        "upload(document.querySelector('input').files[0], (sent) => { window.sent = sent })"
    )
    assert page.evaluate("sent") == large.stat().st_size
    assert len(cut) == 1
    where = stack.client.get("/api/storage/presigned-url", params={"key": key}).json()["url"]
    assert (
        hashlib.sha256(httpx.get(where, timeout=60).content).digest()
        == hashlib.sha256(large.read_bytes()).digest()
    )


def test_javascript_tells_a_real_webhook_from_another(page):
    """By what the library signs that the broker uses: the body, the id and the time are what was
    sent, and now.
    """
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLUQw", '{"type": "job.complete"}'
    now = page.evaluate("Math.floor(Date.now() / 1000)")

    def is_ours(body=body, at=now, **changed):
        signature = Webhook(secret).sign(
            "msg_1", datetime.fromtimestamp(at, UTC), '{"type": "job.complete"}'
        )
        headers = {
            "webhook-id": "msg_1",
            "webhook-timestamp": str(at),
            "webhook-signature": f"v1,AA== {signature}",
        }
        sent = {name: value for name, value in (headers | changed).items() if value is not None}
        return page.evaluate("([...sent]) => isOurs(...sent)", [secret, sent, body])

    assert is_ours()
    assert not is_ours(body='{"type": "job.error"}')
    assert not is_ours(at=now - 3600)
    assert not is_ours(**{"webhook-id": "msg_2"})
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        assert not is_ours(**{name: None})
    assert not is_ours(**{"webhook-signature": "v1,%%%"})


# ── what they name is there ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_block_says_what_it_is_in(document):
    """Else nobody would know whether it is run."""
    assert {language for language, _ in blocks(document)} <= LANGUAGES


def first_cells(document, heading):
    """What stands in the first column of the table with that heading."""
    _, _, table = (ROOT / document).read_text().partition(f"\n| {heading} |")
    rows = table.partition("\n\n")[0].splitlines()[2:]
    return [row.split(" | ")[0].removeprefix("| ") for row in rows]


def test_the_guide_has_every_error_code_and_route_and_no_other():
    """Of the routes, those of older clients and the provider's own are told elsewhere."""
    cells = " ".join(first_cells("docs/api.md", "`error_code`"))
    assert sorted(re.findall(r"`(\w+)`", cells)) == sorted(set(ErrorCode) - {ErrorCode.CANCELLED})
    told = set(
        re.findall(r"`(?:\w+(?: |, )?)*(/[^`?]+)`", " ".join(first_cells("docs/api.md", "route")))
    )
    there = {re.sub(r"\{\w+\}", "{}", operation.path) for operation in ROUTES}
    documents = {"/openapi.json", "/docs"}
    for path in told:
        shown = re.sub(r"\{\w+\}", "{}", path)
        assert shown in there | documents or any(one.endswith(shown) for one in there), path


def test_the_runbook_names_what_is_said():
    """Codes that there are, and messages as jobs have them."""
    codes = {
        code
        for cell in first_cells("docs/operations.md", "code")
        for code in re.findall(r"`(\w+)`", cell)
    }
    assert codes <= set(ErrorCode)
    said = (ROOT / "broker" / "jobs" / "decide.py").read_text()
    messages = first_cells("docs/operations.md", "`message`")
    assert len(messages) == 8
    for message in messages:
        assert message.removesuffix(" …") in said, message


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_somewhere(document):
    """To files of the repository, and to headings in them."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(file), flags=re.MULTILINE)
            assert anchor in {
                re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
            }, target


def inline(document, first):
    """The commands in a document's running text and tables that begin with a word."""
    found = re.findall(rf"`({re.escape(first)}[^`]*)`", prose(document))
    return [re.sub(r"\[|\]|\.\.\.|…", " ", command).split() for command in found]


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_commands_in_the_text_exist_with_their_options(document):
    """As the program itself knows them."""
    for words in inline(document, "reelbroker "):
        command, rest = typer.main.get_command(cli), words[1:]
        while rest and rest[0] in getattr(command, "commands", {}):
            command, rest = command.commands[rest[0]], rest[1:]
        assert not hasattr(command, "commands"), " ".join(words)
        try:
            command.make_context(words[0], rest)
        except Exception as error:
            # A mere name has no arguments; what is there has to be right all the same. (Typer has a
            # click of its own.)
            if type(error).__name__ != "MissingParameter":
                raise
    for name, *words in inline(document, "scripts/"):
        assert (ROOT / name).exists(), name
        sources = [ROOT / name, ROOT / f"{name.replace('-', '_')}.py"]
        text = "".join(source.read_text() for source in sources if source.is_file())
        # What it does not know itself, it hands on.
        if "pytest" not in text:
            assert [
                word for word in words if word.startswith("--") and f'"{word}"' not in text
            ] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_settings_in_the_text_exist(document, monkeypatch):
    """Those of the broker and of the worker; a name that ends in _ stands for several."""
    monkeypatch.setenv("REELBROKER_MODAL_IMAGE", "registry/image:1")
    from gpu_worker.modal_app import Deployment

    models = BrokerSettings, WorkerSettings, Deployment
    fields = [field for model in models for field in model.model_fields.values()]
    known = {alias for field in fields if isinstance(alias := field.validation_alias, str)}
    # The client's.
    known.add("REELBROKER_URL")
    for name in re.findall(r"\bREELBROKER_[A-Z0-9_]+", document.read_text()):
        assert any(
            setting.startswith(name) if name.endswith("_") else setting == name for setting in known
        ), name
