"""What a job costs: afterwards by what it took, before by what jobs like it took."""

import statistics
from collections.abc import Mapping, Sequence

from broker.jobs.model import Attempt, Job, JobChange
from broker.jobs.policy import output_seconds
from schemas.edits import ExportMode, OutputParams
from schemas.jobs import OutputFacts, Quote

#: The table's word for "any other GPU".
ANY = "*"
#: Of a source of unknown length: a phone's usual 8 Mbit/s.
USUAL_BYTES_PER_SECOND = 1_000_000
#: GPU seconds for a million pixels of output, until the user has jobs of one's own. FAST: two CPU cores at their slowest (scripts/demo
#: makes 132 frames of 1080x1920 in 7 to 11 s); a GPU is faster. QUALITY: 1.3 frames/s of 810x1440, as told of a T4.
DEFAULT_RATES = {ExportMode.FAST: 0.04, ExportMode.QUALITY: 0.66}
START_SECONDS = 8.0  #: to fetch, to probe, to upload
USUAL_FPS, USUAL_PIXELS = 30.0, 1080 * 1920
ENOUGH = 5


def cost(prices: Mapping[str, float], gpu: str | None, seconds: float | None) -> float | None:
    """Returns the USD for so many seconds of that GPU; None where the table has no price."""
    price = prices.get(gpu or ANY, prices.get(ANY))
    return None if price is None or seconds is None else round(price * seconds, 6)


def spent(
    attempts: Sequence[Attempt], last: Attempt | None, gpu: str | None, prices: Mapping[str, float]
) -> JobChange:
    """Returns what all attempts of a job took and cost together, as far as that is known.

    Args:
        last: the attempt that the job ends with, as it is known now.
        gpu: the name of the GPU that made the result.
    """
    known = [one.gpu_seconds for one in attempts if last is None or one.token != last.token]
    known += [last.gpu_seconds] if last is not None else []
    if not any(known):
        return JobChange()
    seconds = round(sum(one for one in known if one is not None), 3)
    return JobChange(gpu_seconds=seconds, cost_usd=cost(prices, gpu, seconds))


def quote(
    params: OutputParams,
    source_seconds: float | None,
    source_bytes: int,
    alike: Sequence[Job],
    prices: Mapping[str, float],
) -> Quote:
    """Estimates a job.

    Args:
        source_seconds: as the client says.
        source_bytes: of all its videos together.
        alike: the user's own complete jobs of its type and mode.
    """  # fmt: skip
    declared = output_seconds(params)
    assumed = source_seconds or source_bytes / USUAL_BYTES_PER_SECOND
    seconds = output_seconds(params, assumed) or 0.0
    width, height = getattr(params, "output_width", None), getattr(params, "output_height", None)
    pixels = width * height if width and height else USUAL_PIXELS
    megapixels = seconds * (params.target_fps or USUAL_FPS) * pixels / 1e6
    rates = sorted(rate for job in alike if (rate := _rate(job)) is not None)
    if len(rates) >= ENOUGH:
        basis, usual, high = "history", statistics.median(rates), rates[int(0.9 * len(rates))]
        least = 0.0
    else:
        basis, usual, least = "default", DEFAULT_RATES[params.export_mode], START_SECONDS
        high = 3 * usual
    gpu_seconds, gpu_seconds_p90 = (
        round(least + usual * megapixels, 1),
        round(least + high * megapixels, 1),
    )
    return Quote(
        output_seconds=round(seconds, 3),
        source_known=declared is not None or source_seconds is not None,
        gpu_seconds=gpu_seconds,
        gpu_seconds_p90=gpu_seconds_p90,
        cost_usd=cost(prices, None, gpu_seconds),
        cost_usd_p90=cost(prices, None, gpu_seconds_p90),
        basis=basis,
    )


def _rate(job: Job) -> float | None:
    """Returns the GPU seconds that a job took for a million pixels of its output."""
    if job.result is None or not job.gpu_seconds:
        return None
    facts = OutputFacts.model_validate_json(job.result)
    return job.gpu_seconds / (facts.frames * facts.width * facts.height / 1e6)
