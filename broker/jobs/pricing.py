"""What a job cost, by the GPU seconds that its attempts took."""

from collections.abc import Mapping, Sequence

from broker.jobs.model import Attempt, JobChange

#: The name of any other GPU in the price table.
ANY = "*"


def cost(
    prices: Mapping[str, float], gpu: str | None, seconds: float | None, provider: str = ""
) -> float | None:
    """Returns the USD for so many seconds of a GPU; None where the table has no price.

    A provider's own price goes before the price for all, and a GPU's before that of any other.
    """
    names = f"{provider}:{gpu or ANY}", gpu or ANY, f"{provider}:{ANY}", ANY
    price = next((prices[name] for name in names if name in prices), None)
    return None if price is None or seconds is None else round(price * seconds, 6)


def spent(
    attempts: Sequence[Attempt], last: Attempt | None, gpu: str | None, prices: Mapping[str, float]
) -> JobChange:
    """Returns the known GPU seconds and cost of all attempts of a job together.

    Args:
        last: the attempt that the job ends with, in its newest form.
        gpu: the name of the GPU that made the result.
    """
    all_of_them = [one for one in attempts if last is None or one.token != last.token]
    all_of_them += [last] if last is not None else []
    seconds: dict[str, float] = {}
    for one in all_of_them:
        if one.gpu_seconds:
            seconds[one.provider] = seconds.get(one.provider, 0.0) + one.gpu_seconds
    if not seconds:
        return JobChange()
    # An attempt of another provider ran on a GPU that nobody named.
    made_by = last.provider if last is not None else None
    costs = [
        cost(prices, gpu if name == made_by else None, each, name) for name, each in seconds.items()
    ]
    known = [one for one in costs if one is not None]
    return JobChange(
        gpu_seconds=round(sum(seconds.values()), 3),
        cost_usd=round(sum(known), 6) if len(known) == len(costs) else None,
    )
