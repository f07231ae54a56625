"""What a job costs, by provider and card."""

import pytest

from broker.jobs.model import Attempt
from broker.jobs.pricing import cost, spent

PRICES = {"NVIDIA L4": 0.2, "modal:NVIDIA L4": 0.3, "modal:*": 0.5, "*": 1.0}


@pytest.mark.parametrize(
    ("provider", "gpu", "expected"),
    [
        ("modal", "NVIDIA L4", 0.3),
        ("runpod", "NVIDIA L4", 0.2),
        ("modal", "NVIDIA A10", 0.5),
        ("modal", None, 0.5),
        ("runpod", "NVIDIA A10", 1.0),
        ("", None, 1.0),
    ],
)
def test_a_providers_own_price_goes_first(provider, gpu, expected):
    """Then the card's at any provider, then the provider's for any card, then any."""
    assert cost(PRICES, gpu, 1.0, provider) == expected


def test_without_a_price_the_cost_is_unknown():
    """And not zero."""
    assert cost({"NVIDIA L4": 0.2}, "NVIDIA A10", 1.0, "modal") is None
    assert cost(PRICES, None, None) is None


def attempt(number, provider, seconds):
    return Attempt(
        token=str(number),
        job_id="j",
        number=number,
        provider=provider,
        target="",
        created_at=1,
        gpu_seconds=seconds,
    )


def test_each_attempt_costs_what_its_provider_charges():
    """The card is known where the result was made; the attempts elsewhere ran on any."""
    attempts = [attempt(1, "runpod", 4.0), attempt(2, "modal", 1.0), attempt(3, "modal", None)]
    last = attempt(3, "modal", 2.0)
    change = spent(attempts, last, "NVIDIA L4", PRICES)
    assert (change.gpu_seconds, change.cost_usd) == (7.0, pytest.approx(4 * 1.0 + 3 * 0.3))
    unpriced = spent(attempts, last, "NVIDIA L4", {"modal:NVIDIA L4": 0.3})
    assert (unpriced.gpu_seconds, unpriced.cost_usd) == (7.0, None)
