"""What browsers are told about every answer, whoever is asked for it."""

import re

import pytest

from broker.api.routes import ROUTES
from broker.store.jobs import JobStore
from tests.broker.api.calls import on_one_database

pytestmark = [pytest.mark.abuse, on_one_database]
#: What no answer allows, and no directive falls back to `default-src` for.
NEVER = ("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'")


def assert_is_closed(reply):
    """Whatever it is, no page may frame it, and nothing but this broker's files runs in it."""
    policy = reply.headers["content-security-policy"]
    parts = [part.strip() for part in policy.split(";")]
    assert len({part.split()[0] for part in parts}) == len(parts)
    assert {"default-src 'none'", *NEVER} <= set(parts), policy
    assert [part for part in parts if part.startswith("script-src")] in ([], ["script-src 'self'"])
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert len(reply.headers["x-request-id"]) == 32


async def test_no_answer_can_be_framed(client):
    """Pages, their files, every route's GET, redirects and refusals: 200 to 405 alike."""
    pages = [await client.get(path) for path in ("/", "/docs")]
    named = re.compile(r'(?:src|href)="((?:web|docs)/[^"]+)"')
    files = {f"/{path}" for page in pages for path in named.findall(page.text)}
    paths = {re.sub(r"\{\w+\}", "none", operation.path) for operation in ROUTES}
    others = {"/", "/docs", "/docs/", "/docs/files/", "/web/", "/openapi.json", "/nothing"}
    statuses = set()
    for path in sorted(files | paths | others):
        reply = await client.get(path)
        statuses.add(reply.status_code)
        assert_is_closed(reply)
    assert len(files) == 6
    assert statuses == {200, 307, 404, 405, 422}


async def test_the_answer_to_a_bug_can_not_be_framed_either(client, monkeypatch):
    """Starlette itself sends the 500, when all else has failed."""

    def crash(*_):
        raise RuntimeError

    monkeypatch.setattr(JobStore, "page", crash)
    reply = await client.get("/api/jobs")
    assert reply.status_code == 500
    assert_is_closed(reply)
