"""Settings come from the environment, once, and do not print secrets."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from broker.settings import Settings
from gpu_worker.settings import Settings as WorkerSettings


def test_a_missing_setting_is_named():
    """The operator learns which variable to set."""
    with pytest.raises(ValidationError) as caught:
        Settings(_env_file=None)
    missing = {found["loc"][0] for found in caught.value.errors()}
    assert {"RUNPOD_API_KEY", "R2_ENDPOINT", "R2_BUCKET_NAME"} <= missing


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "broker.example"])
def test_a_broker_that_other_machines_reach_needs_a_key(settings, host):
    """On loopback, the broker works without a key."""
    with pytest.raises(ValidationError, match="reachable from other machines"):
        settings(REELBROKER_HOST=host, REELBROKER_API_KEY=None)
    assert settings(REELBROKER_HOST=host).has_auth
    assert settings(
        REELBROKER_HOST=host, REELBROKER_API_KEY=None, REELBROKER_JWT_SECRET="x" * 32
    ).has_auth
    for here in ("127.0.0.1", "::1", "localhost"):
        assert not settings(REELBROKER_HOST=here, REELBROKER_API_KEY=None).has_auth


@pytest.mark.parametrize(
    "url",
    ["reelbroker.db", "mysql://host/jobs", "postgres://host/jobs", "postgresql://host:port/jobs"],
)
def test_a_database_is_named_by_a_url_that_we_can_open(settings, url):
    """The settings refuse the URL before a driver does."""
    with pytest.raises(ValidationError, match="a URL like sqlite:///"):
        settings(REELBROKER_DATABASE_URL=url)


def test_a_short_key_is_refused(settings):
    """An attacker can guess a short key."""
    with pytest.raises(ValidationError, match="REELBROKER_API_KEY"):
        settings(REELBROKER_API_KEY="short")


def test_secrets_do_not_show(settings):
    """Printing the settings prints no secret."""
    assert "runpod-key" not in repr(settings())
    assert "test-key" not in repr(settings())


def test_the_example_names_every_setting():
    """`.env.example` lists the settings of both sides, without what the platform sets."""
    text = (Path(__file__).parents[2] / ".env.example").read_text()
    named = set(re.findall(r"^#?([A-Z0-9_]+)=", text, flags=re.MULTILINE))
    fields = [*Settings.model_fields.values(), *WorkerSettings.model_fields.values()]
    known = {field.validation_alias for field in fields} - {
        "RUNPOD_POD_ID",
        "RUNPOD_WEBHOOK_POST_OUTPUT",
    }
    assert named == known


def test_what_is_left_empty_in_a_console_counts_as_not_set(monkeypatch):
    """RunPod's forms send a worker's empty fields along."""
    for name in ("R2_ENDPOINT", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY", "R2_BUCKET_NAME"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("REELBROKER_QUALITY_MODEL", "")
    assert WorkerSettings().quality_model is None
