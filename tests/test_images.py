"""The images' recipes: what hadolint does not know (scripts/check runs it), and that they agree
with the rest of the repository.

`scripts/try-deploy` builds and runs them for real, where there are root and some minutes.
"""

import re
from pathlib import Path

import pytest
import yaml

from broker.embedded.endpoint import worker_environment
from broker.settings import Settings
from gpu_worker.settings import Settings as WorkerSettings
from gpu_worker.upscale.weights import RELEASES

ROOT = Path(__file__).parents[1]
FILES = ("Dockerfile.broker", "Dockerfile.gpu")


def instructions(name):
    """Each as (word, the rest), with its lines joined."""
    text = (ROOT / name).read_text()
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def last(name, word):
    return [rest for found, rest in instructions(name) if found == word][-1]


@pytest.mark.parametrize("name", FILES)
def test_an_image_is_pinned_runs_as_nobody_and_its_command_is_process_1(name):
    """A base of one patch release, a numeric user, and no shell that would keep signals to
    itself.
    """
    base = next(rest for word, rest in instructions(name) if word == "ARG")
    assert re.fullmatch(r"BASE=python:3\.11\.\d+-slim-\w+", base)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last(name, "USER"))
    assert last(name, "CMD").startswith("[")
    stages = {rest.split(" AS ")[-1] for word, rest in instructions(name) if word == "FROM"}
    assert {rest.split()[0] for word, rest in instructions(name) if word == "FROM"} <= stages | {
        "${BASE}",
        "scratch",
    }


@pytest.mark.parametrize("name", FILES)
def test_an_image_takes_nothing_unchecked_and_keeps_no_secret(name):
    """What comes from elsewhere has a sum or a version; nothing is baked in that is somebody's."""
    for word, rest in instructions(name):
        if word == "ADD":
            assert re.search(r"--checksum=sha256:[0-9a-f]{64} +https://", rest)
        if word in ("ARG", "ENV"):
            assert not re.search("KEY|SECRET|TOKEN|PASSWORD", rest)
        if word == "RUN":
            assert not re.search(r"\b(curl|wget)\b", rest)
            assert ("apt-get" in rest) == ("rm -rf /var/lib/apt/lists/*" in rest)
        if word == "COPY":
            assert rest.split()[0] != "."


def test_the_broker_is_asked_how_it_is_without_tools():
    """The slim base has no curl."""
    assert "/healthz" in last("Dockerfile.broker", "HEALTHCHECK")
    assert '["python"' in last("Dockerfile.broker", "HEALTHCHECK")


def test_the_worker_has_the_released_weights():
    """All of them, by the sums that the worker checks again."""
    added = re.findall(
        r"sha256:([0-9a-f]{64})\s+\S+/download/v[\d.]+/(\S+)",
        (ROOT / "Dockerfile.gpu").read_text().replace("\\\n", ""),
    )
    assert sorted(added) == sorted((release.sha256, release.file) for release in RELEASES.values())
    assert last("Dockerfile.gpu", "ENV").partition("=")[2] in RELEASES


def test_the_worker_has_the_versions_that_are_tested():
    """torch and Real-ESRGAN as in pyproject.toml and scripts/setup."""
    recipe = (ROOT / "Dockerfile.gpu").read_text()
    setup = (ROOT / "scripts" / "setup").read_text()
    tested = set(re.findall(r"(?:torch|realesrgan|basicsr)==[\d.]+", setup))
    assert len(tested) == 3
    assert tested <= set(re.findall(r"\w+==[\d.]+", recipe))


def test_the_context_is_what_the_images_copy():
    """A file that is not named stays out of the builder, .env among them."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = set()
    for name in FILES:
        for word, rest in instructions(name):
            if word == "COPY" and "--from" not in rest:
                copied |= set(rest.split()[:-1])
    assert "*" in lines
    assert allowed == copied


# ── docs/deploy/compose.yml ───────────────────────────────────────────────────────────────────────


def services():
    """With `${NAME:?}` filled in, and `$$` as compose reads it."""
    text = (ROOT / "docs" / "deploy" / "compose.yml").read_text()
    text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: f"{found[1].lower()}-0123456789", text)
    return yaml.safe_load(text.replace("$$", "$"))["services"]


def test_broker_and_worker_take_what_compose_sets():
    """Every variable is a setting; the worker's protocol is the endpoint's own."""
    broker, worker, endpoint = (services()[name] for name in ("broker", "worker", "endpoint"))
    fields = Settings.model_fields.values()
    known = {alias for field in fields if isinstance(alias := field.validation_alias, str)}
    assert set(broker["environment"]) <= known
    settings = Settings(_env_file=None, REELBROKER_HOST="0.0.0.0", **broker["environment"])
    assert "http://localhost:8000" in settings.page_origins
    key = endpoint["environment"]["RUNPOD_API_KEY"]
    expected = worker_environment("http://endpoint:8001", "embedded", key, "worker-1")
    bucket = {name: value for name, value in worker["environment"].items() if name not in expected}
    assert worker["environment"] == expected | bucket
    assert WorkerSettings(**bucket).r2_endpoint == settings.r2_endpoint


def test_compose_builds_and_mounts_what_there_is():
    """Paths lead to files, volumes are declared, images are pinned."""
    folder = ROOT / "docs" / "deploy"
    declared = yaml.safe_load((folder / "compose.yml").read_text())["volumes"]
    for service in services().values():
        if "build" in service:
            assert (folder / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        else:
            assert re.search(r":\d[\w.-]*$", service["image"])
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in declared
