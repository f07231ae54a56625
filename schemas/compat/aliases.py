"""The words of older clients: the first backend's start-and-poll routes, its recovery routes, and
the export editor's socket.
"""

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, Json, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

from schemas.jobs import JobStatus, JobType, JobView, OutputFacts, Phase, SafeInt, Wire
from schemas.keys import ObjectKey

CANCELLED = "Cancelled by user"
#: Fields of a start that are the job's; all others are its params.
_OF_THE_JOB = ("input_key", "project_id", "game_id", "metadata")


def status_word(status: JobStatus) -> JobStatus:
    """Returns one of the four statuses that those clients know."""
    return JobStatus.ERROR if status is JobStatus.CANCELLED else status


def error_of(job: JobView) -> str | None:
    """Returns why a job has failed, if it has."""
    return CANCELLED if job.status is JobStatus.CANCELLED else job.error


class StartRequest(BaseModel):
    """The body of `POST /api/export/{type}/start`: the job's fields, and beside them, or under
    `params`, those of its type.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    project_id: SafeInt | None = None
    input_key: ObjectKey | None = None
    params: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather_params(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        words = {
            ("input_key" if name in ("input_video_key", "video_key") else name): value
            for name, value in raw.items()
        }
        mine = {name: words.pop(name) for name in _OF_THE_JOB if name in words}
        params = words.pop("params", None) or {}
        return mine | {"params": words | params if isinstance(params, dict) else params}

    @property
    def job_fields(self) -> dict[str, Any]:
        """Returns the fields of a JobRequest but the type and the video."""
        return {**(self.model_extra or {}), "project_id": self.project_id, "params": self.params}


class UpscaleFields(BaseModel):
    """The form of `POST /api/export/upscale`, beside its `video`; all are strings on the wire."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keyframes_json: Json[list[Any]] = []
    segment_data_json: Json[Any] = None
    export_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")] | None = None
    project_id: int | None = None
    export_mode: str = "quality"
    target_fps: float | None = None
    target_width: int | None = None
    target_height: int | None = None
    include_audio: bool = True
    # Switches of the older upscaler, and what the worker measures itself.
    enable_source_preupscale: bool = False
    enable_diffusion_sr: bool = False
    video_duration: float | None = None

    def job_fields(self, input_key: str) -> dict[str, Any]:
        """Returns the fields of a JobRequest."""
        params = {
            "crop_keyframes": self.keyframes_json,
            "segment_data": self.segment_data_json,
            "export_mode": self.export_mode,
            "target_fps": self.target_fps,
            "output_width": self.target_width,
            "output_height": self.target_height,
            "include_audio": self.include_audio,
        }
        given = {name: value for name, value in params.items() if value is not None}
        return {
            "type": "upscale",
            "input_key": input_key,
            "project_id": self.project_id,
            "params": given,
        }


class ExportStarted(Wire):
    job_id: str
    status: JobStatus


class ExportStatus(Wire):
    """An export as the first API shows it."""

    job_id: str
    status: JobStatus
    progress: int
    output_key: str | None
    error: str | None

    @classmethod
    def of(cls, job: JobView) -> Self:
        return cls(
            job_id=job.job_id,
            status=status_word(job.status),
            progress=job.progress,
            output_key=job.output_key,
            error=error_of(job),
        )


class ExportJob(ExportStatus):
    """A row of the first API's table."""

    type: JobType
    project_id: int | None
    game_id: int | None
    input_key: str | None
    created_at: str
    completed_at: str | None

    @classmethod
    def of(cls, job: JobView) -> Self:
        shown = ExportStatus.of(job).model_dump()
        return cls(**shown, **job.model_dump(include=set(cls.model_fields) - shown.keys()))


class ExportJobList(Wire):
    jobs: list[ExportJob]


class ExportSummary(ExportJob):
    """An export as the recovery routes show it."""

    stage: Phase
    started_at: str | None

    @classmethod
    def of(cls, job: JobView) -> Self:
        shown = ExportJob.of(job).model_dump()
        return cls(**shown, stage=job.phase, started_at=job.started_at)


class ExportList(Wire):
    exports: list[ExportSummary]


class RemoteWord(StrEnum):
    """What a provider's status route reports of an export."""

    RUNNING = "running"
    COMPLETE = "complete"
    ERROR = "error"
    EXPIRED = "expired"  #: Modal has no such call any more; the export may be tried again
    NOT_MODAL = "not_modal"  #: another provider has the export


class RemoteStatus(Wire):
    """`running` until there is an end; then `complete` or `error`."""

    status: RemoteWord
    modal_call_id: str | None
    progress: int
    result: OutputFacts | None
    output_key: str | None
    output_filename: str | None
    error: str | None

    @classmethod
    def of(cls, job: JobView, is_open: RemoteWord = RemoteWord.RUNNING) -> Self:
        """Returns the status of an export; `is_open` is the word for one that has not ended."""
        ended = RemoteWord(status_word(job.status)) if job.status.is_terminal else None
        return cls(
            status=ended or is_open,
            modal_call_id=job.modal_call_id,
            progress=job.progress,
            result=job.result,
            output_key=job.output_key,
            output_filename=_file_name(job),
            error=error_of(job),
        )


class ExportCancelled(Wire):
    message: str
    modal_cancelled: bool


class UpscaleAccepted(Wire):
    status: str
    export_id: str
    job_id: str


_EDITOR_PHASES = {
    Phase.DOWNLOADING: "download",
    Phase.PROCESSING: "processing",
    Phase.UPLOADING: "upload",
    Phase.VERIFYING: "finalizing",
}


class ExportProgress(Wire):
    """The messages of the export editor's socket; camelCase on the wire."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    current: Annotated[int, Field(ge=0, le=100)]
    total: int
    phase: str
    message: str
    done: bool
    progress: int
    status: str
    type: JobType
    project_id: int | None
    project_name: str | None
    game_id: int | None
    game_name: str | None
    error: str | None
    output_key: str | None
    output_filename: str | None

    @classmethod
    def of(cls, job: JobView) -> Self:
        ended = job.status.is_terminal
        word = str(status_word(job.status))
        return cls(
            current=job.progress,
            total=100,
            phase=word if ended else _EDITOR_PHASES.get(job.phase, "init"),
            message=job.message,
            done=ended,
            progress=job.progress,
            status=word if ended else "processing",
            type=job.type,
            project_id=job.project_id,
            project_name=job.metadata.get("project_name"),
            game_id=job.game_id,
            game_name=job.metadata.get("game_name"),
            error=error_of(job),
            output_key=job.output_key,
            output_filename=_file_name(job),
        )


def _file_name(job: JobView) -> str | None:
    return job.output_key.rpartition("/")[2] if job.output_key else None
