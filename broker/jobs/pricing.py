"""What a job cost, by the GPU seconds that it took; and an estimate, by those of similar jobs."""

import statistics
from collections.abc import Mapping, Sequence

from broker.jobs.model import Attempt, Job, JobChange
from broker.jobs.policy import output_seconds
from schemas.edits import ExportMode, OutputParams
from schemas.jobs import OutputFacts, Quote

#: The name of any other GPU in the price table.
ANY = "*"
#: Of a source of unknown length: 8 Mbit/s, as phones record.
USUAL_BYTES_PER_SECOND = 1_000_000
#: GPU seconds for a million pixels of output, for a user without enough complete jobs. FAST: two
#: CPU cores (scripts/demo makes 132 frames of 1080x1920 in 7 to 11 s); a GPU is faster. QUALITY:
#: 1.3 frames/s of 810x1440, as reported for a T4.
DEFAULT_RATES = {ExportMode.FAST: 0.04, ExportMode.QUALITY: 0.66}
#: To fetch, probe and upload.
START_SECONDS = 8.0
USUAL_FPS, USUAL_PIXELS = 30.0, 1080 * 1920
#: From how many similar jobs on an estimate rests on them.
ENOUGH = 5


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


def quote(
    params: OutputParams,
    source_seconds: float | None,
    source_bytes: int,
    alike: Sequence[Job],
    prices: Mapping[str, float],
) -> Quote:
    """Estimates a job.

    Args:
        source_seconds: as the client states.
        source_bytes: of all its videos together.
        alike: the user's complete jobs of its type and mode.
    """
    declared = output_seconds(params)
    assumed = source_seconds or source_bytes / USUAL_BYTES_PER_SECOND
    seconds = output_seconds(params, assumed) or 0.0
    width, height = getattr(params, "output_width", None), getattr(params, "output_height", None)
    pixels = width * height if width and height else USUAL_PIXELS
    megapixels = seconds * (params.target_fps or USUAL_FPS) * pixels / 1e6
    rates = sorted(rate for job in alike if (rate := _rate(job)) is not None)
    if len(rates) >= ENOUGH:
        basis, least = "history", 0.0
        usual, high = statistics.median(rates), rates[int(0.9 * len(rates))]
    else:
        basis, least = "default", START_SECONDS
        usual, high = DEFAULT_RATES[params.export_mode], 3 * DEFAULT_RATES[params.export_mode]
    gpu_seconds = round(least + usual * megapixels, 1)
    gpu_seconds_p90 = round(least + high * megapixels, 1)
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
    """Returns a job's GPU seconds for a million pixels of output."""
    if job.result is None or not job.gpu_seconds:
        return None
    facts = OutputFacts.model_validate_json(job.result)
    return job.gpu_seconds / (facts.frames * facts.width * facts.height / 1e6)
