"""Renders edits as the worker does, and writes down how much memory the process took at most; run
by test_memory.py.

python -m tests.gpu_worker.appetite SOURCE PNG_FOLDER JOBS.json OUTPUT
"""

import json
import resource
import sys
from pathlib import Path

import torch

from gpu_worker.edits.compose import Kit, Source, compose
from gpu_worker.edits.fonts import Fonts
from gpu_worker.host.guard import Guard
from gpu_worker.host.process import prepare_process
from gpu_worker.media.encode import Quality
from gpu_worker.media.probe import probe
from gpu_worker.render.render import render
from schemas.jobs import JobType


def main() -> None:
    """Writes a line of JSON for each job: the most that the process took so far, in bytes of
    memory.
    """
    source, folder, jobs, output = map(Path, sys.argv[1:])
    prepare_process()
    pngs = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    sources = {"in": Source(source, probe(source))}
    kit = Kit(lambda params, ratio: None, sources, pngs, Fonts(), torch.device("cpu"))
    for job in json.loads(jobs.read_text()):
        params = JobType(job["type"]).params_model.model_validate(job["params"])
        render(
            compose(params, "in", kit),
            output,
            Quality("ultrafast"),
            Guard(),
            lambda done, count: None,
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        sys.stdout.write(json.dumps({"type": job["type"], "peak_bytes": peak}) + "\n")


if __name__ == "__main__":
    main()
