"""One export, on one screen: fence, fetch, probe, decode ▸ edit ▸ encode, upload, commit.

`result.json` is the commit: it is put last and only once, so an attempt has one result even if it was delivered
twice. An execution that was cancelled or superseded stops at the next frame and publishes nothing.
"""

import hashlib
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import structlog
import torch

from gpu_worker.decode import decode
from gpu_worker.edits.crop import CropPath, crop, rotate
from gpu_worker.edits.timeline import Timeline, frame_at
from gpu_worker.encode import SOUND_IN, SOUND_OUT, Quality, encode
from gpu_worker.errors import Cancelled, InvalidMedia, OutOfMemory
from gpu_worker.frames import Box, Frame
from gpu_worker.probe import SourceFacts, output_facts, probe
from gpu_worker.settings import Settings
from gpu_worker.storage import Bucket
from gpu_worker.upscale.engine import Engine, quality_engine
from schemas.edits import ExportMode, FramingParams
from schemas.jobs import OutputFacts, Phase
from schemas.worker import Progress, Result, Started, Timings, WorkerInput, attempt_folder, object_key

log = structlog.get_logger(__name__)

Report = Callable[[Progress], None]
#: Which part of the bar belongs to the frames.
FRAMES_FROM, FRAMES_TO = 5, 90


class Execution:
    """One run of a worker for one job.

    Args:
        report: told of progress; must not block.
        cancelled: set from outside to stop at the next frame.
    """

    def __init__(
        self,
        job: WorkerInput,
        runpod_job_id: str,
        bucket: Bucket,
        settings: Settings,
        report: Report,
        cancelled: threading.Event,
    ) -> None:
        self._job = job
        self._runpod_job_id = runpod_job_id
        self._bucket = bucket
        self._settings = settings
        self._report = report
        self._cancelled = cancelled
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
        engine: Engine = crop if self._job.params.export_mode is ExportMode.FAST else quality_engine()
        with tempfile.TemporaryDirectory(prefix="export-", dir=self._settings.work_dir) as folder:
            source, output = Path(folder) / "source", Path(folder) / "output.mp4"
            clock = _Stopwatch()
            self._show(Phase.DOWNLOADING, 0)
            self._bucket.fetch(object_key(self._job.user_id, self._job.input_key), source)
            fetch_seconds = clock.lap()
            self._edit(source, output, engine)
            facts = _facts(output)
            edit_seconds = clock.lap()
            self._refuse_if_stopped()
            self._show(Phase.UPLOADING, FRAMES_TO)
            self._bucket.upload(output, object_key(self._job.user_id, self._output_key))
            timings = Timings(
                fetch_seconds=fetch_seconds, edit_seconds=edit_seconds, upload_seconds=clock.lap()
            )
        return self._commit(facts, timings)

    def _begin(self) -> Result | None:
        """Says that the attempt was taken up; returns its result if another execution has committed one."""
        if self._job.attempt_token is None:
            return None
        if (committed := self._bucket.read(self._document("result.json"))) is not None:
            log.info("already_committed", job_id=self._job.job_id)
            return Result.model_validate_json(committed)
        self._refuse_if_stopped()
        started = Started(
            runpod_job_id=self._runpod_job_id,
            worker_id=self._settings.worker_id,
            at_ms=int(time.time() * 1000),
        )
        self._bucket.write(self._document("started.json"), started.model_dump_json().encode())
        return None

    def _edit(self, source: Path, output: Path, engine: Engine) -> None:
        params = self._job.params
        facts = probe(source)
        log.info("probed", job_id=self._job.job_id, facts=str(facts))
        timeline = Timeline.of(params, facts.duration_seconds)
        path = CropPath.of(params, facts)
        fps = _output_rate(params, facts)
        count = timeline.frame_count(fps)
        first = frame_at(timeline.start, facts.fps)
        last = timeline.source_frame(float((count - 1) / fps), facts.fps)
        sound = None
        if params.include_audio and facts.audio_codec is not None:
            sound = (source, timeline.audio_filter(SOUND_IN, SOUND_OUT))
        size = (params.output_width, params.output_height)
        quality = Quality(self._settings.x264_preset, self._settings.x264_crf)
        with (
            decode(source, facts, first, last - first + 1) as frames,
            encode(output, size, fps, quality, sound) as encoder,
        ):
            reader = _Reader(frames, first)
            for index in range(count):
                if self._cancelled.is_set():
                    raise Cancelled("The job was cancelled.")
                moment = timeline.source_time(float(index / fps))
                frame = reader.at(frame_at(moment, facts.fps))
                encoder.write(self._picture(frame, path.at(moment), size, engine))
                self._show(Phase.PROCESSING, FRAMES_FROM + (FRAMES_TO - FRAMES_FROM) * (index + 1) // count)

    def _picture(self, frame: Frame, box: Box, size: tuple[int, int], engine: Engine) -> Frame:
        """Makes one output frame of one source frame, on the worker's device."""
        try:
            upright = rotate(frame.to(self._settings.torch_device), self._job.params.rotation)
            return engine(upright, box, *size)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory("The GPU has too little memory for this video.", str(error)) from error

    def _commit(self, facts: OutputFacts, timings: Timings) -> Result:
        self._show(Phase.VERIFYING, 99)
        result = Result(
            output_key=self._output_key, runpod_job_id=self._runpod_job_id, facts=facts, timings=timings
        )
        if self._job.attempt_token is None:
            return result
        key = self._document("result.json")
        try:
            self._refuse_if_stopped()
            won = self._bucket.write_once(key, result.model_dump_json().encode())
        except Cancelled:
            self._withdraw()
            raise
        if won:
            return result
        committed = Result.model_validate_json(self._bucket.read(key) or b"")
        if (
            committed.output_key != self._output_key
        ):  # equal where our own put was repeated after a lost answer
            self._withdraw()
        return committed

    def _refuse_if_stopped(self) -> None:
        """Raises Cancelled when the attempt was fenced, or stopped from outside."""
        if self.is_fenced() or self._cancelled.is_set():
            raise Cancelled("The job was cancelled, or another attempt has taken its place.")

    def is_fenced(self) -> bool:
        """True when `stop.json` tells this attempt to give up."""
        return (
            self._job.attempt_token is not None and self._bucket.read(self._document("stop.json")) is not None
        )

    def _withdraw(self) -> None:
        self._bucket.delete(object_key(self._job.user_id, self._output_key))

    def _document(self, name: str) -> str:
        folder = attempt_folder(self._job.job_id, self._job.attempt_token or "")
        return object_key(self._job.user_id, f"{folder}/{name}")

    def _show(self, phase: Phase, progress: int) -> None:
        self._report(Progress(phase=phase, progress=progress))


class _Reader:
    """Frames by index, going forward only; past the end of the file, its last frame."""

    def __init__(self, frames: Iterator[Frame], first: int) -> None:
        self._frames = frames
        self._index = first - 1
        self._frame: Frame | None = None

    def at(self, index: int) -> Frame:
        """Returns the frame at `index`, which never falls from call to call."""
        while self._index < index:
            following = next(self._frames, None)
            if following is None:
                self._index = index
                break
            self._frame = following
            self._index += 1
        if self._frame is None:
            raise InvalidMedia("The video has no frame that can be read.")
        return self._frame


class _Stopwatch:
    """Wall-clock seconds from lap to lap."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def lap(self) -> float:
        """Returns the seconds since the last lap."""
        now = time.monotonic()
        seconds, self._began = now - self._began, now
        return round(seconds, 3)


def _output_rate(params: FramingParams, facts: SourceFacts) -> Fraction:
    """Returns the rate asked for, exactly where it is one of the 1001 family (29.97 means 30000/1001)."""
    if params.target_fps is None:
        return facts.fps
    ntsc = Fraction(round(params.target_fps) * 1000, 1001)
    if abs(float(ntsc) - params.target_fps) < 0.005:
        return ntsc
    return Fraction(params.target_fps).limit_denominator(1001)


def _facts(path: Path) -> OutputFacts:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return OutputFacts(bytes=path.stat().st_size, sha256=sha256, **asdict(output_facts(path)))
