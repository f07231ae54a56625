"""The OpenAPI document: whether the broker does what it says, and what tools make of it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from jsonschema_rs import Draft202012Validator

from broker.api.openapi import EXAMPLES, document
from broker.api.route import Access
from broker.api.routes import ROUTES
from schemas.jobs import JobRequest, JobType
from tests.broker.api.calls import JOB, on_one_database
from tests.broker.api.served import API_KEY

CONFIG = Path(__file__).with_name("schemathesis.toml")
#: Where scripts/test installs what tests/node/package.json names.
NODE_TOOLS = Path(sys.prefix) / "node" / "node_modules" / ".bin"
#: The least that each request needs, by the name of its schema.
LEAST = {
    "CropKeyframe": {"time": 0, "x": 0, "y": 0, "width": 9, "height": 16},
    "HighlightKeyframe": {"x": 0, "y": 0, "radius_x": 9, "radius_y": 16},
    "SpeedSegment": {"start": 0},
    "TextLayer": {"text": "Number 7"},
    "JobRequest": JOB,
    "QuoteRequest": JOB,
    "UploadRequest": {"filename": "clip.mp4"},
    "WebhookRequest": {"url": "https://app.example.com/hooks"},
    "KeyRequest": {"user_id": "bob"},
    "StartRequest": {},
    "DrainRequest": {"on": True},
}


@on_one_database
def test_the_broker_does_what_its_document_says(served, tmp_path, measured):
    """Schemathesis on a real port: valid, invalid and random data, each boundary, sequences of
    calls.

    No failure, and no 5xx.

    Not the drain, after which jobs are rightly answered with 503.
    """
    words = [
        "--config-file",
        CONFIG,
        "run",
        f"{served.url}/openapi.json",
        "--header",
        f"Authorization: Bearer {API_KEY}",
        "--exclude-path",
        "/api/operations/drain",
        "--phases",
        "examples,coverage,fuzzing,stateful",
        "--max-examples",
        "4",
        "--generation-deterministic",
        "--no-shrink",
        "--continue-on-failure",
        "--warnings",
        "off",
    ]
    command = [str(Path(sys.executable).with_name("schemathesis")), *map(str, words)]
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=400, check=False
    )
    assert run.returncode == 0, run.stdout[-60000:] + run.stderr[-2000:]
    tested = re.search(r"Tested: (\d+)", run.stdout)
    assert int(tested[1]) == len(ROUTES) - 1
    measured("schemathesis: " + re.search(r"Test cases:\s+(.*)", run.stdout)[1])


@on_one_database
async def test_every_answer_is_in_the_document(client):
    """Each operation has its access, its problems and a sentence; the document says which params go
    with which type.
    """
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    for operation in ROUTES:
        described = document["paths"][operation.path][operation.method.lower()]
        assert described["summary"].endswith(".") or described["summary"].endswith(":")
        assert ("401" in described["responses"]) == (operation.access is not Access.PUBLIC)
    schemas = document["components"]["schemas"]
    assert set(schemas["JobRequest"]["discriminator"]["mapping"]) == {
        kind.value for kind in JobType
    }
    valid = Draft202012Validator(
        {"$ref": "#/components/schemas/JobRequest", "components": document["components"]}
    )
    assert set(EXAMPLES) == {kind.value for kind in JobType}
    for example in [JOB, *EXAMPLES.values()]:
        assert valid.is_valid(example)
        JobRequest.model_validate(example)
    assert not valid.is_valid(JOB | {"type": "annotate"})
    assert not valid.is_valid(JOB | {"params": {"clips": []}})


@on_one_database
async def test_the_reference_page_needs_nothing_from_elsewhere(client):
    """All that it loads is served here, and its policy forbids the rest; so it is with the page for
    people.
    """
    pages = [await client.get(path) for path in ("/", "/docs")]
    assert all("default-src 'none'" in page.headers["content-security-policy"] for page in pages)
    loaded = [
        path
        for page in pages
        for path in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"]+)"', page.text)
    ]
    assert len(loaded) == 8
    for path in loaded:
        assert path.startswith(("web/", "docs/", "data:"))
        if not path.startswith("data:"):
            assert (await client.get(f"/{path}")).status_code == httpx.codes.OK


def described(told):
    """Yields (where, schema) for every object in the document that has a default."""
    stack = [("", told)]
    while stack:
        where, value = stack.pop()
        if isinstance(value, dict):
            if "default" in value and not where.endswith("/properties"):
                yield where, value
            stack += [(f"{where}/{key}", child) for key, child in value.items()]
        elif isinstance(value, list):
            stack += [(f"{where}/{index}", child) for index, child in enumerate(value)]


@pytest.mark.abuse
def test_every_default_is_a_value_that_may_be_sent():
    """No default breaks its own schema, none is null, and no body has one."""
    told = document(ROUTES)
    defaults = dict(described(told))
    for where, schema in defaults.items():
        whole = {"allOf": [schema], "components": told["components"]}
        assert Draft202012Validator(whole).is_valid(schema["default"]), where
        assert schema["default"] is not None, where
        assert "/parameters/" in where
    assert [schema["default"] for schema in defaults.values() if schema["default"]] == [50]
    for name in told["components"]["schemas"]["Tally"]["properties"]:
        assert name in told["components"]["schemas"]["Tally"]["required"]


@pytest.mark.abuse
def test_nothing_optional_in_a_query_or_a_form_can_be_null():
    """There is no null in a URL or a form: what is optional is left out."""
    told = document(ROUTES)
    fields = told["paths"]["/api/export/upscale"]["post"]["requestBody"]["content"]
    schemas = [*fields["multipart/form-data"]["schema"]["properties"].values()]
    for path in told["paths"].values():
        for operation in path.values():
            schemas += [parameter["schema"] for parameter in operation["parameters"]]
    assert len(schemas) > 50
    for schema in schemas:
        valid = Draft202012Validator({"allOf": [schema], "components": told["components"]})
        assert not valid.is_valid(None), schema


@pytest.fixture
def folder(tmp_path):
    """A folder with the document in it."""
    (tmp_path / "openapi.json").write_text(json.dumps(document(ROUTES)))
    return tmp_path


def node_tool(name, *words, cwd):
    """Runs a tool; returns its exit status and all that it says."""
    command = [NODE_TOOLS / name, *words]
    # Neither calls home from a test.
    quiet = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | quiet,
        timeout=120,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


@pytest.mark.abuse
def test_linters_find_no_error_in_the_document(folder):
    """Spectral by its own rules for OpenAPI, Redocly by its recommended ones."""
    (folder / "rules.yaml").write_text('extends: ["spectral:oas"]\n')
    words = ("--ruleset", "rules.yaml", "openapi.json")
    status, told = node_tool("spectral", "lint", *words, cwd=folder)
    assert (status, "(0 errors" in told) == (0, True), told
    words = ("--extends", "recommended", "openapi.json")
    status, told = node_tool("redocly", "lint", *words, cwd=folder)
    assert (status, "is valid" in told) == (0, True), told


@pytest.mark.abuse
def test_types_made_from_the_document_ask_for_what_is_required_alone(folder):
    """The types take the least of each request and all examples, and nothing with a field less."""
    told = document(ROUTES)
    status, said = node_tool("openapi-typescript", "openapi.json", "-o", "api.ts", cwd=folder)
    assert status == 0, said
    samples = [*LEAST.items(), *(("JobRequest", example) for example in EXAMPLES.values())]
    bodies = {operation.body.__name__ for operation in ROUTES if operation.body}
    assert bodies <= LEAST.keys()
    lines = ['import type { components } from "./api";', 'type Model = components["schemas"];']
    for number, (name, sample) in enumerate(samples):
        lines.append(f'export const sample{number}: Model["{name}"] = {json.dumps(sample)};')
        for left_out in sample:
            less = {key: value for key, value in sample.items() if key != left_out}
            if left_out in told["components"]["schemas"][name].get("required", []):
                lines.append("// @ts-expect-error: a required field is missing")
                constant = f"without{number}_{left_out}"
                lines.append(f'export const {constant}: Model["{name}"] = {json.dumps(less)};')
    assert sum("@ts-expect-error" in line for line in lines) >= 10
    (folder / "samples.ts").write_text("\n".join(lines) + "\n")
    status, said = node_tool("tsc", "--noEmit", "--strict", "samples.ts", cwd=folder)
    assert status == 0, said
