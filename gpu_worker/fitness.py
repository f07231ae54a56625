"""Is this machine fit for work? Asked once, before the first job; told in the log, and an unfit
worker ends.

`python -m gpu_worker.fitness` asks without starting a worker, and prints the same as JSON.
"""

import json
import shutil
import sys

import imageio_ffmpeg
import structlog
import torch

from gpu_worker.errors import ModelUnavailable
from gpu_worker.host.accelerator import accelerator
from gpu_worker.host.limits import memory_bytes, usable_cores
from gpu_worker.media.hardware import nvdec_works, nvenc_works
from gpu_worker.settings import Settings
from gpu_worker.upscale.models import Models

log = structlog.get_logger(__name__)


def check_fitness(settings: Settings, models: Models) -> dict[str, object]:
    """Tries device, ffmpeg, work folder and the preferred model, which is warm afterwards; exits
    where one fails.

    Returns:
        What was found.
    """
    device = settings.torch_device
    try:
        facts = {
            "cores": usable_cores(),
            "device": _device(device),
            "ffmpeg": imageio_ffmpeg.get_ffmpeg_version(),
            "free_bytes": shutil.disk_usage(settings.work_dir).free,
            "memory_bytes": memory_bytes(),
            "model": models.warm(),
            "nvdec": settings.decodes_in_hardware and nvdec_works(),
            "nvenc": settings.encodes_in_hardware and nvenc_works(),
            "torch": torch.__version__,
        }
    except (
        ModelUnavailable,
        RuntimeError,
        OSError,
        AssertionError,
        # Torch asserts that it was built for the device.
    ) as error:
        log.error("unfit", error=str(error))
        sys.exit(f"This worker is not fit for work: {error}")
    log.info("fit", **facts)
    return facts


def _device(device: torch.device) -> str:
    """Returns the device's name and memory, after a sum on it."""
    torch.ones(1, device=device).add_(1)
    return device.type if device.type == "cpu" else accelerator(device).describe()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    chosen = Settings()
    found = check_fitness(
        chosen, Models(chosen.models_dir, chosen.torch_device, chosen.quality_model)
    )
    print(json.dumps(found))  # noqa: T201
