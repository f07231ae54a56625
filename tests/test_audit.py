"""scripts/audit against a server that answers as OSV does: what is known, what is not, and when
nothing can be known.
"""

import json
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.http_server import Quiet, serving

ROOT = Path(__file__).parents[1]
FOREVER_KNOWN = ("jinja2", "2.4.1")


@contextmanager
def osv(holes):
    """Knows of the (name, version) in `holes`; yields its URL, and who was asked about."""
    asked = []

    class Handler(Quiet):
        # The name that the server looks for.
        def do_POST(self):  # noqa: N802
            query = json.loads(self.rfile.read(int(self.headers["content-length"])))
            name, version = query["package"]["name"], query["version"]
            asked.append((name, version))
            events = [{"introduced": "0"}, {"fixed": "99.0"}]
            affected = [
                {"package": query["package"], "ranges": [{"type": "ECOSYSTEM", "events": events}]}
            ]
            # As long as the real ones are, or longer.
            hole = {
                "details": "A hole. " * 20_000,
                "id": f"GHSA-{name}",
                "modified": "2026-01-01T00:00:00Z",
                "affected": affected,
            }
            self.send_response(200)
            self.end_headers()
            self.wfile.write(
                json.dumps({"vulns": [hole]} if (name, version) in holes else {}).encode()
            )

    with serving(Handler) as port:
        yield f"http://127.0.0.1:{port}/v1/query", asked


def audit(url):
    environment = os.environ | {"OSV_URL": url}
    return subprocess.run(
        [ROOT / "scripts" / "audit"], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [tuple(line.split("==")) for line in lines]


def test_every_pinned_version_is_asked_about(pins):
    """Those of constraints.txt and of scripts/setup."""
    with osv({FOREVER_KNOWN}) as (url, asked):
        ended = audit(url)
    assert ended.returncode == 0, ended.stderr
    assert {(canonicalize_name(name), version) for name, version in pins} <= set(asked)
    assert ("basicsr", "1.4.2") in asked


def test_a_known_hole_fails_and_is_named(pins):
    """With the version that closes it."""
    hole = next(pin for pin in pins if pin[0] == "starlette")
    with osv({FOREVER_KNOWN, hole}) as (url, _):
        ended = audit(url)
    assert ended.returncode == 1
    assert "GHSA-starlette" in ended.stdout
    assert "99.0" in ended.stdout


def test_who_knows_nothing_is_not_believed():
    """A server that has no advisories, and none at all: not audited is not the same as nothing
    found.
    """
    with osv(set()) as (url, _):
        assert audit(url).returncode == 75
    ended = audit(url)
    assert ended.returncode == 75
    assert "Not audited" in ended.stderr
