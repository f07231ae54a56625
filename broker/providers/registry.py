"""The providers that the settings name, and the one that each attempt belongs to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import httpx

from broker.errors import ProviderUnreachable
from broker.jobs.model import Attempt
from broker.providers.base import Provider
from broker.providers.runpod import RunPod
from broker.settings import Settings

#: Called with each call's provider, action and outcome, and its seconds.
OnCall = Callable[[str, str, str, float], None]


@dataclass(frozen=True)
class Place:
    """Where an attempt can be submitted: a provider's name, and the address of its endpoint."""

    provider: str
    target: str


class Providers:
    """The providers by name. An attempt stays with its provider when the settings change.

    Args:
        places: where new attempts may go, the preferred one first.
    """

    def __init__(self, providers: Mapping[str, Provider], places: Sequence[Place]) -> None:
        self._providers = dict(providers)
        self.places = tuple(places)

    def named(self, name: str) -> Provider:
        """Returns a provider; raises ProviderUnreachable where the settings do not name it."""
        try:
            return self._providers[name]
        except KeyError:
            raise ProviderUnreachable(f"the settings name no provider {name!r}") from None

    def of(self, attempt: Attempt) -> Provider:
        """Returns the provider of an attempt."""
        return self.named(attempt.provider)

    @property
    def breaker_open(self) -> bool:
        """Whether calls to any provider are held back."""
        return any(provider.breaker_open for provider in self._providers.values())


#: The names of all providers, for metrics.
NAMES = (RunPod.name,)


def open_providers(
    settings: Settings,
    http: httpx.AsyncClient,
    on_call: OnCall = lambda provider, action, outcome, seconds: None,
) -> Providers:
    """Makes the providers that the settings name; nothing is sent yet."""
    runpod = RunPod(
        http, settings.runpod_api_key.get_secret_value(), settings.calls_per_second, on_call
    )
    return Providers({RunPod.name: runpod}, [Place(RunPod.name, settings.runpod_endpoint_url)])
