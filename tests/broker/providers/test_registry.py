"""Which provider an attempt goes to and is asked for."""

import httpx
import pytest

from broker.errors import ProviderUnreachable
from broker.jobs.model import Attempt
from broker.providers.registry import NAMES, make_providers


@pytest.fixture
async def providers(settings_without_database):
    async with httpx.AsyncClient() as http:
        yield make_providers(
            settings_without_database(REELBROKER_DATABASE_URL="sqlite:///x.db"), http
        )


def attempt(**fields):
    base = {
        "token": "t",
        "job_id": "j",
        "number": 1,
        "provider": "runpod",
        "target": "http://x",
        "created_at": 1,
    }
    return Attempt.model_validate(base | fields)


async def test_new_attempts_go_to_the_first_place_of_the_settings(providers):
    """And that is one of a provider that there is."""
    (place,) = providers.places
    assert (place.provider in NAMES, place.target.startswith("http")) == (True, True)


async def test_an_attempt_is_asked_for_where_it_was_sent(providers):
    """Whatever the settings say now; one of a provider that is gone from them can be asked for
    later.
    """
    assert providers.of(attempt(provider="runpod")).name == "runpod"
    with pytest.raises(ProviderUnreachable, match="elsewhere"):
        providers.of(attempt(provider="elsewhere"))
