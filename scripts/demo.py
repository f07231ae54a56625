"""One export through the whole system: upload, submit, watch, download. Run by scripts/demo [--quality] [video]."""

import asyncio
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from sample import sample_clip

from broker.cli import log_to_stderr
from broker.embedded.stack import Stack, run_until_signalled
from broker.errors import StackError
from gpu_worker.errors import WorkerError
from gpu_worker.probe import SourceFacts, output_facts, probe

OUTPUT_WIDTH, OUTPUT_HEIGHT = 1080, 1920
TRANSFER_TIMEOUT = httpx.Timeout(60.0)
STACK_FOLDER = Path(".reelbroker")
QUALITY_SECONDS = 1.0
console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    """Returns the exit code: 0 done, 1 the export or the stack failed, 2 unusable video, 130 interrupted."""
    words = [word for word in sys.argv[1:] if word != "--quality"]
    quality = len(words) < len(sys.argv) - 1
    video = Path(words[0]) if words else sample_clip()
    try:
        source = probe(video)
    except WorkerError as error:
        console.print(f"[red]{video}: {error}[/red]")
        return 2
    outcome: list[int] = []
    log_to_stderr("WARNING")
    try:
        asyncio.run(run_until_signalled(_demo(video, video.stat().st_size, source, quality, outcome)))
    except StackError as error:
        console.print(f"[red]The stack could not start:[/red] {error}")
        return 1
    return outcome[0] if outcome else 130


async def _demo(video: Path, size: int, source: SourceFacts, quality: bool, outcome: list[int]) -> None:
    console.print(f"Source  {video.name}: {source.width}x{source.height}, {source.duration_seconds:.2f} s")
    console.print("Starting object store, endpoint, worker and broker ...")
    async with Stack(STACK_FOLDER) as stack:
        headers = {"Authorization": f"Bearer {stack.api_key}"}
        async with httpx.AsyncClient(base_url=stack.broker_url, headers=headers, timeout=60) as broker:
            key = await _upload(broker, video, size)
            request = {
                "type": "framing",
                "input_key": key,
                "params": _sweep(source) | (_through_a_model(source) if quality else {}),
            }
            job = _checked(await broker.post("/api/jobs", json=request)).json()
            job = await _watch(broker, job)
            if job["status"] == "complete":
                path = await _download(broker, job)
                _tell(path, job)
                _tell_by_hand(stack, video, request)
                outcome.append(0)
            else:
                console.print(f"[red]The export failed:[/red] {job['error']} ({job['error_code']})")
                console.print(f"What the parts said is in {stack.folder / 'logs'}")
                outcome.append(1)


def _sweep(source: SourceFacts) -> dict[str, Any]:
    """A crop at the output's ratio that goes from one side of the picture to the other and half the way back."""
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


async def _upload(broker: httpx.AsyncClient, video: Path, size: int) -> str:
    ticket = _checked(await broker.post("/api/videos/upload-url", json={"filename": video.name})).json()
    async with httpx.AsyncClient(timeout=TRANSFER_TIMEOUT) as bucket:
        length = {"Content-Length": str(size)}
        _checked(
            await bucket.put(ticket["upload_url"], content=_pieces(video), headers=ticket["headers"] | length)
        )
    return str(ticket["video_key"])


async def _pieces(path: Path) -> Any:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, 1 << 20):
            yield piece


async def _watch(broker: httpx.AsyncClient, job: dict[str, Any]) -> dict[str, Any]:
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(job["message"], total=100)
        while job["status"] not in ("complete", "error", "cancelled"):
            await asyncio.sleep(0.5)
            job = _checked(await broker.get(job["urls"]["self"])).json()
            bar.update(task, description=job["message"], completed=job["progress"])
    return job


async def _download(broker: httpx.AsyncClient, job: dict[str, Any]) -> Path:
    path = Path("out") / f"{job['type']}_{job['job_id']}.mp4"
    path.parent.mkdir(exist_ok=True)
    # The presigned URL is not ours to send the key to, so the redirect is followed by a client without it.
    url = (await broker.get(job["urls"]["output"])).headers["location"]
    async with httpx.AsyncClient(timeout=TRANSFER_TIMEOUT) as bucket, bucket.stream("GET", url) as reply:
        reply.raise_for_status()
        with path.open("wb") as file:
            async for piece in reply.aiter_bytes():
                await asyncio.to_thread(file.write, piece)
    return path


def _tell(path: Path, job: dict[str, Any]) -> None:
    """Prints what is in the downloaded file, measured on the file itself."""
    facts = output_facts(path)
    console.print(
        f"[green]Done[/green]    {path}: {path.stat().st_size:,} bytes, {facts.width}x{facts.height}, "
        f"{facts.duration_seconds:.2f} s, {facts.frames} frames, {facts.fps:g} fps, "
        f"{facts.video_codec} + {facts.audio_codec or 'no audio'}"
    )
    console.print(
        f"        job {job['job_id']}, attempt {job['attempt']}, {job['gpu_seconds']:.1f} s of worker time"
    )


def _tell_by_hand(stack: Stack, video: Path, request: dict[str, Any]) -> None:
    upload = json.dumps({"filename": video.name})
    body = json.dumps({**request, "input_key": "VIDEO_KEY"})
    console.print(f"""
The same by hand, with the stack running (scripts/up in another terminal):
  export REELBROKER_URL={stack.broker_url} REELBROKER_API_KEY={stack.api_key}
  auth="Authorization: Bearer $REELBROKER_API_KEY"
  curl -H "$auth" $REELBROKER_URL/api/videos/upload-url -d {shlex.quote(upload)}
  curl -T {shlex.quote(str(video))} -H 'Content-Type: video/mp4' 'UPLOAD_URL'
  curl -H "$auth" $REELBROKER_URL/api/jobs -d {shlex.quote(body)}
  curl -H "$auth" $REELBROKER_URL/api/jobs/JOB_ID
  curl -H "$auth" -L -o out.mp4 $REELBROKER_URL/api/jobs/JOB_ID/output""")


def _checked(reply: httpx.Response) -> httpx.Response:
    if reply.is_error:
        raise SystemExit(f"{reply.request.method} {reply.request.url.path}: {reply.status_code} {reply.text}")
    return reply


if __name__ == "__main__":
    sys.exit(main())
