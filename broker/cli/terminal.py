"""The commands of a developer: submit, watch, list, cancel, retry, quote, upload and download.

All of them call the broker by HTTP, through client.py. `REELBROKER_URL` is the broker's address and
`REELBROKER_API_KEY` the user's key; `reelbroker up` prints both. Exit codes: 0 done, 1 the broker
refuses or the job fails, 2 the command line is wrong, 3 the job is cancelled, 130 interrupted.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from pydantic import ValidationError
from rich import progress as bars
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from broker.cli.output import AsJson, console, exit_with, print_json
from broker.client import Client, ClientError
from broker.plain import plain
from schemas.jobs import JobRequest, JobStatus, JobType, JobView

Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Save the result here; implies --watch.")
]
Params = Annotated[
    str,
    typer.Option(help="The type's params: a JSON file, `-` for standard input, or JSON itself."),
]
Type = Annotated[JobType, typer.Option(help="The type of the job.")]
Metadata = Annotated[
    list[str], typer.Option("--metadata", "-m", help="NAME=VALUE; repeat the option for more.")
]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Wait for the job's end.")]
CANCELLED = 3
#: The width of a table in a file or pipe: each job fits on one line.
WIDE = 1000


def submit(
    video: Annotated[
        str | None, typer.Argument(help="A file to upload, or the key of an uploaded video.")
    ] = None,
    type: Type = JobType.FRAMING,
    params: Params = "{}",
    project: Annotated[int | None, typer.Option(help="The project's number.")] = None,
    # Typer needs a list here; nothing changes it.
    metadata: Metadata = [],  # noqa: B006
    watch: Watch = False,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Send a job: `reelbroker submit clip.mp4 --type framing --params crop.json -o out.mp4`."""
    fields: dict[str, Any] = {"type": type, "params": _params(params), "metadata": _pairs(metadata)}
    if project is not None:
        fields["project_id"] = project
    if output is not None:
        _check_target(output)
    with _broker() as client:
        if video is not None:
            _job_request(fields | {"input_key": "checked/before/the/upload.mp4"})
            is_file = Path(video).is_file()
            fields["input_key"] = _upload(client, Path(video), as_json) if is_file else video
        job = client.submit(_job_request(fields))
        if watch or output is not None:
            job = _follow(client, job, as_json)
        if output is not None and job.status is JobStatus.COMPLETE:
            _download(client, job, output, as_json)
    _print_and_exit(job, as_json)


def watch(job_id: str, as_json: AsJson = False) -> None:
    """Follow a job to its end, through lost connections and restarts of the broker."""
    with _broker() as client:
        job = _follow(client, client.get(job_id), as_json)
    _print_and_exit(job, as_json)


def list_jobs(
    status: Annotated[str | None, typer.Option(help="One or more, separated by commas.")] = None,
    type: Annotated[JobType | None, typer.Option()] = None,
    project: Annotated[int | None, typer.Option()] = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    as_json: AsJson = False,
) -> None:
    """List your jobs, newest first."""
    with _broker() as client:
        jobs = client.jobs(limit=limit, status=status, type=type, project_id=project).jobs
    if as_json:
        print_json([job.model_dump(mode="json") for job in jobs])
        return
    # In a narrow terminal only the message is cut: nobody can copy an id that is cut.
    whole = [Column(name, no_wrap=True) for name in ("job", "type", "status", "age")]
    table = Table(*whole, "message", box=None, pad_edge=False)
    for job in jobs:
        progress = f" {job.progress} %" if job.status is JobStatus.PROCESSING else ""
        message = Text(plain(job.message), no_wrap=True, overflow="ellipsis")
        age = _age(job.created_at)
        table.add_row(job.job_id, job.type, f"{job.status}{progress}", age, message)
    target = console if console.is_terminal else Console(width=WIDE, highlight=False)
    target.print(table if jobs else "none", soft_wrap=False)


def cancel(job_id: str, as_json: AsJson = False) -> None:
    """Stop a job and its cost."""
    with _broker() as client:
        _print_job(client.cancel(job_id), as_json)


def retry(job_id: str, watch: Watch = False, as_json: AsJson = False) -> None:
    """Send a failed job again, as a new job."""
    with _broker() as client:
        job = client.retry(job_id)
        if watch:
            job = _follow(client, job, as_json)
    _print_and_exit(job, as_json)


def quote(
    video: Annotated[str | None, typer.Argument(help="The key of an uploaded video.")] = None,
    type: Type = JobType.FRAMING,
    params: Params = "{}",
    seconds: Annotated[float | None, typer.Option(help="The length of the source.")] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate a job's GPU time and cost."""
    fields = {"type": type, "params": _params(params)} | ({"input_key": video} if video else {})
    with _broker() as client:
        quote = client.quote(_job_request(fields), source_seconds=seconds)
    if as_json:
        print_json(quote.model_dump(mode="json"))
        return
    line = f"{quote.output_seconds:g} s of video"
    if not quote.source_known:
        line += " (the source's length is a guess; say --seconds)"
    line += f": {quote.gpu_seconds:g} to {quote.gpu_seconds_p90:g} GPU seconds"
    if quote.cost_usd is not None:
        line += f", {quote.cost_usd:.4f} to {quote.cost_usd_p90:.4f} USD"
    console.print(line)


def upload(video: Path, as_json: AsJson = False) -> None:
    """Put a video into the bucket and print its key for `submit`."""
    if not video.is_file():
        exit_with(f"there is no file {video}")
    with _broker() as client:
        key = _upload(client, video, as_json)
    print(json.dumps({"video_key": key}) if as_json else plain(key))  # noqa: T201


def download(job_id: str, output: Path, as_json: AsJson = False) -> None:
    """Fetch a job's result and check its SHA-256."""
    _check_target(output)
    with _broker() as client:
        job = client.get(job_id)
        _download(client, job, output, as_json)
    _print_job(job, as_json)


def add_to(cli: typer.Typer, jobs: typer.Typer) -> None:
    """Adds these commands to the command line."""
    for command in (submit, watch, cancel, retry, quote, upload, download):
        cli.command()(command)
    jobs.command("list")(list_jobs)


# ── calls with a progress bar ───────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _broker() -> Iterator[Client]:
    """Opens a client by the environment. Errors of the broker end the command with 1."""
    url = os.environ.get("REELBROKER_URL", "http://127.0.0.1:8000")
    try:
        with Client(url, os.environ.get("REELBROKER_API_KEY", "")) as client:
            yield client
    except httpx.HTTPError as error:
        exit_with(f"{url}: {error}", 1)
    except (ClientError, OSError) as error:
        exit_with(str(error), 1)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _upload(client: Client, video: Path, quiet: bool) -> str:
    with _bar(quiet, bars.DownloadColumn()) as bar:
        task = bar.add_task(f"Uploading {plain(video.name)}", total=video.stat().st_size)
        return client.upload(video, on_progress=lambda count: bar.advance(task, count))


def _download(client: Client, job: JobView, output: Path, quiet: bool) -> None:
    size = job.result.bytes if job.result else None
    with _bar(quiet, bars.DownloadColumn()) as bar:
        task = bar.add_task(f"Downloading {plain(output.name)}", total=size)
        client.download(job, output, on_progress=lambda count: bar.advance(task, count))


def _follow(client: Client, job: JobView, quiet: bool) -> JobView:
    with _bar(quiet, bars.TaskProgressColumn(), bars.TimeElapsedColumn()) as bar:
        task = bar.add_task(plain(job.message), total=100)
        for seen in client.watch(job.job_id):
            bar.update(task, description=plain(seen.message), completed=seen.progress)
            job = seen
    return job


def _bar(quiet: bool, *columns: Any) -> bars.Progress:
    all_columns = (
        bars.TextColumn("{task.description:<37}", markup=False),
        bars.BarColumn(),
        *columns,
    )
    return bars.Progress(*all_columns, console=Console(stderr=True), disable=quiet)


# ── how a job is printed ────────────────────────────────────────────────────────────────────────


def _print_job(job: JobView, as_json: bool) -> None:
    if as_json:
        print_json(job.model_dump(mode="json"))
        return
    line = f"{job.job_id}  {job.status}"
    if job.error is not None:
        line += f": {job.error} ({job.error_code})"
    elif (made := job.result) is not None:
        size = f"{made.width}x{made.height}"
        line += f": {size}, {made.duration_seconds:.2f} s, {made.bytes:,} bytes"
    if job.cost_usd is not None:
        line += f", {job.cost_usd:.4f} USD"
    console.print(plain(line), markup=False)


def _print_and_exit(job: JobView, as_json: bool) -> None:
    _print_job(job, as_json)
    if job.status is JobStatus.ERROR:
        raise typer.Exit(1)
    if job.status is JobStatus.CANCELLED:
        raise typer.Exit(CANCELLED)


def _age(since: str) -> str:
    """Returns the time since a date in its largest unit, which leaves room for the message."""
    seconds = max(0.0, (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds())
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


# ── how the command line is read ────────────────────────────────────────────────────────────────


def _check_target(output: Path) -> None:
    """Checks, before the job costs money, that a command can write its result there."""
    if output.is_dir() or not output.name:
        exit_with(f"{output} is a folder; name a file in it")
    if not output.absolute().parent.is_dir():
        exit_with(f"there is no folder {output.parent}")


def _params(given: str) -> Any:
    try:
        if given == "-":
            return json.load(sys.stdin)
        return json.loads(given if given.lstrip().startswith("{") else Path(given).read_text())
    except OSError as error:
        exit_with(f"--params: {error}")
    except ValueError as error:
        exit_with(f"--params: this is no JSON: {error}")


def _pairs(given: list[str]) -> dict[str, str]:
    for pair in given:
        if "=" not in pair:
            exit_with(f"--metadata: {pair!r} is not NAME=VALUE")
    return dict(pair.split("=", 1) for pair in given)


def _job_request(fields: dict[str, Any]) -> JobRequest:
    """Validates a job as the broker does, before the command sends anything."""
    try:
        return JobRequest.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        lines = [f"  /{'/'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        exit_with("\n".join(["this is no job:", *lines]))
