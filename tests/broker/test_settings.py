"""Settings come from the environment, once, and do not print secrets."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from broker.settings import ProviderEntry, Settings, variable
from gpu_worker.settings import Settings as WorkerSettings


def test_a_missing_setting_is_named():
    """The operator learns which variable to set."""
    with pytest.raises(ValidationError) as caught:
        Settings(_env_file=None)
    missing = {variable(found["loc"][0]) for found in caught.value.errors()}
    assert {"RUNPOD_API_KEY", "R2_ENDPOINT", "R2_BUCKET_NAME"} <= missing


MODAL = {"MODAL_TOKEN_ID": "ak-1", "MODAL_TOKEN_SECRET": "as-1"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["runpod"]),
        ({"MODAL_ENABLED": "true"}, ["modal", "runpod"]),
        ({"MODAL_ENABLED": "true", "RUNPOD_API_KEY": None}, ["modal"]),
        ({"MODAL_ENABLED": "false"}, ["runpod"]),
        ({"REELBROKER_PROVIDERS": "runpod,modal"}, ["runpod", "modal"]),
        ({"REELBROKER_PROVIDERS": "modal", "RUNPOD_API_KEY": None}, ["modal"]),
        (
            {"REELBROKER_PROVIDERS": "runpod, runpod=https://b/v2/x/"},
            ["runpod", "runpod https://b/v2/x"],
        ),
        ({"REELBROKER_PROVIDERS": "modal=dev/app/fn"}, ["modal dev/app/fn"]),
    ],
)
def test_new_attempts_go_to_the_providers_in_order(settings_without_database, given, expected):
    """Modal goes first where it is enabled; the list of providers overrides that."""
    made = settings_without_database(REELBROKER_DATABASE_URL="sqlite:///x.db", **MODAL, **given)
    assert [
        entry.name if entry.target is None else f"{entry.name} {entry.target}"
        for entry in made.provider_entries
    ] == expected
    assert all(isinstance(entry, ProviderEntry) for entry in made.provider_entries)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"MODAL_ENABLED": "true"}, "modal_token_id\n.*required, because modal"),
        ({"REELBROKER_PROVIDERS": "runpod,modal"}, "modal_token_secret\n.*required"),
        ({"RUNPOD_ENDPOINT_URL": None}, "RUNPOD_ENDPOINT_URL\n.*required, because runpod"),
        ({"REELBROKER_PROVIDERS": "lambda"}, "'lambda' is no provider: choose among runpod, modal"),
        ({"REELBROKER_PROVIDERS": "modal=app"}, "modal=ENVIRONMENT/APP/FUNCTION"),
        ({"REELBROKER_PROVIDERS": "runpod,runpod"}, "each provider once"),
    ],
)
def test_a_provider_without_its_keys_is_refused(settings_without_database, given, message):
    """The operator learns which variable to set."""
    with pytest.raises(ValidationError, match=message):
        settings_without_database(REELBROKER_DATABASE_URL="sqlite:///x.db", **given)


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


def test_the_example_names_every_setting(monkeypatch):
    """`.env.example` lists the settings of both sides, without what the platform sets."""
    text = (Path(__file__).parents[2] / ".env.example").read_text()
    named = set(re.findall(r"^#?([A-Z0-9_]+)=", text, flags=re.MULTILINE))
    monkeypatch.setenv("REELBROKER_MODAL_IMAGE", "registry/image:1")
    from gpu_worker.modal_app import Deployment

    models = Settings, WorkerSettings, Deployment
    fields = [field for model in models for field in model.model_fields.values()]
    known = {field.validation_alias for field in fields if type(field.validation_alias) is str}
    assert named == known - {"RUNPOD_WEBHOOK_POST_OUTPUT"}


def test_what_is_left_empty_in_a_console_counts_as_not_set(monkeypatch):
    """RunPod's forms send a worker's empty fields along."""
    for name in ("R2_ENDPOINT", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY", "R2_BUCKET_NAME"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("REELBROKER_QUALITY_MODEL", "")
    assert WorkerSettings().quality_model is None
