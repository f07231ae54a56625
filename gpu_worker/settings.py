"""The only reader of the environment: every setting of the worker, read and checked once."""

import sys
import tempfile
from pathlib import Path
from typing import Literal

import torch
from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from gpu_worker.host.accelerator import Choice, accelerator, chosen_device


class Settings(BaseSettings):
    # A form in a console sends the fields that were left empty as well.
    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    r2_endpoint: str = Field(validation_alias="R2_ENDPOINT")
    r2_access_key_id: str = Field(validation_alias="R2_ACCESS_KEY_ID")
    r2_secret_access_key: SecretStr = Field(validation_alias="R2_SECRET_ACCESS_KEY")
    r2_bucket_name: str = Field(validation_alias="R2_BUCKET_NAME")

    work_dir: Path = Field(
        default_factory=lambda: Path(tempfile.gettempdir()), validation_alias="REELBROKER_WORK_DIR"
    )
    device: Choice = Field(default="auto", validation_alias="REELBROKER_DEVICE")
    video_encoder: Literal["auto", "libx264"] = Field(
        default="auto", validation_alias="REELBROKER_VIDEO_ENCODER"
    )
    video_decoder: Literal["auto", "cpu"] = Field(
        default="auto", validation_alias="REELBROKER_VIDEO_DECODER"
    )
    x264_preset: str = Field(
        default="fast", validation_alias="REELBROKER_X264_PRESET", pattern="^[a-z]+$"
    )
    x264_crf: int = Field(default=18, validation_alias="REELBROKER_X264_CRF", ge=0, le=40)

    #: Limits on what strangers upload; each has an error code of its own.
    max_source_bytes: int = Field(
        default=32 << 30, validation_alias="REELBROKER_MAX_SOURCE_BYTES", gt=0
    )
    max_pixels: int = Field(default=8192 * 4320, validation_alias="REELBROKER_MAX_PIXELS", gt=0)
    max_source_seconds: float = Field(
        default=6 * 3600, validation_alias="REELBROKER_MAX_SOURCE_SECONDS", gt=0
    )
    max_streams: int = Field(default=32, validation_alias="REELBROKER_MAX_STREAMS", gt=0)
    max_output_seconds: float = Field(
        default=3600, validation_alias="REELBROKER_MAX_OUTPUT_SECONDS", gt=0
    )
    max_output_bytes: int = Field(
        default=8 << 30, validation_alias="REELBROKER_MAX_OUTPUT_BYTES", gt=0
    )
    max_export_seconds: float = Field(
        default=2 * 3600, validation_alias="REELBROKER_MAX_EXPORT_SECONDS", gt=0
    )
    max_cpu_seconds: int = Field(
        default=4 * 3600, validation_alias="REELBROKER_MAX_CPU_SECONDS", gt=0
    )

    #: After a SIGTERM, how long the job in hand may go on before it is handed back; containers are
    #: killed after 10.
    drain_seconds: float = Field(default=7, validation_alias="REELBROKER_DRAIN_SECONDS", ge=0)

    #: The SDK's own checks of the machine that are left out, by name (gpu_worker/handler.py), as in
    #: `network,disk`.
    skipped_checks: str = Field(
        default="", validation_alias="REELBROKER_SKIPPED_CHECKS", pattern="^[a-z_]*(,[a-z_]+)*$"
    )

    #: Where Real-ESRGAN's files of weights are, and the model of QUALITY jobs that name none (see
    #: upscale/models.py).
    models_dir: Path = Field(default=Path("/models"), validation_alias="REELBROKER_MODELS_DIR")
    quality_model: str | None = Field(default=None, validation_alias="REELBROKER_QUALITY_MODEL")

    #: Ways to run the model that are tried at the start, as in `split+graph,fused`, and where their
    #: results are kept (upscale/strategy.py).
    strategies: str = Field(
        default="", validation_alias="REELBROKER_STRATEGIES", pattern="^[a-z+]*(,[a-z+]+)*$"
    )
    strategies_file: Path = Field(
        default_factory=lambda: Path(tempfile.gettempdir()) / "reelbroker-strategies.json",
        validation_alias="REELBROKER_STRATEGIES_FILE",
    )

    #: More fonts, before the system's own.
    font_dir: Path | None = Field(default=None, validation_alias="REELBROKER_FONT_DIR")

    #: The provider sets these, and so do the embedded servers.
    worker_id: str = Field(
        default="local", validation_alias=AliasChoices("RUNPOD_POD_ID", "MODAL_TASK_ID")
    )
    result_url: str | None = Field(default=None, validation_alias="RUNPOD_WEBHOOK_POST_OUTPUT")

    @property
    def encodes_in_hardware(self) -> bool:
        """True where NVENC is wanted, if a trial shows that it works."""
        return self.video_encoder == "auto" and self.torch_device.type != "cpu"

    @property
    def decodes_in_hardware(self) -> bool:
        """True where NVDEC is wanted, if a trial shows that it works."""
        return self.video_decoder == "auto" and self.torch_device.type != "cpu"

    @property
    def torch_device(self) -> torch.device:
        """The device that frames are edited on."""
        return chosen_device(self.device)

    @property
    def gpu(self) -> str | None:
        """The GPU's name, or None where frames are edited on the CPU."""
        device = self.torch_device
        return None if device.type == "cpu" else accelerator(device).name()


def load_settings() -> Settings:
    """Reads the settings; exits with the names of the wrong ones."""
    try:
        return Settings()
    except ValidationError as error:
        sys.exit("; ".join(f"{found['loc'][0]}: {found['msg']}" for found in error.errors()))
