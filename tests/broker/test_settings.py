"""Settings come from the environment, are checked once, and keep secrets to themselves."""

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
    assert {"RUNPOD_API_KEY", "R2_ENDPOINT", "REELBROKER_API_KEY"} <= missing


def test_a_short_key_is_refused(settings):
    """A guessable key is no key."""
    with pytest.raises(ValidationError, match="REELBROKER_API_KEY"):
        settings(REELBROKER_API_KEY="short")


def test_secrets_do_not_show(settings):
    """Printing the settings prints no secret."""
    assert "runpod-key" not in repr(settings())
    assert "test-key" not in repr(settings())


def test_the_example_names_every_setting():
    """`.env.example` and the settings of both sides know the same variables, but for what the platform sets."""
    text = (Path(__file__).parents[2] / ".env.example").read_text()
    named = set(re.findall(r"^#?([A-Z0-9_]+)=", text, flags=re.MULTILINE))
    fields = [*Settings.model_fields.values(), *WorkerSettings.model_fields.values()]
    known = {field.validation_alias for field in fields} - {"RUNPOD_POD_ID", "RUNPOD_WEBHOOK_POST_OUTPUT"}
    assert named == known
