"""The providers that the settings name, and the one that each attempt belongs to."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import httpx

from broker.errors import ProviderNotReady
from broker.jobs.model import Attempt
from broker.jobs.place import Place
from broker.providers.base import Provider
from broker.providers.measured import OnCall, unmeasured
from broker.providers.runpod import RunPod
from broker.settings import ProviderEntry, Settings

#: The names of all providers, for metrics.
NAMES = ("runpod", "modal")


class Providers:
    """The providers by name. An attempt stays with its provider when the settings change.

    Args:
        places: where new attempts may go, the preferred one first.
    """

    def __init__(self, providers: Mapping[str, Provider], places: Sequence[Place]) -> None:
        self._providers = dict(providers)
        self.places = tuple(places)

    def named(self, name: str) -> Provider:
        """Returns a provider; raises ProviderNotReady where the settings have no key for it."""
        try:
            return self._providers[name]
        except KeyError:
            raise ProviderNotReady(f"the settings have no key for the provider {name!r}") from None

    def of(self, attempt: Attempt) -> Provider:
        """Returns the provider of an attempt."""
        return self.named(attempt.provider)

    def holds(self, place: Place) -> bool:
        """Whether a call to a place would be held back now."""
        return self.named(place.provider).holds(place.target)

    async def close(self) -> None:
        """Closes the connections of providers that have their own."""
        for provider in self._providers.values():
            await provider.close()

    @property
    def breaker_open(self) -> bool:
        """Whether calls to any provider are held back."""
        return any(provider.breaker_open for provider in self._providers.values())


def make_providers(
    settings: Settings, http: httpx.AsyncClient, on_call: OnCall = unmeasured
) -> Providers:
    """Makes the providers that the settings have keys for; sends nothing yet."""
    providers: dict[str, Provider] = {}
    if settings.runpod_api_key is not None:
        key = settings.runpod_api_key.get_secret_value()
        providers[RunPod.name] = RunPod(http, key, settings.calls_per_second, on_call)
    if settings.modal_token_id is not None and settings.modal_token_secret is not None:
        # Imported only where it is used: the client costs time and memory.
        from broker.providers.modal import Modal

        secret = settings.modal_token_secret.get_secret_value()
        providers[Modal.name] = Modal(settings.modal_token_id, secret, on_call)
    return Providers(providers, _places(settings))


@asynccontextmanager
async def open_providers(
    settings: Settings, http: httpx.AsyncClient, on_call: OnCall = unmeasured
) -> AsyncIterator[Providers]:
    """Yields the providers, and closes their connections at the end."""
    providers = make_providers(settings, http, on_call)
    try:
        yield providers
    finally:
        await providers.close()


def _places(settings: Settings) -> list[Place]:
    return [Place(entry.name, _target(settings, entry)) for entry in settings.provider_entries]


def _target(settings: Settings, entry: ProviderEntry) -> str:
    if entry.name == RunPod.name:
        return entry.target or settings.runpod_endpoint_url or ""
    own = f"{settings.modal_environment}/{settings.modal_app}/{settings.modal_function}"
    return f"modal:{entry.target or own}"
