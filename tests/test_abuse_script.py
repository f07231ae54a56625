"""`scripts/abuse` against a broker as `reelbroker serve` runs it, with a real bucket."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.broker.configured import API_KEY, configured
from tests.broker.process import serving

SCRIPT = Path(__file__).parents[1] / "scripts" / "abuse.py"


@pytest.mark.abuse
def test_every_attack_holds(object_store, tmp_path):
    """Each is tried, none falls, and the broker has nothing to log about."""
    made = configured(
        object_store,
        REELBROKER_DATABASE_URL=f"sqlite:///{tmp_path}/broker.db",
        REELBROKER_BODY_SECONDS="5",
    )
    with serving(made, tmp_path) as broker:
        command = [sys.executable, SCRIPT, broker.url, API_KEY, "--body-seconds", "5"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        log = broker.log.read_text()
    assert ended.stdout, ended.stderr
    tally = json.loads(ended.stdout.splitlines()[-1])
    assert (tally["fell"], ended.returncode) == (0, 0), ended.stdout
    assert tally["tried"] >= 20
    assert "Traceback" not in log
