"""Renders an edit as the worker does, and prints how much memory the process took at most: run by test_memory.py.

python -m tests.gpu_worker.appetite SOURCE OUTPUT PARAMS.json TYPE
"""

import json
import resource
import sys
import time
from pathlib import Path

import structlog
import torch

from gpu_worker.edits.compose import Kit, Source, compose
from gpu_worker.edits.fonts import Fonts
from gpu_worker.encode import Quality
from gpu_worker.errors import WorkerError
from gpu_worker.guard import Guard
from gpu_worker.probe import probe
from gpu_worker.process import prepare_process
from gpu_worker.render import render
from schemas.jobs import JobType


def main() -> None:
    source, output, folder, jobs = sys.argv[1:]
    prepare_process()
    sources = {"in": Source(Path(source), probe(Path(source)))}
    pngs = {path.name: path.read_bytes() for path in Path(folder).glob("*.png")}
    kit = Kit(lambda params, ratio: None, sources, pngs, Fonts(), torch.device("cpu"))
    for job in json.loads(Path(jobs).read_text()):
        params = JobType(job["type"]).params_model.model_validate(job["params"])
        try:
            composition = compose(params, "in", kit)
            render(composition, Path(output), Quality("ultrafast"), Guard(), lambda done, count: None)
            ended = "done"
        except WorkerError as error:
            ended = f"{error.code}: {error}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        print(
            json.dumps(
                {"name": job["name"], "ended": ended, "peak_bytes": peak, "seconds": time.monotonic()}
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
