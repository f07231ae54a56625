"""Which model a job goes through, and the models that are loaded: once a process, and kept.

| enlarged by | model of a QUALITY job that names none |
|---|---|
| up to 1 | none: there are pixels enough, and they are resampled |
| up to 2 | RealESRGAN_x2plus: a quarter of the work of x4plus on the same crop |
| more | realesr-general-x4v3: made for natural footage, a fifteenth of the work of x4plus |

`REELBROKER_QUALITY_MODEL` takes the place of the last two rows. Nothing else ever does: a model
that is missing is an error, and never a plain resize.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import structlog
import torch

from gpu_worker.errors import InvalidParams
from gpu_worker.host.accelerator import accelerator
from gpu_worker.media.frames import Box, Frame
from gpu_worker.media.transfer import Landing
from gpu_worker.upscale.engine import CONTEXT
from gpu_worker.upscale.strategy import Remembered, fastest
from gpu_worker.upscale.upscaler import Upscaler
from gpu_worker.upscale.weights import load_model
from schemas.edits import ExportMode, OutputParams, UpscaleParams

log = structlog.get_logger(__name__)

BY_FACTOR = {2: "RealESRGAN_x2plus", 4: "realesr-general-x4v3"}
#: Editors round: a crop that is a pixel too small for the output needs no network.
ENOUGH = 1.02
#: A crop and its picture, width and height: on a device an upright crop of 1280x720, as a phone's
#: clip has it; on a CPU, where a size needs no preparation, a small one.
DEVICE_WARM_UP = (405, 720), (1280, 720)
CPU_WARM_UP = (32, 32), (32, 32)


class Models:
    """The models of one process.

    Args:
        folder: where files of weights are.
        preferred: the model of QUALITY jobs that name none; without one, the table above.
        strategies: those that the preferred model tries on a device, beside running as it is.
        remembered: what earlier trials have chosen.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        preferred: str | None = None,
        strategies: Sequence[str] = (),
        remembered: Remembered | None = None,
    ) -> None:
        self._folder = folder
        self._device = device
        self._preferred = preferred
        self._strategies = strategies
        self._remembered = remembered or Remembered(folder / "strategies.json")
        self._loaded: dict[str, Upscaler] = {}

    def engine(self, params: OutputParams, ratio: float) -> Upscaler | None:
        """Returns what enlarges a clip by `ratio`; None where plain resampling does.

        Raises:
            ModelUnavailable: the model is not here.
            InvalidParams: the model named does not enlarge by the requested scale.
        """
        if params.export_mode is ExportMode.FAST or ratio <= ENOUGH:
            return None
        scale = params.scale if isinstance(params, UpscaleParams) else None
        name = self._named(params) or BY_FACTOR[scale or (2 if ratio <= 2 * ENOUGH else 4)]
        upscaler = self.get(name)
        if scale is not None and scale != upscaler.factor:
            raise InvalidParams(
                f"params.scale is {scale}, but {name} enlarges by {upscaler.factor}."
            )
        return upscaler

    def require(self, params: OutputParams) -> None:
        """Raises ModelUnavailable where a job's model is known already and missing, before anything
        is fetched.
        """
        if params.export_mode is ExportMode.QUALITY and (name := self._named(params)):
            self.get(name)

    def get(self, name: str) -> Upscaler:
        """Returns a model, loading it the first time."""
        if name not in self._loaded:
            began = time.monotonic()
            model = load_model(name, self._folder)
            self._loaded[name] = Upscaler(model, self._device)
            log.info(
                "model_loaded",
                model=name,
                origin=model.origin,
                dtype=str(self._loaded[name].dtype),
                seconds=round(time.monotonic() - began, 3),
            )
        return self._loaded[name]

    def warm(self) -> str | None:
        """Loads the preferred model and runs it as jobs do, so that no job pays for that; returns
        its name.

        A device's libraries keep a handle for each thread: call this in the thread of the jobs.
        """
        if self._preferred is not None:
            crop, picture = CPU_WARM_UP if self._device.type == "cpu" else DEVICE_WARM_UP
            grey = torch.full(picture[::-1], 128, dtype=torch.uint8)
            colour = grey[: picture[1] // 2, : picture[0] // 2]
            upscaler = self.get(self._preferred)
            if self._strategies and self._device.type != "cpu":
                self._speed_up(upscaler, crop)
            size = crop[0] * upscaler.factor, crop[1] * upscaler.factor
            # One picture tells how much memory a pixel needs; then as many as a job takes at once.
            for count in (1, upscaler.batch):
                frames = [Frame(grey, colour, colour)] * count
                made = upscaler(frames, [Box(0, 0, *crop)] * count, *size)
                Landing(made).frames()
        return self._preferred

    def _speed_up(self, upscaler: Upscaler, crop: tuple[int, int]) -> None:
        """Runs a model by the fastest strategy for as many crops as a job takes at once."""
        width, height = (side + 2 * CONTEXT for side in crop)
        pictures = torch.rand(upscaler.batch, 3, height, width, device=self._device)
        pictures = pictures.to(upscaler.dtype).contiguous(memory_format=torch.channels_last)
        _, forward = fastest(
            self._strategies,
            upscaler.network,
            accelerator(self._device),
            pictures,
            self._remembered,
            upscaler.name,
        )
        upscaler.run_by(forward)

    def _named(self, params: OutputParams) -> str | None:
        if isinstance(params, UpscaleParams) and params.model is not None:
            return params.model
        if isinstance(params, UpscaleParams) and params.scale is not None:
            return None
        return self._preferred
