"""Exports a clip through the whole system on this machine: upload, submit, watch, download."""

import argparse
import asyncio
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from sample import sample_clip

from broker.cli.main import log_to_stderr
from broker.client import AsyncClient, ClientError
from broker.embedded.stack import Stack, run_until_signalled
from broker.errors import StackError
from gpu_worker.errors import WorkerError
from gpu_worker.media.facts import SourceFacts
from gpu_worker.media.probe import output_facts, probe
from schemas.jobs import JobStatus, JobView

OUTPUT_WIDTH, OUTPUT_HEIGHT = 1080, 1920
STACK_FOLDER = Path(".reelbroker")
QUALITY_SECONDS = 1.0
console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    """Returns the exit code.

    0: done. 1: the export or the stack failed. 2: the video is not usable. 130: interrupted.
    """
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--quality", action="store_true", help="one second, through Real-ESRGAN")
    parser.add_argument(
        "--provider", choices=("runpod", "modal"), default="runpod", help="whose protocol to use"
    )
    parser.add_argument("video", nargs="?", type=Path, help="yours; without it, a sample clip")
    chosen = parser.parse_args()
    video = _from_where_it_was_called(chosen.video) if chosen.video else sample_clip()
    try:
        source = probe(video)
    except (WorkerError, OSError) as error:
        console.print(f"[red]{video}: {error}[/red]")
        return 2
    outcome: list[int] = []
    log_to_stderr("WARNING")
    try:
        asyncio.run(run_until_signalled(_demo(video, source, chosen, outcome)))
    except StackError as error:
        console.print(f"[red]The stack could not start:[/red] {error}")
        return 1
    except ClientError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    return outcome[0] if outcome else 130


def _from_where_it_was_called(video: Path) -> Path:
    """Returns a path as the caller meant it: scripts/launch has gone to the repository's root."""
    return (Path(os.environ.get("CALLED_FROM", ".")) / video).resolve()


async def _demo(
    video: Path, source: SourceFacts, chosen: argparse.Namespace, outcome: list[int]
) -> None:
    console.print(
        f"Source  {video.name}: {source.width}x{source.height}, {source.duration_seconds:.2f} s"
    )
    server = "endpoint" if chosen.provider == "runpod" else "Modal server"
    console.print(f"Starting object store, {server}, worker and broker ...")
    async with (
        Stack(STACK_FOLDER, providers=[chosen.provider]) as stack,
        AsyncClient(stack.broker_url, stack.api_key) as broker,
    ):
        key = await broker.upload(video)
        request = {
            "type": "framing",
            "input_key": key,
            "params": _sweep(source) | (_through_a_model(source) if chosen.quality else {}),
        }
        job = await _watch(broker, await broker.submit(request))
        if job.status is JobStatus.COMPLETE:
            path = Path("out") / f"{job.type}_{job.job_id}.mp4"
            path.parent.mkdir(exist_ok=True)
            await broker.download(job, path)
            _tell(path, job)
            _tell_by_hand(stack, video, request)
            outcome.append(0)
        else:
            console.print(f"[red]The export failed:[/red] {job.error} ({job.error_code})")
            console.print(f"The logs of all parts are in {stack.folder / 'logs'}")
            outcome.append(1)


def _sweep(source: SourceFacts) -> dict[str, Any]:
    """Returns a crop at the output's ratio that goes from one side to the other and half back."""
    ratio = OUTPUT_WIDTH / OUTPUT_HEIGHT
    width = min(float(source.width), source.height * ratio)
    height = width / ratio
    free_x, free_y = source.width - width, source.height - height
    moments = {0.0: 0.0, 0.6: 1.0, 1.0: 0.5}
    keyframes = [
        {
            "time": round(part * source.duration_seconds, 3),
            "x": round(free_x * way, 2),
            "y": round(free_y * way, 2),
            "width": round(width, 2),
            "height": round(height, 2),
        }
        for part, way in moments.items()
    ]
    size = {"output_width": OUTPUT_WIDTH, "output_height": OUTPUT_HEIGHT}
    return {"crop_keyframes": keyframes, "interpolation": "catmull_rom", **size}


def _through_a_model(source: SourceFacts) -> dict[str, Any]:
    """The first second only: without a GPU, a frame takes more than a second."""
    return {"export_mode": "QUALITY", "end_time": min(QUALITY_SECONDS, source.duration_seconds)}


async def _watch(broker: AsyncClient, job: JobView) -> JobView:
    columns = (
        TextColumn("{task.description:<32}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(job.message, total=100)
        async for seen in broker.watch(job.job_id):
            bar.update(task, description=seen.message, completed=seen.progress)
            job = seen
    return job


def _tell(path: Path, job: JobView) -> None:
    """Prints what is in the downloaded file, measured on the file itself."""
    facts = output_facts(path)
    console.print(
        f"[green]Done[/green]    {path}: {path.stat().st_size:,} bytes, "
        f"{facts.width}x{facts.height}, "
        f"{facts.duration_seconds:.2f} s, {facts.frames} frames, {facts.fps:g} fps, "
        f"{facts.video_codec} + {facts.audio_codec or 'no audio'}"
    )
    console.print(
        f"        job {job.job_id}, attempt {job.attempt}, {job.gpu_seconds:.1f} s of worker time"
    )


def _tell_by_hand(stack: Stack, video: Path, request: dict[str, Any]) -> None:
    upload = json.dumps({"filename": video.name})
    body = json.dumps({**request, "input_key": "VIDEO_KEY"})
    console.print(f"""
The same by hand, with the stack running (scripts/up in another terminal):
  export REELBROKER_URL={stack.broker_url} REELBROKER_API_KEY={stack.api_key}
  auth="Authorization: Bearer $REELBROKER_API_KEY"
  curl -H "$auth" $REELBROKER_URL/api/videos/upload-url -d {shlex.quote(upload)}
  curl -T {shlex.quote(str(video))} -H 'Content-Type: video/mp4' -H 'If-None-Match: *' 'UPLOAD_URL'
  curl -H "$auth" $REELBROKER_URL/api/jobs -d {shlex.quote(body)}
  curl -H "$auth" $REELBROKER_URL/api/jobs/JOB_ID
  curl -H "$auth" -L -o out.mp4 $REELBROKER_URL/api/jobs/JOB_ID/output""")


if __name__ == "__main__":
    sys.exit(main())
