"""Highlights: ellipses that follow somebody, and what is done to the picture inside or outside of
them.

docs/effects.md has the formulas in one table; the code follows it. Everything is computed in
float32 on the Y, U and V planes as they are, each mask at the places of that plane's samples, and
rounded once.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as functional

from gpu_worker.edits.keyframes import bracket, mixed, seconds_of
from gpu_worker.edits.timeline import fade_at, is_shown
from gpu_worker.media.facts import SourceFacts
from gpu_worker.media.frames import BLACK, Frame, bands, planes_of_rgb
from schemas.overlays import Effect, HighlightKeyframe, HighlightRegion, OverlayParams

#: How strong an effect is, and how wide its edge in shares of the smaller radius, where the client
#: does not say.
DEFAULT_STRENGTH = {
    Effect.DARK_OVERLAY: 0.3,
    Effect.SPOTLIGHT: 0.7,
    Effect.BRIGHTNESS_BOOST: 0.5,
    Effect.BLUR: 1.0,
    Effect.ORIGINAL: 0.0,
}
DEFAULT_FEATHER = {
    Effect.DARK_OVERLAY: 0.1,
    Effect.SPOTLIGHT: 0.3,
    Effect.BRIGHTNESS_BOOST: 0.1,
    Effect.BLUR: 0.1,
    Effect.ORIGINAL: 0.0,
}
_OUTSIDE = (Effect.DARK_OVERLAY, Effect.SPOTLIGHT, Effect.BLUR)
#: Of the picture's height: the stroke's width, and the blur's standard deviation.
STROKE_SHARE, BLUR_SHARE = 3 / 1080, 0.01
MIN_STROKE_PIXELS = 2.0
#: The blur is computed on averages of that many luma samples along each axis, which looks the same
#: and costs a 16th.
BLUR_BLOCK = 4
LEGAL_MAX = (235, 240, 240)
#: So many outlines are kept from the effect to the stroke.
KEPT_OUTLINES = 4


@dataclass(frozen=True)
class Ellipse:
    """One highlight at one moment; pixels of the picture, pixel i covering i to i + 1. The colour
    is in Y, U, V.
    """

    x: float
    y: float
    radius_x: float
    radius_y: float
    opacity: float
    stroke_opacity: float
    fill_opacity: float
    colour_y: float
    colour_u: float
    colour_v: float

    @property
    def colour(self) -> tuple[float, float, float]:
        return self.colour_y, self.colour_u, self.colour_v


#: An ellipse and how far it is faded in (0 to 1).
Shown = tuple[Ellipse, float]


@dataclass(frozen=True)
class Region:
    """A highlight over time: `start` to `end` in seconds of the source, fading in and out for
    `fade` seconds.

    A region too short for both fades has none: trackers send a region a frame.
    """

    start: float
    end: float
    fade: float
    times: tuple[float, ...]
    ellipses: tuple[Ellipse, ...]

    def at(self, moment: float) -> Shown | None:
        """Returns the ellipse and how far it is faded in (0 to 1); None when there is none."""
        if not is_shown(self.start, self.end, moment):
            return None
        return self._ellipse(moment), fade_at(moment, self.start, self.end, self.fade)

    def _ellipse(self, moment: float) -> Ellipse:
        index, part = bracket(self.times, moment)
        if not part:
            return self.ellipses[index]
        return mixed(((1 - part, self.ellipses[index]), (part, self.ellipses[index + 1])))


@dataclass(frozen=True)
class Highlights:
    """All regions of a job and the effect that they have."""

    effect: Effect
    strength: float
    feather: float
    stroke_pixels: float
    blur_pixels: float
    regions: tuple[Region, ...]

    @classmethod
    def of(cls, params: OverlayParams, source: SourceFacts) -> "Highlights":
        """Converts frames to seconds, and coordinates to pixels of the source."""
        effect = params.effect_type
        stroke = params.stroke_width
        if stroke is None:
            stroke = max(MIN_STROKE_PIXELS, source.height * STROKE_SHARE)
        return cls(
            effect=effect,
            strength=DEFAULT_STRENGTH[effect]
            if params.effect_strength is None
            else params.effect_strength,
            feather=DEFAULT_FEATHER[effect] if params.feather is None else params.feather,
            stroke_pixels=stroke,
            blur_pixels=source.height * BLUR_SHARE,
            regions=tuple(
                _region(region, source, params.fade_seconds)
                for region in params.highlight_regions
                if region.enabled
            ),
        )

    def are_shown(self, moment: float) -> bool:
        """True where something is highlighted at `moment` (seconds of the source)."""
        return any(is_shown(region.start, region.end, moment) for region in self.regions)

    def draw(self, frame: Frame, moment: float) -> Frame:
        """Returns the frame with what is highlighted at `moment` (seconds of the source); itself
        where nothing is.
        """
        shown = [found for region in self.regions if (found := region.at(moment)) is not None]
        if not shown:
            return frame
        y, u, v = (self._draw_plane(frame, shown, plane) for plane in range(3))
        return Frame(y, u, v)

    def _draw_plane(self, frame: Frame, shown: Sequence[Shown], index: int) -> torch.Tensor:
        plane, scale = frame.planes[index], (1 if index == 0 else 2)
        block = BLUR_BLOCK // scale
        small = None
        if self.effect is Effect.BLUR:
            small = _small_blurred(plane, self.blur_pixels / scale, block)
        drawn = torch.empty_like(plane)
        for rows in bands(*plane.shape):
            # With many regions, outlines are computed for each use: all of them at once would take
            # gigabytes.
            outline = functools.lru_cache(KEPT_OUTLINES)(partial(self._outline, plane, rows, scale))
            values = plane[rows].float()
            if self.effect is not Effect.ORIGINAL:
                weight = self._weight(values, shown, outline)
                if small is not None:
                    values = torch.lerp(
                        values, _enlarged(small, rows, values.shape[1], block), weight
                    )
                else:
                    values = self._lit(values, weight, BLACK[index], LEGAL_MAX[index])
            self._draw_outlines(values, shown, outline, index)
            drawn[rows] = values.add_(0.5).clamp_(0, 255)
        return drawn

    def _outline(
        self, plane: torch.Tensor, rows: slice, scale: int, ellipse: Ellipse
    ) -> "_Outline":
        return _Outline.of(ellipse, self._reach(ellipse), plane, rows, scale)

    def _weight(
        self, values: torch.Tensor, shown: Sequence[Shown], outline: Callable[[Ellipse], "_Outline"]
    ) -> torch.Tensor:
        """Returns how much of the effect each sample has."""
        # `light` is how much of the inside there is; the outside's weight is what it misses to the
        # strongest.
        light = torch.zeros_like(values)
        for ellipse, presence in shown:
            near = outline(ellipse)
            inside = near.inside(self._feather_pixels(ellipse)).mul_(presence * ellipse.opacity)
            torch.maximum(light[near.area], inside, out=light[near.area])
        strongest = max(presence * ellipse.opacity for ellipse, presence in shown)
        weight = light.neg_().add_(strongest) if self.effect in _OUTSIDE else light
        return weight.mul_(self.strength)

    def _draw_outlines(
        self,
        values: torch.Tensor,
        shown: Sequence[Shown],
        outline: Callable[[Ellipse], "_Outline"],
        index: int,
    ) -> None:
        """Fills and strokes the ellipses, in their order."""
        for ellipse, presence in shown:
            near = outline(ellipse)
            there, colour = values[near.area], ellipse.colour[index]
            if ellipse.fill_opacity:
                alpha = near.inside(1.0).mul_(presence * ellipse.fill_opacity)
                there += (colour - there) * alpha
            if self.stroke_pixels and ellipse.stroke_opacity:
                alpha = near.stroke(self.stroke_pixels).mul_(presence * ellipse.stroke_opacity)
                there += (colour - there) * alpha

    def _lit(
        self, values: torch.Tensor, weight: torch.Tensor, black: int, legal_max: int
    ) -> torch.Tensor:
        """Makes values brighter or darker where the effect has weight; changes both tensors."""
        gain = weight.add_(1) if self.effect is Effect.BRIGHTNESS_BOOST else weight.neg_().add_(1)
        lit = values.sub_(black).mul_(gain).add_(black)
        # Only what was made brighter can leave the legal range.
        return lit.clamp_(16, legal_max) if self.effect is Effect.BRIGHTNESS_BOOST else lit

    def _feather_pixels(self, ellipse: Ellipse) -> float:
        return max(1.0, self.feather * min(ellipse.radius_x, ellipse.radius_y))

    def _reach(self, ellipse: Ellipse) -> float:
        """How far beyond its radii an ellipse changes anything."""
        return 2 * max(self._feather_pixels(ellipse), self.stroke_pixels) + 4


@dataclass(frozen=True)
class _Outline:
    """The samples of some rows of a plane near an ellipse: which they are, and how far each is from
    its outline.

    Attributes:
        distance: in luma pixels, negative inside, to first order: f / |grad f|.
    """

    area: tuple[slice, slice]
    distance: torch.Tensor

    @classmethod
    def of(
        cls, ellipse: Ellipse, reach: float, plane: torch.Tensor, band: slice, scale: int
    ) -> "_Outline":
        a, b = ellipse.radius_x, ellipse.radius_y
        columns = _near(ellipse.x, a + reach, slice(0, plane.shape[1]), scale)
        rows = _near(ellipse.y, b + reach, band, scale)
        # MPEG-2 siting: chroma is at every even luma column, and halfway between two luma rows.
        arange = partial(torch.arange, dtype=torch.float32, device=plane.device)
        x = arange(columns.start, columns.stop) * scale + 0.5
        y = arange(rows.start, rows.stop) * scale + scale / 2
        dx, dy = (x - ellipse.x)[None], (y - ellipse.y)[:, None]
        nearness = torch.hypot(dx / a, dy / b)
        slope = torch.hypot(dx / (a * a), dy / (b * b)).clamp_(min=1e-9)
        distance = torch.where(nearness < 1e-6, -min(a, b), nearness * (nearness - 1) / slope)
        return cls((slice(rows.start - band.start, rows.stop - band.start), columns), distance)

    def inside(self, edge: float) -> torch.Tensor:
        """Returns 1 inside to 0 outside, with a smooth edge of `edge` pixels centred on the
        outline.
        """
        part = self.distance.div(-edge).add_(0.5).clamp_(0, 1)
        return part * part * (3 - 2 * part)

    def stroke(self, width: float) -> torch.Tensor:
        """Returns how much of each sample's pixel a stroke of `width` pixels, centred on the
        outline, covers.
        """
        return self.distance.abs().neg_().add_((width + 1) / 2).clamp_(0, 1)


def _near(centre: float, reach: float, among: slice, scale: int) -> slice:
    first = math.floor((centre - reach) / scale)
    last = math.ceil((centre + reach) / scale) + 1
    return slice(*(min(max(end, among.start), among.stop) for end in (first, last)))


def _small_blurred(plane: torch.Tensor, sigma: float, block: int) -> torch.Tensor:
    """Returns a Gaussian blur of the averages of a plane's blocks, (1, 1, h / block, w / block);
    edges repeat.
    """
    height, width = plane.shape
    averages = []
    for rows in bands(height, width):
        padding = (0, -width % block, 0, -(rows.stop - rows.start) % block)
        padded = functional.pad(plane[rows].float()[None, None], padding, mode="replicate")
        averages.append(functional.avg_pool2d(padded, block))
    small = torch.cat(averages, dim=2)
    radius = math.ceil(3 * sigma / block)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32, device=plane.device)
    kernel = torch.exp(-0.5 * (offsets * block / sigma) ** 2)
    kernel /= kernel.sum()
    small = functional.conv2d(
        functional.pad(small, (radius, radius, 0, 0), mode="replicate"), kernel[None, None, None]
    )
    return functional.conv2d(
        functional.pad(small, (0, 0, radius, radius), mode="replicate"), kernel[None, None, :, None]
    )


def _enlarged(small: torch.Tensor, rows: slice, width: int, block: int) -> torch.Tensor:
    """Brings some rows of a picture back to its size bilinearly; they begin at a whole block."""
    first, last = rows.start // block, -(-rows.stop // block)
    # With a block more on each side, where there is one: that is how far a sample reaches.
    above, below = max(0, first - 1), min(small.shape[2], last + 1)
    part = small[:, :, above:below]
    large = functional.interpolate(part, scale_factor=block, mode="bilinear", align_corners=False)
    top = (first - above) * block
    return large[0, 0, top : top + rows.stop - rows.start, :width]


def _region(region: HighlightRegion, source: SourceFacts, fade: float) -> Region:
    x_scale, y_scale = region.scale_to(source.width, source.height)
    return Region(
        start=seconds_of(region.start_time, region.start_frame, source.fps),
        # The end frame of the static form is still highlighted.
        end=seconds_of(
            region.end_time, None if region.end_frame is None else region.end_frame + 1, source.fps
        ),
        fade=fade,
        times=tuple(key.time for key in region.keyframes),
        ellipses=tuple(_ellipse(key, x_scale, y_scale) for key in region.keyframes),
    )


def _ellipse(key: HighlightKeyframe, x_scale: float, y_scale: float) -> Ellipse:
    red, green, blue = (int(key.color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    colour = planes_of_rgb(red, green, blue)
    return Ellipse(
        key.x * x_scale,
        key.y * y_scale,
        key.radius_x * x_scale,
        key.radius_y * y_scale,
        key.opacity,
        key.stroke_opacity,
        key.fill_opacity,
        *colour,
    )
