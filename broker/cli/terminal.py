"""What a developer does at a terminal: submit, watch, list, cancel, retry, quote, upload, download. All over HTTP, by client.py.

`REELBROKER_URL` says where the broker is, `REELBROKER_API_KEY` who is asking; `reelbroker up` prints both. Exit codes: 0 done,
1 the broker said no or the job failed, 2 something is wrong with what was typed, 3 the job was cancelled, 130 interrupted.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from broker.client import Client, ClientError
from broker.plain import plain
from schemas.jobs import JobRequest, JobStatus, JobType, JobView

console = Console()
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Where to put the result; implies --watch.")
]
Params = Annotated[
    str,
    typer.Option(help="The type's params: a JSON file, `-` for standard input, or JSON itself."),
]
Type = Annotated[JobType, typer.Option(help="What to make.")]
Metadata = Annotated[
    list[str], typer.Option("--metadata", "-m", help="NAME=VALUE, as often as you like.")
]
CANCELLED = 3
#: Columns of a file or pipe: each job on a line of its own, and all of it.
WIDE = 1000


def submit(
    video: Annotated[
        str | None, typer.Argument(help="A file, which is uploaded, or the key of one that was.")
    ] = None,
    type: Type = JobType.FRAMING,  # the word of the API
    params: Params = "{}",
    project: Annotated[int | None, typer.Option(help="The project's number.")] = None,
    metadata: Metadata = [],  # noqa: B006  # Typer's way of saying "none"
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay until its end.")] = False,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Send a job: `reelbroker submit clip.mp4 --type framing --params crop.json --watch -o out.mp4` is the whole journey."""
    fields: dict[str, Any] = {"type": type, "params": _params(params), "metadata": _named(metadata)}
    if project is not None:
        fields["project_id"] = project
    if output is not None:
        _check_place(output)
    with _broker() as client:
        if video is not None:
            _checked(fields | {"input_key": "checked/before/the/upload.mp4"})
            fields["input_key"] = (
                _put(client, Path(video), as_json) if Path(video).is_file() else video
            )
        job = client.submit(_checked(fields))
        if watch or output is not None:
            job = _follow(client, job, as_json)
        if output is not None and job.status is JobStatus.COMPLETE:
            _fetch(client, job, output, as_json)
    _tell(job, as_json)
    _exit_as(job)


def watch(job_id: str, as_json: AsJson = False) -> None:
    """Stay with a job until its end, through lost lines and restarts of the broker."""
    with _broker() as client:
        job = _follow(client, client.get(job_id), as_json)
    _tell(job, as_json)
    _exit_as(job)


def list_jobs(
    status: Annotated[str | None, typer.Option(help="Several with commas between.")] = None,
    type: Annotated[JobType | None, typer.Option()] = None,
    project: Annotated[int | None, typer.Option()] = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    as_json: AsJson = False,
) -> None:
    """List your jobs, newest first."""
    with _broker() as client:
        found = client.jobs(limit=limit, status=status, type=type, project_id=project).jobs
    if as_json:
        print(json.dumps([job.model_dump(mode="json") for job in found], indent=2))  # noqa: T201
        return
    # Only the message gives way where a terminal is narrow: an id that is cut off cannot be copied.
    whole = [Column(name, no_wrap=True) for name in ("job", "type", "status", "age")]
    table = Table(*whole, "message", box=None, pad_edge=False)
    for job in found:
        status = (
            f"{job.status} {job.progress} %" if job.status is JobStatus.PROCESSING else job.status
        )
        told = Text(plain(job.message), no_wrap=True, overflow="ellipsis")
        table.add_row(job.job_id, job.type, status, _age(job.created_at), told)
    shown = console if console.is_terminal else Console(width=WIDE)
    shown.print(table if found else "none", highlight=False)


def cancel(job_id: str, as_json: AsJson = False) -> None:
    """Stop a job, and stop paying for it."""
    with _broker() as client:
        _tell(client.cancel(job_id), as_json)


def retry(
    job_id: str,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay until its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send a job that failed once more."""
    with _broker() as client:
        job = client.retry(job_id)
        if watch:
            job = _follow(client, job, as_json)
    _tell(job, as_json)
    _exit_as(job)


def quote(
    video: Annotated[str | None, typer.Argument(help="The key of an uploaded video.")] = None,
    type: Type = JobType.FRAMING,
    params: Params = "{}",
    seconds: Annotated[float | None, typer.Option(help="How long the source is.")] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate a job before sending it."""
    fields = {"type": type, "params": _params(params)} | ({"input_key": video} if video else {})
    with _broker() as client:
        told = client.quote(_checked(fields), source_seconds=seconds)
    if as_json:
        print(told.model_dump_json(indent=2))  # noqa: T201
        return
    cost = "" if told.cost_usd is None else f", {told.cost_usd:.4f} to {told.cost_usd_p90:.4f} USD"
    known = "" if told.source_known else " (the source's length is a guess; say --seconds)"
    console.print(
        f"{told.output_seconds:g} s of video{known}: {told.gpu_seconds:g} to {told.gpu_seconds_p90:g} GPU seconds{cost}",
        highlight=False,
        soft_wrap=True,
    )


def upload(video: Path, as_json: AsJson = False) -> None:
    """Put a video into the bucket; prints the key to submit it by."""
    if not video.is_file():
        _wrong(f"there is no file {video}")
    with _broker() as client:
        key = _put(client, video, as_json)
    print(json.dumps({"video_key": key}) if as_json else plain(key))  # noqa: T201


def download(job_id: str, output: Path, as_json: AsJson = False) -> None:
    """Fetch a job's result, and check that it is whole."""
    _check_place(output)
    with _broker() as client:
        job = client.get(job_id)
        _fetch(client, job, output, as_json)
    _tell(job, as_json)


def add_to(cli: typer.Typer, jobs: typer.Typer) -> None:
    """Gives the command line these commands; `reelbroker jobs` alone lists."""
    for command in (submit, watch, cancel, retry, quote, upload, download):
        cli.command()(command)
    jobs.command("list")(list_jobs)


# ── how it is shown ─────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _broker() -> Iterator[Client]:
    """Opens the broker of the environment; what it refuses is said in a line."""
    url, key = (
        os.environ.get("REELBROKER_URL", "http://127.0.0.1:8000"),
        os.environ.get("REELBROKER_API_KEY", ""),
    )
    try:
        with Client(url, key) as client:
            yield client
    except (ClientError, httpx.HTTPError, OSError) as error:
        told = f"{url}: {error}" if isinstance(error, httpx.HTTPError) else str(error)
        print(plain(told), file=sys.stderr)  # noqa: T201
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _put(client: Client, video: Path, quiet: bool) -> str:
    with _bar(quiet, DownloadColumn()) as bar:
        task = bar.add_task(f"Uploading {plain(video.name)}", total=video.stat().st_size)
        return client.upload(video, on_progress=lambda count: bar.advance(task, count))


def _fetch(client: Client, job: JobView, output: Path, quiet: bool) -> None:
    with _bar(quiet, DownloadColumn()) as bar:
        task = bar.add_task(
            f"Downloading {plain(output.name)}", total=job.result.bytes if job.result else None
        )
        client.download(job, output, on_progress=lambda count: bar.advance(task, count))


def _follow(client: Client, job: JobView, quiet: bool) -> JobView:
    with _bar(quiet, TaskProgressColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task(plain(job.message), total=100)
        for seen in client.watch(job.job_id):
            bar.update(task, description=plain(seen.message), completed=seen.progress)
            job = seen
    return job


def _bar(quiet: bool, *columns: Any) -> Progress:
    shown = (TextColumn("{task.description:<37}", markup=False), BarColumn(), *columns)
    return Progress(*shown, console=Console(stderr=True), disable=quiet)


def _tell(job: JobView, as_json: bool) -> None:
    if as_json:
        print(json.dumps(job.model_dump(mode="json"), indent=2))  # noqa: T201
        return
    told = f"{job.job_id}  {job.status}"
    if job.error is not None:
        told += f": {job.error} ({job.error_code})"
    elif job.result is not None:
        facts = job.result
        told += (
            f": {facts.width}x{facts.height}, {facts.duration_seconds:.2f} s, {facts.bytes:,} bytes"
        )
    if job.cost_usd is not None:
        told += f", {job.cost_usd:.4f} USD"
    console.print(plain(told), highlight=False, soft_wrap=True, markup=False)


def _age(since: str) -> str:
    """Says how long ago that was, in the largest unit that fits: a date would leave the message no room."""
    seconds = max(0.0, (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds())
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _exit_as(job: JobView) -> None:
    if job.status is JobStatus.ERROR:
        raise typer.Exit(1)
    if job.status is JobStatus.CANCELLED:
        raise typer.Exit(CANCELLED)


def _check_place(output: Path) -> None:
    """Sees to it that a file can be put there, before anything is paid for."""
    if output.is_dir() or not output.name:
        _wrong(f"{output} is a folder; name a file in it")
    if not output.absolute().parent.is_dir():
        _wrong(f"there is no folder {output.parent}")


def _params(given: str) -> Any:
    try:
        if given == "-":
            return json.load(sys.stdin)
        return json.loads(given if given.lstrip().startswith("{") else Path(given).read_text())
    except OSError as error:
        _wrong(f"--params: {error}")
    except ValueError as error:
        _wrong(f"--params: this is no JSON: {error}")


def _named(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            _wrong(f"--metadata: {pair!r} is not NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


def _checked(fields: dict[str, Any]) -> JobRequest:
    """Validates a job before anything is sent, as the broker would."""
    try:
        return JobRequest.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        told = [
            f"  /{'/'.join(str(part) for part in one['loc'])}: {one['msg']}"
            for one in error.errors()
        ]
        _wrong("\n".join(["this is no job:", *told]))


def _wrong(sentence: str) -> NoReturn:
    print(plain(sentence), file=sys.stderr)  # noqa: T201
    raise typer.Exit(2)
