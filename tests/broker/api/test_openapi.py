"""The OpenAPI document, and whether the broker does what it says: schemathesis against a real port."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
from jsonschema_rs import Draft202012Validator

from broker.api.openapi import EXAMPLES
from broker.api.operation import Access
from broker.api.routes import OPERATIONS
from schemas.jobs import JobRequest, JobType
from tests.broker.api.calls import JOB, on_one_database
from tests.broker.api.served import API_KEY

pytestmark = on_one_database
CONFIG = Path(__file__).with_name("schemathesis.toml")


def test_the_broker_does_what_its_document_says(served, tmp_path, measured):
    """Valid and invalid data, each boundary of each schema, random data, and sequences of calls: no failure and no 5xx.

    Not the drain, after which jobs are rightly answered with 503.
    """
    words = [
        "--config-file", CONFIG, "run", f"{served.url}/openapi.json", "--header", f"Authorization: Bearer {API_KEY}",
        "--exclude-path", "/api/operations/drain", "--phases", "examples,coverage,fuzzing,stateful",
        "--max-examples", "4", "--generation-deterministic", "--no-shrink",
        "--continue-on-failure", "--warnings", "off",
    ]  # fmt: skip
    command = [str(Path(sys.executable).with_name("schemathesis")), *map(str, words)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=400, check=False)
    assert run.returncode == 0, run.stdout[-60000:] + run.stderr[-2000:]
    tested = re.search(r"Tested: (\d+)", run.stdout)
    assert int(tested[1]) == len(OPERATIONS) - 1
    measured("schemathesis: " + re.search(r"Test cases:\s+(.*)", run.stdout)[1])


async def test_every_answer_is_in_the_document(client):
    """Each operation has its access, its problems and a sentence; the document says which params go with which type."""
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    for operation in OPERATIONS:
        described = document["paths"][operation.path][operation.method.lower()]
        assert described["summary"].endswith(".") or described["summary"].endswith(":")
        assert ("401" in described["responses"]) == (operation.access is not Access.PUBLIC)
    schemas = document["components"]["schemas"]
    assert set(schemas["JobRequest"]["discriminator"]["mapping"]) == {kind.value for kind in JobType}
    valid = Draft202012Validator(
        {"$ref": "#/components/schemas/JobRequest", "components": document["components"]}
    )
    assert set(EXAMPLES) == {kind.value for kind in JobType}
    for example in [JOB, *EXAMPLES.values()]:
        assert valid.is_valid(example)
        JobRequest.model_validate(example)
    assert not valid.is_valid(JOB | {"type": "annotate"})
    assert not valid.is_valid(JOB | {"params": {"clips": []}})


async def test_the_reference_page_needs_nothing_from_elsewhere(client):
    """All that it loads is served here, and its policy forbids the rest; so it is with the page for people."""
    pages = [await client.get(path) for path in ("/", "/docs")]
    assert all("default-src 'none'" in page.headers["content-security-policy"] for page in pages)
    loaded = [
        path
        for page in pages
        for path in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"]+)"', page.text)
    ]
    assert len(loaded) == 8
    for path in loaded:
        assert path.startswith(("/", "data:"))
        if path.startswith("/"):
            assert (await client.get(path)).status_code == httpx.codes.OK
