"""Which provider an attempt goes to and is asked for."""

import asyncio
import sys

import httpx
import pytest

from broker.errors import ProviderUnreachable
from broker.jobs.model import Attempt
from broker.jobs.place import choose_place
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


async def test_several_endpoints_of_an_account_are_several_places(settings_without_database):
    """Each has a breaker of its own; Modal's place is made of its settings."""
    made = settings_without_database(
        REELBROKER_DATABASE_URL="sqlite:///x.db",
        REELBROKER_PROVIDERS="runpod,runpod=http://127.0.0.1:9/v2/second,modal",
        MODAL_TOKEN_ID="ak-1",
        MODAL_TOKEN_SECRET="as-1",
        MODAL_ENVIRONMENT="dev",
    )
    async with httpx.AsyncClient() as http:
        providers = make_providers(made, http)
        first, second, modal = providers.places
        assert (second.target, modal.target) == (
            "http://127.0.0.1:9/v2/second",
            "modal:dev/reelbroker/export",
        )
        for _ in range(5):
            with pytest.raises(ProviderUnreachable):
                await providers.named(second.provider).health(second.target)
        assert [providers.holds(place) for place in (first, second, modal)] == [False, True, False]
        assert choose_place(providers.places[1:], None, providers.holds) == modal
        await providers.close()


async def test_modal_is_imported_only_where_the_settings_name_it():
    """A broker without it pays nothing."""
    program = "import broker.app, broker.cli.main, sys; sys.exit('modal' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    assert await process.wait() == 0
