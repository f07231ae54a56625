"""Estimates a job before it is submitted, by the user's complete jobs like it."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from broker.bucket import Bucket
from broker.jobs.model import Job
from broker.jobs.policy import output_seconds
from broker.jobs.pricing import cost
from broker.store.jobs import JobFilter, JobStore
from schemas.edits import ExportMode, OutputParams
from schemas.jobs import JobStatus, OutputFacts, Quote, QuoteRequest
from schemas.keys import object_key

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
#: How many of them an estimate rests on, at most.
ALIKE = 50


@dataclass(frozen=True, eq=False)
class QuoteService:
    """Estimates jobs.

    Args:
        prices: USD for a second, by GPU.
        provider: the one that new jobs go to first.
    """

    store: JobStore
    bucket: Bucket
    prices: Mapping[str, float]
    provider: str = ""

    async def quote(self, user_id: str, request: QuoteRequest) -> Quote:
        """Estimates a job; raises StorageError where the bucket fails."""
        keys = [object_key(user_id, key) for key in request.video_keys]
        size = 0
        if request.source_seconds is None and output_seconds(request.params) is None:
            sizes = [await run_in_threadpool(self.bucket.size, key) for key in keys]
            size = sum(found for found in sizes if found is not None)
        only = JobFilter(status=(JobStatus.COMPLETE,), type=(request.type,))
        done = await run_in_threadpool(self.store.page, user_id, only, ALIKE)
        mode = request.params.export_mode
        alike = [job for job in done if json.loads(job.params).get("export_mode") == mode]
        known = request.params, request.source_seconds, size, alike
        return estimate(*known, self.prices, self.provider)


def estimate(
    params: OutputParams,
    source_seconds: float | None,
    source_bytes: int,
    alike: Sequence[Job],
    prices: Mapping[str, float],
    provider: str = "",
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
        cost_usd=cost(prices, None, gpu_seconds, provider),
        cost_usd_p90=cost(prices, None, gpu_seconds_p90, provider),
        basis=basis,
    )


def _rate(job: Job) -> float | None:
    """Returns a job's GPU seconds for a million pixels of output."""
    if job.result is None or not job.gpu_seconds:
        return None
    facts = OutputFacts.model_validate_json(job.result)
    return job.gpu_seconds / (facts.frames * facts.width * facts.height / 1e6)
