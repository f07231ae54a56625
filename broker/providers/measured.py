"""Reports each call to a provider: its verb, outcome and seconds."""

import time
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ClassVar, Concatenate, ParamSpec, Protocol, TypeVar

from broker.errors import (
    ProviderError,
    ProviderHeld,
    ProviderPaced,
    ProviderRefused,
    ProviderUncertain,
    ProviderUnreachable,
)

T = TypeVar("T")
P = ParamSpec("P")
#: Called with each call's provider, verb and outcome, and its seconds.
OnCall = Callable[[str, str, str, float], None]

#: The outcome that each error counts as, the narrower errors first.
_OUTCOMES: dict[type[ProviderError], str] = {
    ProviderHeld: "held",
    ProviderPaced: "paced",
    ProviderUnreachable: "unreachable",
    ProviderUncertain: "uncertain",
    ProviderRefused: "refused",
}


class _Reporting(Protocol):
    name: ClassVar[str]
    on_call: OnCall


Self_ = TypeVar("Self_", bound=_Reporting)


def unmeasured(provider: str, verb: str, outcome: str, seconds: float) -> None:
    """Reports nothing."""


def measured(
    call: Callable[Concatenate[Self_, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Self_, P], Coroutine[Any, Any, T]]:
    """Reports each call of a provider's method to the provider's `on_call`."""

    @wraps(call)
    async def made(self: Self_, /, *args: P.args, **kwargs: P.kwargs) -> T:
        began, outcome = time.monotonic(), "given_up"
        try:
            answer = await call(self, *args, **kwargs)
            outcome = "ok"
            return answer
        except ProviderError as error:
            outcome = next(word for kind, word in _OUTCOMES.items() if isinstance(error, kind))
            raise
        finally:
            self.on_call(self.name, call.__name__, outcome, time.monotonic() - began)

    return made
