"""The `reelbroker` command: `serve` runs the broker, `worker` a GPU worker, `up` all on this machine; the rest is for operators.

What reads works beside a running broker, what writes to the database only without one: the broker is its one writer.
"""

import asyncio
import contextlib
import importlib.util
import json
import os
import resource
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import structlog
import typer
import uvicorn
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import Engine

from broker.app import create_app
from broker.bucket import open_bucket
from broker.cli import terminal
from broker.cli.terminal import AsJson
from broker.clock import now_ms
from broker.connection import Connection
from broker.embedded.stack import Guest, Stack, run_until_signalled
from broker.errors import BrokerError, StackError
from broker.ops import repair
from broker.ops.doctor import examine
from broker.ops.overview import orphans
from broker.ops.retention import Retention
from broker.plain import plain, plain_event
from broker.settings import Settings
from broker.store.engine import copy_database, open_engine, reading, restore_database
from broker.store.jobs import JobStore
from broker.store.uploads import UploadStore

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
jobs = typer.Typer(
    no_args_is_help=True, help="List your jobs; look at jobs, of all users, in the database."
)
keys = typer.Typer(no_args_is_help=True, help="Who may use the running broker.")
storage = typer.Typer(no_args_is_help=True, help="The bucket.")
cli.add_typer(jobs, name="jobs")
cli.add_typer(keys, name="keys")
cli.add_typer(storage, name="storage")
terminal.add_to(cli, jobs)
console = Console()
#: How long requests that are under way may take once the broker is told to end, and how long a client's WebSocket message may be.
STOP_SECONDS, MAX_SOCKET_BYTES = 5, 65_536
#: How many files are enough for the most connections that we take, and how many of them are left for all else.
MOST_FILES, OWN_FILES = 10_240, 256
#: Without these a worker cannot begin. RunPod sets the last one; where it is missing, the SDK runs `test_input.json` and ends.
WORKER_NEEDS = (
    "R2_ENDPOINT",
    "R2_ACCESS_KEY_ID",
    "R2_SECRET_ACCESS_KEY",
    "R2_BUCKET_NAME",
    "RUNPOD_WEBHOOK_GET_JOB",
)
#: How long those that were accepted last have to say what they want.
LAST_WORDS_SECONDS = 0.3
#: The first file descriptor behind the standard ones.
FIRST_INHERITED = 3
Folder = Annotated[Path, typer.Option(help="Where the stack keeps its data, keys and logs.")]


@cli.command()
def serve() -> None:
    """Run the broker; settings come from the environment (see .env.example).

    With systemd's socket activation, connections wait in the socket while the broker is restarted, and none is refused.
    """
    log_to_stderr()
    settings = _settings()
    with _told(), _writing(settings):
        pass  # what is wrong with it is better said in a sentence than by the traceback of a server that ends
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=STOP_SECONDS,
        ws_max_size=MAX_SOCKET_BYTES,
        http=Connection,
        limit_concurrency=_room_for_connections(),
    )
    Server(config).run(_inherited_sockets())


class Server(uvicorn.Server):
    """uvicorn, which hangs up on a connection that it has accepted and not yet read when it is told to end."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()  # no more are accepted
        await asyncio.sleep(LAST_WORDS_SECONDS)
        await super().shutdown(sockets)


def _room_for_connections() -> int:
    """Raises the number of files that may be open as far as we may; returns for how many connections that is enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(most - OWN_FILES, most // 2)


def _inherited_sockets() -> list[socket.socket] | None:
    """Returns the listening socket that was handed to us, as sd_listen_fds(3) tells; None: listen by ourselves."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    return [socket.socket(fileno=FIRST_INHERITED)]


@cli.command()
def up(
    folder: Folder = Path(".reelbroker"),
    workers: Annotated[int, typer.Option(min=1, max=16)] = 1,
    port: Annotated[
        int | None, typer.Option(help="The broker's port; a free one by default.")
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(help="Of a web page that may call the broker: http://localhost:5173."),
    ] = None,
) -> None:
    """Run store, endpoint, workers and broker on this machine until Ctrl-C."""
    log_to_stderr()
    try:
        asyncio.run(run_until_signalled(_up(Stack(folder, workers, port, origin or ()))))
    except StackError as error:
        told = escape(plain(str(error)))
        console.print(f"[red]The stack could not start:[/red] {told}", highlight=False)
        raise typer.Exit(1) from None


async def _up(stack: Stack) -> None:
    async with stack:
        console.print(f"Reelbroker is up at {stack.broker_url}", soft_wrap=True)
        console.print(f"  Open {stack.broker_url}/#key={stack.api_key}", soft_wrap=True)
        console.print(
            f"  export REELBROKER_URL={stack.broker_url} REELBROKER_API_KEY={stack.api_key}",
            soft_wrap=True,
        )
        console.print(
            '  curl -H "Authorization: Bearer $REELBROKER_API_KEY" $REELBROKER_URL/api/jobs',
            soft_wrap=True,
        )
        console.print(
            f"Logs are in {stack.folder / 'logs'}. Ctrl-C stops everything.", soft_wrap=True
        )
        await asyncio.Event().wait()


@cli.command()
def worker(
    folder: Annotated[
        Path | None, typer.Option(help="Join the stack that `reelbroker up` runs from this folder.")
    ] = None,
) -> None:
    """Run one GPU worker until Ctrl-C: for RunPod, whose containers say what it needs, or for a stack on this machine."""
    if not all(importlib.util.find_spec(package) for package in ("gpu_worker", "runpod", "torch")):
        _refuse("the worker is not installed: pip install 'reelbroker[worker]'")
    if folder is not None:
        log_to_stderr()
        try:
            asyncio.run(run_until_signalled(_join(folder)))
        except StackError as error:
            told = escape(plain(str(error)))
            console.print(
                f"[red]The worker could not join:[/red] {told}", highlight=False, soft_wrap=True
            )
            raise typer.Exit(1) from None
    elif missing := [name for name in WORKER_NEEDS if not os.environ.get(name)]:
        _refuse(
            f"not in the environment: {', '.join(missing)} (--folder joins a stack on this machine)"
        )
    else:
        # In its place, and not as its child: the platform's signals are the worker's own.
        os.execv(sys.executable, [sys.executable, "-m", "gpu_worker.handler"])  # noqa: S606


async def _join(folder: Path) -> None:
    async with Guest(folder) as guest:
        console.print(
            f"{guest.name} works for {guest.broker_url}   (log: {guest.log})", soft_wrap=True
        )
        console.print("Ctrl-C stops it.")
        await guest.until_over()
    console.print("The stack has ended, and its guest with it.")


@cli.command()
def backup(target: Path) -> None:
    """Copy the SQLite database, also while the broker runs."""
    with _told():
        copy_database(_settings().database_url, target)
        console.print(
            f"{target}: {target.stat().st_size:,} bytes, checked", highlight=False, soft_wrap=True
        )


@cli.command()
def restore(source: Path) -> None:
    """Put a copy in the place of the database, then look in the bucket for what has finished since."""
    with _told():
        settings = _settings()
        restore_database(source, settings.database_url)
        console.print("Restored. Looking for results that are newer ...")
    reconcile(dry_run=False)


@cli.command()
def reconcile(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell, also beside a running broker.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look at every open job once, now. A running broker does so by itself."""
    settings = _settings()
    log_to_stderr("ERROR")
    with _told(), reading(settings.database_url) if dry_run else _writing(settings) as engine:
        bucket = open_bucket(settings)
        findings = asyncio.run(repair.reconcile(settings, engine, bucket, dry_run))
    columns = ("job", "was", "would be" if dry_run else "is", "message")
    _print([dict(zip(columns, vars(found).values(), strict=True)) for found in findings], as_json)


@cli.command()
def drain(off: Annotated[bool, typer.Option("--off", help="Send jobs again.")] = False) -> None:
    """Have the running broker take and send no new jobs; those that run go on."""
    _ask_broker("POST", "/api/operations/drain", {"on": not off})
    console.print(
        "Jobs are taken again." if off else "No new jobs are taken or sent; those that run go on."
    )


@cli.command()
def sweep(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be removed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove from the bucket what no job points to any more. A running broker does so daily."""
    settings = _settings()
    with _told(), reading(settings.database_url) if dry_run else _writing(settings) as engine:
        uploads = UploadStore(engine)
        retention = Retention(settings, JobStore(engine), uploads, open_bucket(settings))
        if dry_run:
            listed = [{"key": found.key, "bytes": found.bytes} for found in retention.removable()]
            parts = [{"key": left.key, "bytes": None} for left in retention.unfinished()]
            _print(listed + parts, as_json)
        else:
            console.print(f"{retention.sweep()} objects removed")


@cli.command()
def doctor(as_json: AsJson = False) -> None:
    """Check configuration, database, bucket, endpoint and worker, and say how to mend what is not in order."""
    settings = _settings()
    log_to_stderr("CRITICAL")
    findings = []
    for found in examine(settings):
        findings.append(found)
        if not as_json:
            mark = "[green]ok[/green]  " if found.ok else "[red]no[/red]  "
            console.print(
                f"{mark}[bold]{found.what:24}[/bold] {escape(plain(found.told))}",
                highlight=False,
                soft_wrap=True,
            )
            if not found.ok:
                console.print(
                    f"    {'':24} [yellow]{escape(plain(found.mend))}[/yellow]",
                    highlight=False,
                    soft_wrap=True,
                )
    if as_json:
        print(json.dumps([asdict(found) for found in findings], indent=2))  # noqa: T201
    if not all(found.ok for found in findings):
        raise typer.Exit(1)


@jobs.command("show")
def show_job(job_id: str, as_json: AsJson = False) -> None:
    """A job's whole story: what it is, its attempts, and each event."""
    with _told(), reading(_settings().database_url) as engine:
        story = repair.story(JobStore(engine), job_id)
    if as_json:
        print(json.dumps(story, indent=2))  # noqa: T201
        return
    for name, value in story["job"].items():
        if value is not None:
            console.print(
                f"[bold]{name:22}[/bold] {escape(plain(str(value)))}",
                highlight=False,
                soft_wrap=True,
            )
    for part in ("attempts", "events"):
        console.print(f"\n[bold]{part}[/bold]")
        _print(story[part], as_json=False)


@jobs.command("orphans")
def show_orphans(as_json: AsJson = False) -> None:
    """Given-up attempts that may still run at the provider, and what they may have cost so far."""
    settings = _settings()
    with _told(), reading(settings.database_url) as engine:
        found = orphans(JobStore(engine), settings.gpu_prices, now_ms())
    _print([orphan.model_dump(mode="json") for orphan in found], as_json)


@keys.command("create")
def create_key(
    user: Annotated[str, typer.Argument(help="The user whose jobs it is for.")],
    name: Annotated[str, typer.Option(help="What you will know it by.")] = "",
    admin: Annotated[
        bool, typer.Option("--admin", help="May also do what concerns all users.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a key for a user; it is shown this once."""
    made = _ask_broker("POST", "/api/keys", {"user_id": user, "name": name, "admin": admin})
    if as_json:
        _print([made], as_json)
    else:
        console.print(
            f"{made['key']}   (id {made['id']}; it cannot be shown again)", soft_wrap=True
        )


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List all keys, without what they are."""
    _print(_ask_broker("GET", "/api/keys")["keys"], as_json)


@keys.command("revoke")
def revoke_key(key_id: str) -> None:
    """Let a key in no more."""
    _ask_broker("DELETE", f"/api/keys/{key_id}")
    console.print(f"{key_id} is revoked", highlight=False)


@storage.command("setup")
def set_up_storage() -> None:
    """Give the bucket its rules: which web pages may use presigned URLs, and that unfinished uploads go after a day."""
    settings = _settings()
    with _told():
        open_bucket(settings).set_up(settings.page_origins)
    origins = ", ".join(settings.page_origins)
    console.print(
        f"{settings.r2_bucket_name}: pages that may put and get: {origins}",
        highlight=False,
        soft_wrap=True,
    )
    console.print("unfinished multipart uploads are removed after a day")


def _ask_broker(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Asks the running broker of the settings, as its admin: on SQLite it alone may write."""
    settings = _settings()
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}{path}"
    key = settings.api_key.get_secret_value() if settings.api_key else ""
    try:
        reply = httpx.request(
            method, url, json=body, headers={"Authorization": f"Bearer {key}"} if key else {}
        )
        if reply.is_error:
            raise BrokerError(reply.json().get("detail", reply.text))
        return reply.json() if reply.content else None
    except (httpx.HTTPError, ValueError, BrokerError) as error:
        told = f"[red]The broker at {url} did not do it:[/red] {escape(plain(str(error)))}"
        console.print(told, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        for found in error.errors():
            name = ".".join(str(part) for part in found["loc"])
            print(f"{name}: {found['msg']}".removeprefix(": "), file=sys.stderr)  # noqa: T201
        raise typer.Exit(2) from None


def _refuse(sentence: str) -> NoReturn:
    print(sentence, file=sys.stderr)  # noqa: T201
    raise typer.Exit(2)


@contextlib.contextmanager
def _writing(settings: Settings) -> Iterator[Engine]:
    engine = open_engine(settings.database_url)
    try:
        yield engine
    finally:
        engine.dispose()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Says what went wrong in a line, and exits with 1."""
    try:
        yield
    except BrokerError as error:
        console.print(f"[red]{escape(plain(str(error)))}[/red]", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=2))  # noqa: T201
        return
    if not rows:
        console.print("none")
        return
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            *("" if value is None else escape(plain(str(value))) for value in row.values())
        )
    console.print(table, highlight=False, soft_wrap=not console.is_terminal)


def log_to_stderr(level: str = "INFO") -> None:
    """Writes one line an event, `level` and above, to standard error."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            plain_event,
            structlog.processors.EventRenamer("action"),
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "action"], drop_missing=True
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def main() -> None:
    """Entry point of the console script."""
    cli()


if __name__ == "__main__":
    main()
