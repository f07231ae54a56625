"""What a job cost, by the GPU seconds that its attempts took."""

from collections.abc import Mapping, Sequence

from broker.jobs.model import Attempt, JobChange

#: The name of any other GPU in the price table.
ANY = "*"


def cost(prices: Mapping[str, float], gpu: str | None, seconds: float | None) -> float | None:
    """Returns the USD for so many seconds of a GPU; None where the table has no price."""
    price = prices.get(gpu or ANY, prices.get(ANY))
    return None if price is None or seconds is None else round(price * seconds, 6)


def spent(
    attempts: Sequence[Attempt], last: Attempt | None, gpu: str | None, prices: Mapping[str, float]
) -> JobChange:
    """Returns the known GPU seconds and cost of all attempts of a job together.

    Args:
        last: the attempt that the job ends with, in its newest form.
        gpu: the name of the GPU that made the result.
    """
    known = [one.gpu_seconds for one in attempts if last is None or one.token != last.token]
    known += [last.gpu_seconds] if last is not None else []
    if not any(known):
        return JobChange()
    seconds = round(sum(one for one in known if one is not None), 3)
    return JobChange(gpu_seconds=seconds, cost_usd=cost(prices, gpu, seconds))
