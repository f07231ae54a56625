"""Throws damaged files and random params at the worker's core, for a bounded time.

Each round takes a file, flips bytes, cuts it, or edits its tags, draws legal params, and exports. A
result must be right in its length; a refusal must have a code of its own. An `internal` error, a
hang or a crash is a failure: the round's file and params are printed. The exit code is 1 after a
failure.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import structlog
import torch
from pydantic import ValidationError
from sample import sample_clip

from gpu_worker.edits.compose import Kit, Source, compose
from gpu_worker.edits.fonts import Fonts
from gpu_worker.errors import WorkerError
from gpu_worker.host.guard import Guard
from gpu_worker.media.encode import Quality
from gpu_worker.media.facts import Limits
from gpu_worker.media.probe import output_facts
from gpu_worker.media.remux import prepare
from gpu_worker.render.render import OutputLimits, render
from schemas.jobs import ErrorCode, JobType

ROOT = Path(__file__).parents[1]
LIMITS = Limits(pixels=1920 * 1080, seconds=60)
OUTPUT = OutputLimits(seconds=60, bytes=64 << 20)
#: Longer than any of these jobs takes.
ROUND_SECONDS = 60.0
#: A length that a damaged file keeps may differ from the promised one by so much.
SLACK_SECONDS = 1.0


def sources() -> list[Path]:
    """Returns the files to damage: those of the tests, and the sample clip."""
    media = [*(ROOT / "tests" / "gpu_worker" / "cases").glob("*")]
    return [*sorted(path for path in media if path.suffix not in (".json", ".png")), sample_clip()]


def _flip(body: bytearray, at: int, length: int, dice: random.Random) -> None:
    for place in range(at, at + length):
        body[place] ^= 1 << dice.randrange(8)


def _edit_head(body: bytearray, at: int, length: int, dice: random.Random) -> None:
    # Where tags, sizes and rates are.
    body[dice.randrange(min(2048, len(body)))] = dice.randrange(256)


def _cut(body: bytearray, at: int, length: int, dice: random.Random) -> None:
    del body[at : at + length]


def _end(body: bytearray, at: int, length: int, dice: random.Random) -> None:
    del body[at:]


def _double(body: bytearray, at: int, length: int, dice: random.Random) -> None:
    body[at:at] = body[at : at + length]


def _zero(body: bytearray, at: int, length: int, dice: random.Random) -> None:
    body[at : at + length] = bytes(length)


DAMAGES = (_flip, _edit_head, _cut, _end, _double, _zero)


def damaged(body: bytes, dice: random.Random) -> bytes:
    """Returns a file as it is, or after some damages."""
    changed = bytearray(body)
    for _ in range(dice.choice((0, 1, 1, 2, 5))):
        at = dice.randrange(len(changed))
        length = min(len(changed) - at, dice.choice((1, 1, 4, 16, 256, 4096)))
        dice.choice(DAMAGES)(changed, at, length, dice)
        if not changed:
            return b"\0"
    return bytes(changed)


def drawn(dice: random.Random, width: int, height: int) -> tuple[JobType, dict[str, Any]]:
    """Returns a job type and params that the schema takes, mostly."""
    size: dict[str, Any] = {
        "output_width": dice.choice((2, 64, 270)),
        "output_height": dice.choice((2, 96, 480)),
    }
    start = round(dice.uniform(0, 3), 3)
    trim = {"start_time": start, "end_time": round(start + dice.uniform(0.001, 2), 3)}
    if dice.random() < 0.5:
        keys = []
        for n in range(dice.randrange(1, 5)):
            w, h = dice.uniform(2, width), dice.uniform(2, height)
            box = {"x": dice.uniform(0, width - w), "y": dice.uniform(0, height - h)}
            keys.append({"time": n * dice.uniform(0.1, 1) + n, **box, "width": w, "height": h})
        size |= {"crop_keyframes": keys, "interpolation": dice.choice(("linear", "catmull_rom"))}
    at, segments = start, []
    for _ in range(dice.choice((0, 0, 1, 5, 40))):
        begin = at + dice.uniform(0, 0.2)
        at = begin + dice.choice((0.001, 0.01, 0.1, 0.5))
        segments.append({"start": begin, "end": at, "speed": dice.uniform(0.25, 4)})
    params = size | trim | {"segments": segments}
    if dice.random() < 0.3:
        params["target_fps"] = dice.choice((1, 10, 23.976, 60))
    if dice.random() < 0.2:
        params["rotation"] = dice.uniform(-45, 45)
    text = "".join(chr(dice.choice((0, 9, 10, 65, 0x301, 0x5D0, 0x634, 0x1F44D))) for _ in range(9))
    match dice.choice((JobType.FRAMING, JobType.FRAMING, JobType.ANNOTATE, JobType.OVERLAY)):
        case JobType.ANNOTATE:
            clip = {**trim, "name": text, "notes": text, "tags": [text], "rating": 3}
            return JobType.ANNOTATE, {"clips": [clip], **{k: size[k] for k in list(size)[:2]}}
        case JobType.OVERLAY:
            layer = {"text": text, "x": 5, "y": 5, "font_size": dice.uniform(1, 200)}
            return JobType.OVERLAY, {"text_layers": [layer], **trim}
        case job_type:
            return job_type, params


def tried(body: bytes, dice: random.Random, folder: Path) -> tuple[str, Any]:
    """Exports one file; returns the outcome, and the params."""
    path, out = folder / "in", folder / "out.mp4"
    path.write_bytes(body)
    params: Any = None
    try:
        facts = prepare(path, Guard(), LIMITS)
        job_type, params = drawn(dice, facts.width, facts.height)
        edit = job_type.params_model.model_validate(params)
        kit = Kit(lambda _, __: None, {"a": Source(path, facts)}, {}, Fonts(), torch.device("cpu"))
        made = compose(edit, "a", kit)
        guard = Guard()
        with guard.within(ROUND_SECONDS):
            render(made, out, Quality("ultrafast", 30), guard, lambda done, count: None, OUTPUT)
        late = abs(output_facts(out).duration_seconds - made.timeline.output_seconds)
        return ("exported" if late < SLACK_SECONDS else f"wrong length by {late:.2f} s"), params
    except ValidationError:
        return "params refused", params
    except WorkerError as error:
        if error.code is ErrorCode.INTERNAL:
            return f"internal: {error} {error.detail[-600:]}", params
        return error.code.value, params
    # Whatever it is: the worker would end the job as `internal`.
    except Exception as error:  # noqa: BLE001
        return f"internal: {error!r}"[:300], params


def main() -> None:
    """Prints what was tried."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz-media", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None)
    chosen = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("CRITICAL"))
    seed = random.SystemRandom().randrange(1 << 32) if chosen.seed is None else chosen.seed
    print(f"seed {seed}", flush=True)
    bodies = {path: path.read_bytes() for path in sources()}
    outcomes, failures, number, slowest = Counter[str](), 0, 0, 0.0
    until = time.monotonic() + chosen.seconds
    with tempfile.TemporaryDirectory(prefix="reelbroker-fuzz-") as folder:
        while time.monotonic() < until:
            dice = random.Random(seed * 1_000_003 + number)  # noqa: S311
            path, began = dice.choice(list(bodies)), time.monotonic()
            outcome, params = tried(damaged(bodies[path], dice), dice, Path(folder))
            slowest = max(slowest, time.monotonic() - began)
            if outcome.startswith(("internal", "wrong", ErrorCode.EXECUTION_TIMEOUT)):
                failures += 1
                print(f"round {number}: {path.name}: {outcome}\n  {json.dumps(params)[:600]}")
            outcomes[outcome.partition(":")[0]] += 1
            number += 1
    print(json.dumps({"rounds": number, "slowest_seconds": round(slowest, 1), **outcomes}))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
