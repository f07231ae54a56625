"""One export, on one screen: fence, fetch, probe, compose, render, upload, commit.

`result.json` is the commit: it is put last and only once, so an attempt has one result even if it
was delivered twice. An execution that was cancelled or superseded stops at once and publishes
nothing.
"""

import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import structlog

from gpu_worker.bucket import FETCHES_AT_ONCE, Bucket
from gpu_worker.control import ControlDocuments
from gpu_worker.edits.compose import Composition, Kit, Source, compose, needed_parts, needed_pngs
from gpu_worker.edits.fonts import Fonts
from gpu_worker.errors import Cancelled, HardwareEncoderFailed, SourceNotFound, WorkerError
from gpu_worker.host.guard import Guard
from gpu_worker.host.workspace import workspace
from gpu_worker.media.encode import Quality
from gpu_worker.media.facts import Limits, SourceFacts
from gpu_worker.media.hardware import HardwareDecoder, encodes, nvdec_works, nvenc_works
from gpu_worker.media.probe import output_facts
from gpu_worker.media.remux import prepare
from gpu_worker.render.render import OutputLimits, Spent, render
from gpu_worker.settings import Settings
from gpu_worker.upscale.models import Models
from gpu_worker.upscale.strategy import Remembered
from schemas.jobs import OutputFacts, Phase
from schemas.keys import object_key
from schemas.worker import Fallback, Progress, Result, Started, Timings, WorkerInput

log = structlog.get_logger(__name__)

Report = Callable[[Progress], None]
#: Which part of the bar belongs to the frames.
FRAMES_FROM, FRAMES_TO = 5, 90
#: Of all pictures that are put over a video.
MAX_PICTURES_BYTES = 64 << 20


def models_of(settings: Settings) -> Models:
    """Returns the process's models; none is loaded yet."""
    return Models(
        settings.models_dir,
        settings.torch_device,
        settings.quality_model,
        [name for name in settings.strategies.split(",") if name],
        Remembered(settings.strategies_file),
    )


class Execution:
    """One run of a worker for one job.

    Args:
        provider_job_id: the provider's id of this execution.
        control: the documents of the attempt that the execution belongs to.
        report: receives progress; must not block.
        guard: stopped from outside, it ends the execution at once.
        cold_start_seconds: what the worker's start took, where this is its first job.
    """

    def __init__(
        self,
        job: WorkerInput,
        provider_job_id: str,
        bucket: Bucket,
        control: ControlDocuments,
        settings: Settings,
        models: Models,
        report: Report,
        guard: Guard,
        cold_start_seconds: float = 0.0,
    ) -> None:
        self._job = job
        self._provider_job_id = provider_job_id
        self._bucket = bucket
        self._control = control
        self._settings = settings
        self._models = models
        self._report = report
        self._guard = guard
        self._cold_start_seconds = cold_start_seconds
        self._fallbacks: list[Fallback] = []
        self._warnings: list[str] = []
        self._most_done = 0
        self._output_key = (
            job.output_key or f"final_videos/{job.type}_{job.job_id}_{secrets.token_hex(4)}.mp4"
        )

    def run(self) -> Result:
        """Does the job and returns its committed result.

        Raises:
            WorkerError: it could not be done; nothing was published.
        """
        if (committed := self._begin()) is not None:
            return committed
        with (
            self._guard.within(self._limit_seconds),
            workspace(self._settings.work_dir) as folder,
        ):
            clock = _Stopwatch()
            try:
                output, fetch_seconds, spent = self._make(folder, clock)
            except WorkerError:
                # A tool that was killed fails in its own words; this is why it was.
                self._guard.check()
                raise
            facts = _facts(output, self._warnings)
            edit_seconds = clock.lap()
            self._refuse_if_stopped()
            self._show(Phase.UPLOADING, FRAMES_TO)
            self._bucket.upload(output, object_key(self._job.user_id, self._output_key))
            timings = Timings(
                fetch_seconds=fetch_seconds,
                edit_seconds=edit_seconds,
                upload_seconds=clock.lap(),
                decode_seconds=round(spent.decode, 3),
                infer_seconds=round(spent.infer, 3),
                encode_seconds=round(spent.encode, 3),
                cold_start_seconds=self._cold_start_seconds,
            )
        return self._commit(facts, timings)

    @property
    def _limit_seconds(self) -> float:
        """How long the job may take: the shorter one of the broker's limit and the worker's."""
        longest = self._settings.max_export_seconds
        return min(longest, self._job.timeout_seconds or longest)

    def _begin(self) -> Result | None:
        """Writes `started.json`; returns its result if another execution has committed
        one.
        """
        if (committed := self._control.result()) is not None:
            log.info("already_committed", job_id=self._job.job_id)
            return committed
        self._refuse_if_stopped()
        self._control.start(
            Started(
                runpod_job_id=self._provider_job_id,
                worker_id=self._settings.worker_id,
                at_ms=int(time.time() * 1000),
                version=version("reelbroker"),
            )
        )
        return None

    def _make(self, folder: Path, clock: "_Stopwatch") -> tuple[Path, float, Spent]:
        """Fetches all sources, probes them and makes the output; returns it and where the time
        went.
        """
        params, input_key, settings = self._job.params, self._job.input_key, self._settings
        self._models.require(params)
        self._show(Phase.DOWNLOADING, 0)
        paths = {
            key: folder / f"source-{number}" for number, key in enumerate(self._job.video_keys)
        }
        pngs = self._pictures(needed_pngs(params))
        with ThreadPoolExecutor(FETCHES_AT_ONCE, "fetch") as pool:
            # Raises the first error; what has not begun by then does not begin.
            list(pool.map(self._fetch, paths.keys(), paths.values()))
        fetch_seconds = clock.lap()
        by_gpu = settings.decodes_in_hardware and nvdec_works()
        sources = {
            key: Source(
                path,
                self._probed(key, path),
                HardwareDecoder() if by_gpu else None,
                settings.max_pixels,
            )
            for key, path in paths.items()
        }
        kit = Kit(
            self._models.engine, sources, pngs, Fonts(settings.font_dir), settings.torch_device
        )
        composition = compose(params, input_key, kit)
        output = folder / "output.mp4"
        hardware = settings.encodes_in_hardware and encodes(*composition.size) and nvenc_works()
        try:
            spent = self._rendered(composition, output, hardware)
        except HardwareEncoderFailed as error:
            # Sessions are shared by all containers of a host, so that the next job tries again.
            log.warning("hardware_encoder_failed", detail=error.detail)
            self._fallbacks.append(Fallback(codec="encoder"))
            spent = self._rendered(composition, output, hardware=False)
        self._fallbacks += [
            Fallback(codec="decoder", key=key)
            for key, source in sources.items()
            if source.hardware is not None and source.hardware.failed
        ]
        return output, fetch_seconds, spent

    def _rendered(self, composition: Composition, output: Path, hardware: bool) -> Spent:
        settings = self._settings
        return render(
            composition,
            output,
            Quality(settings.x264_preset, settings.x264_crf, hardware),
            self._guard,
            self._show_frames,
            OutputLimits(settings.max_output_seconds, settings.max_output_bytes),
        )

    def _fetch(self, key: str, path: Path) -> None:
        self._guard.check()
        parts = needed_parts(self._job.params)
        with self._naming(key):
            self._bucket.fetch(
                object_key(self._job.user_id, key), path, self._settings.max_source_bytes, parts
            )

    def _pictures(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Reads all pictures; they are held until the job ends, so one limit holds for all of them
        together.
        """
        pictures: dict[str, bytes] = {}
        left = MAX_PICTURES_BYTES
        for key in keys:
            with self._naming(key):
                body = self._bucket.read(object_key(self._job.user_id, key), left)
                if body is None:
                    raise SourceNotFound("The picture is not in the bucket.")
            pictures[key] = body
            left -= len(body)
        return pictures

    def _probed(self, key: str, path: Path) -> SourceFacts:
        settings = self._settings
        limits = Limits(settings.max_pixels, settings.max_source_seconds, settings.max_streams)
        with self._naming(key):
            facts = prepare(path, self._guard, limits)
        log.info("probed", job_id=self._job.job_id, key=key, facts=str(facts))
        if facts.warning is not None:
            self._warnings.append(f"{key}: {facts.warning}")
        return facts

    @contextlib.contextmanager
    def _naming(self, key: str) -> Iterator[None]:
        """Names the file in errors, where it is not the job's one input."""
        try:
            yield
        except WorkerError as error:
            if key == self._job.input_key:
                raise
            raise type(error)(f"{key}: {error}", error.detail) from error

    def _show_frames(self, done: int, count: int) -> None:
        # A second rendering begins anew; its progress does not.
        self._most_done = done = max(done, self._most_done)
        self._show(Phase.PROCESSING, FRAMES_FROM + (FRAMES_TO - FRAMES_FROM) * done // count)

    def _commit(self, facts: OutputFacts, timings: Timings) -> Result:
        self._show(Phase.VERIFYING, 99)
        result = Result(
            output_key=self._output_key,
            runpod_job_id=self._provider_job_id,
            facts=facts,
            timings=timings,
            gpu=self._settings.gpu,
            fallbacks=tuple(self._fallbacks),
        )
        if not self._control.exist:
            return result
        try:
            self._refuse_if_stopped()
            committed = self._control.commit(result)
        except Cancelled:
            self._withdraw()
            raise
        # The keys are equal also where our own put was repeated after a lost answer.
        if committed.output_key != self._output_key:
            self._withdraw()
        return committed

    def _refuse_if_stopped(self) -> None:
        """Raises Cancelled when the attempt was fenced, or stopped from outside."""
        self._guard.check()
        if self._control.is_fenced():
            raise Cancelled("The job was cancelled, or another attempt has taken its place.")

    def _withdraw(self) -> None:
        self._bucket.delete(object_key(self._job.user_id, self._output_key))

    def _show(self, phase: Phase, progress: int) -> None:
        self._report(Progress(phase=phase, progress=progress))


class _Stopwatch:
    """Wall-clock seconds from lap to lap."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def lap(self) -> float:
        """Returns the seconds since the last lap."""
        now = time.monotonic()
        seconds, self._began = now - self._began, now
        return round(seconds, 3)


def _facts(path: Path, warnings: Sequence[str]) -> OutputFacts:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    measured = asdict(output_facts(path))
    return OutputFacts(
        bytes=path.stat().st_size, sha256=sha256, warnings=tuple(warnings), **measured
    )
