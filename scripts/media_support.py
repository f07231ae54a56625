"""Runs every file of make_media.py through every job type and writes docs/media-support.md.

It measures what comes out. The picture is judged by its numbers: the colours of the four corners,
and the moment that the bar shows, on the first, the middle and the last frame.
"""

import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import torch
from make_media import BAR_ROWS, CASES, CORNERS, SECONDS, Case

from gpu_worker.edits.compose import Composition, Kit, Source, compose
from gpu_worker.edits.fonts import Fonts
from gpu_worker.errors import WorkerError
from gpu_worker.host.guard import Guard
from gpu_worker.host.process import prepare_process
from gpu_worker.media.encode import Quality
from gpu_worker.media.remux import prepare
from gpu_worker.render.render import render
from schemas.jobs import JobType

DOC = Path(__file__).parents[1] / "docs" / "media-support.md"
QUALITY = Quality("veryfast", 10)
#: BT.709 in limited range to R'G'B' of 0 to 255.
TO_RGB = np.array([[1.16438, 0.0, 1.79274], [1.16438, -0.21325, -0.53291], [1.16438, 2.11240, 0.0]])

#: The first paragraph of the document, line by line.
INTRODUCTION = (
    (
        "Each of these files is made by `scripts/make-media` and run through every job type by "
        "`scripts/media-support`,"
    ),
    (
        "which wrote this table; the tests run it again. *Exported* means that colours, moments "
        "and length were measured"
    ),
    "on the result and are right. `upscale` runs with `export_mode: FAST` here.",
    "",
    "Where a file lacks a tag, the worker assumes:",
    "",
    "| what is missing | assumed |",
    "|---|---|",
    "| colour matrix | BT.709 from 720 lines on, BT.601 below; BT.2020 beside PQ, HLG or BT.2020 |",
    "| primaries | BT.2020 beside PQ or HLG; otherwise BT.709 |",
    "| transfer function | BT.709 |",
    "| rate (browsers' recordings) | the times of the pictures: an even rate as it is; otherwise |",
    "| | the least of 24, 25, 30, 50 and 60 that shows each picture |",
    "| length, or a wrong one | the packets of the file; of an MP4 with an even rate, its index |",
    "",
    "Display P3 and BT.2020 become BT.709. A sound track whose codec is not known is left out: the",
    "next one is used, or the export is silent, and `result.warnings` names the file. A display",
    "angle that is no right angle counts as 0.",
    "",
    "Clocks of MPEG transport and program streams may jump: a jump back, or forth by more than 10",
    "seconds, counts as no time at all. Of files of other formats that `cat` joined, the first one",
    "is exported.",
)


class Wrong(AssertionError):
    """The picture, the moment or the length is not what it should be."""


def params_of(case: Case, job_type: JobType) -> dict[str, object]:
    """Returns an edit of the type that leaves corners and bar to be seen."""
    half = case.seconds / 2
    size = {"output_width": 96, "output_height": 72}
    match job_type:
        case JobType.FRAMING:
            return {**size, "crop_keyframes": []}
        case JobType.UPSCALE:
            return {"output_width": 384, "output_height": 288, "export_mode": "FAST"}
        case JobType.OVERLAY:
            centre = {"x": 95.0, "y": 40.0, "radius_x": 6.0, "radius_y": 5.0}
            region = {"start_time": 0.0, "end_time": SECONDS, "keyframes": [centre]}
            return {"effect_type": "brightness_boost", "highlight_regions": [region]}
        case JobType.ANNOTATE:
            return {
                "clips": [
                    {"start_time": 0.0, "end_time": half},
                    {"start_time": half, "end_time": case.seconds},
                ]
            }
        case JobType.MULTI_CLIP:
            transition = {"type": "dissolve", "duration": case.seconds / 4}
            return {
                **size,
                "clips": [{"input_key": "a"}, {"input_key": "a"}],
                "transition": transition,
            }


def outcome(case: Case, path: Path, job_type: JobType, folder: Path) -> str:
    """Runs one edit on one file; returns `exported` or the error's code.

    Raises:
        Wrong: it was exported, but not as it should be.
    """
    output = folder / f"{case.name}-{job_type}.mp4"
    params = job_type.params_model.model_validate(params_of(case, job_type))
    device = torch.device("cpu")
    guard = Guard(cpu_seconds=60)
    try:
        with guard.within(60):
            # What is a stream is written anew in its place.
            own = Path(shutil.copy(path, output.with_suffix(".in")))
            source = Source(own, prepare(own, guard))
            kit = Kit(lambda params, ratio: None, {"a": source}, {}, Fonts(), device)
            composition = compose(params, "a", kit)
            render(composition, output, QUALITY, guard, lambda done, count: None)
    except WorkerError as error:
        return error.code.value
    _judge(case, composition, output)
    return "exported"


def _judge(case: Case, composition: Composition, output: Path) -> None:
    wanted = composition.timeline.frame_count(composition.fps)
    with av.open(str(output)) as container:
        frames = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]
    if len(frames) != wanted:
        raise Wrong(f"{len(frames)} frames instead of {wanted}")
    clips = composition.timeline.clips
    length = composition.timeline.output_seconds
    outcome = sum(
        clip.output_seconds for clip in clips
    ) - composition.timeline.transition.duration * (
        length + 1e-6 < sum(clip.output_seconds for clip in clips)
    )
    expected = (
        case.seconds
        if len(clips) == 1 or composition.clips[0].time.end < case.seconds - 1e-3
        else None
    )
    if expected is not None and abs(outcome - expected) > case.slack + 0.04:
        raise Wrong(f"{outcome:.3f} s instead of {expected:.3f} s")
    for index in sorted({0, wanted // 2, wanted - 1}):
        shown = composition.timeline.shown(float(index / composition.fps))
        _judge_colours(case, frames[index])
        if len(shown) == 1:
            moment = clips[shown[0].clip].source_time(shown[0].clip_time) + case.shift
            _judge_moment(case, frames[index], moment)


def _judge_colours(case: Case, planes: np.ndarray) -> None:
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    y = planes[:height].astype(float)
    u, v = (
        part.reshape(height // 2, width // 2).astype(float)
        for part in np.split(planes[height:].reshape(-1), 2)
    )
    for (row, column), colour in zip(((0, 0), (0, 1), (1, 0), (1, 1)), CORNERS, strict=True):
        # The patch's middle: a ninth of its length on each side is left to blurred edges.
        rows = np.array([0.06, 0.3]) + row * 11 / 24
        columns = np.array([0.06, 0.3]) + column * 5 / 8

        def mean(
            plane: np.ndarray, rows: np.ndarray = rows, columns: np.ndarray = columns
        ) -> float:
            (top, low), (left, right) = (
                (rows * plane.shape[0]).astype(int),
                (columns * plane.shape[1]).astype(int),
            )
            return float(plane[top:low, left:right].mean())

        seen = TO_RGB @ (np.array([mean(y), mean(u), mean(v)]) - (16, 128, 128))
        want = np.array(colour) * (128 / 255 if case.name.startswith("alpha") and column else 1)
        if np.abs(seen - want).max() > case.tolerance:
            raise Wrong(f"corner {row, column} is {seen.round()} instead of {want.round()}")


def _judge_moment(case: Case, planes: np.ndarray, moment: float) -> None:
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    row = planes[round(height * (1 - BAR_ROWS / 2))]
    seen = (row > 60).sum() / width * SECONDS
    if abs(seen - min(SECONDS, max(0.0, moment))) > case.slack + 2 * SECONDS / width:
        raise Wrong(f"{seen:.3f} s are shown instead of {moment:.3f} s")


def run_all(media: Path, asked: Sequence[tuple[Case, JobType]]) -> dict[tuple[str, JobType], str]:
    """Runs files as jobs, two at a time; what is wrong stands in place of the outcome."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:

        def one(case: Case, job_type: JobType) -> str:
            try:
                return outcome(case, media / case.name, job_type, Path(folder))
            except Wrong as error:
                return f"wrong: {error}"

        return {
            (case.name, job_type): outcome
            for (case, job_type), outcome in zip(
                asked, pool.map(lambda pair: one(*pair), asked), strict=True
            )
        }


def document(outcomes: Mapping[tuple[str, JobType], str]) -> str:
    """Returns docs/media-support.md."""
    lines = [
        "# What may be uploaded",
        "",
        *INTRODUCTION,
        "",
        "| file | what it is | " + " | ".join(JobType) + " |",
        "|---|---|" + "---|" * len(JobType),
    ]
    for case in CASES:
        outcome = [outcomes[case.name, job_type] for job_type in JobType]
        cells = [word if word == "exported" else f"`{word}`" for word in outcome]
        lines.append(f"| {case.name} | {case.about} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Makes the media, runs everything, writes the page; fails where something is wrong."""
    prepare_process()
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            case.make(Path(folder) / case.name)
        asked = [(case, job_type) for case in CASES for job_type in JobType]
        outcomes = run_all(Path(folder), asked)
    DOC.write_text(document(outcomes))
    wrong = {key: outcome for key, outcome in outcomes.items() if outcome.startswith("wrong")}
    for (name, job_type), outcome in wrong.items():
        print(f"{name} as {job_type}: {outcome}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
