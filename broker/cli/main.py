"""The `reelbroker` command.

`serve` runs the broker, `worker` a GPU worker, `up` everything on this machine. The other commands
are for operators. Commands that only read work beside a running broker. Commands that write to the
database need a stopped broker, since the database takes one writer.
"""

import asyncio
import contextlib
import importlib.util
import os
import resource
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import httpx
import structlog
import typer
import uvicorn
from pydantic import ValidationError
from sqlalchemy import Engine

from broker.app import create_app
from broker.bucket import open_bucket
from broker.cli import terminal
from broker.cli.output import (
    AsJson,
    console,
    exit_on_error,
    exit_with,
    print_json,
    print_rows,
    safe_text,
)
from broker.clock import now_ms
from broker.connection import Connection
from broker.embedded.endpoint import WORKER_PACKAGES, WORKER_VARIABLES
from broker.embedded.stack import Guest, Stack, run_until_signalled
from broker.errors import BrokerError
from broker.ops import repair
from broker.ops.doctor import examine
from broker.ops.overview import orphans
from broker.ops.retention import Retention
from broker.plain import plain_event
from broker.settings import Settings, variable
from broker.store.backup import copy_database, restore_database
from broker.store.engine import open_engine, reading
from broker.store.jobs import JobStore
from broker.store.uploads import UploadStore

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
jobs = typer.Typer(no_args_is_help=True, help="List your jobs; show jobs of all users.")
keys = typer.Typer(no_args_is_help=True, help="Manage the users' keys of the running broker.")
storage = typer.Typer(no_args_is_help=True, help="Manage the bucket.")
cli.add_typer(jobs, name="jobs")
cli.add_typer(keys, name="keys")
cli.add_typer(storage, name="storage")
terminal.add_to(cli, jobs)
#: The time for open requests when the broker stops, and the size of a client's WebSocket message.
STOP_SECONDS, MAX_SOCKET_BYTES = 5, 65_536
#: How many open files suffice for all connections, and how many of them are for other uses.
MOST_FILES, OWN_FILES = 10_240, 256
#: How long a stopping broker waits for the requests of the last connections.
LAST_REQUESTS_SECONDS = 0.3
#: The first file descriptor after the standard ones.
FIRST_INHERITED = 3
Folder = Annotated[Path, typer.Option(help="The folder for data, keys and logs.")]
Origins = Annotated[
    list[str] | None, typer.Option(help="A page that may call the broker: http://localhost:5173.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing; list the changes.")]


class ProviderName(StrEnum):
    """The providers that run on one machine."""

    RUNPOD = "runpod"
    MODAL = "modal"


@cli.command()
def serve() -> None:
    """Run the broker; settings come from the environment (see .env.example).

    With systemd's socket activation, connections wait in the socket during a restart.
    """
    log_to_stderr()
    settings = _settings()
    # A database that does not open ends the command with one line instead of a traceback.
    with _database(settings, writes=True):
        pass
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
    """Answers the connections that uvicorn has accepted and not yet read before a stop."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await asyncio.sleep(LAST_REQUESTS_SECONDS)
        await super().shutdown(sockets)


def _room_for_connections() -> int:
    """Raises the limit of open files; returns the number of connections that the limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(most - OWN_FILES, most // 2)


def _inherited_sockets() -> list[socket.socket] | None:
    """Returns the listening socket that systemd passes, by the rules of sd_listen_fds(3)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    return [socket.socket(fileno=FIRST_INHERITED)]


@cli.command()
def up(
    folder: Folder = Path(".reelbroker"),
    workers: Annotated[int, typer.Option(min=1, max=16)] = 1,
    port: Annotated[int | None, typer.Option(help="The broker's port; free by default.")] = None,
    origin: Origins = None,
    provider: Annotated[
        list[ProviderName] | None,
        typer.Option(help="Run this provider, or several; RunPod's by default."),
    ] = None,
) -> None:
    """Run store, provider, workers and broker on this machine until Ctrl-C."""
    log_to_stderr()
    chosen = [one.value for one in provider or [ProviderName.RUNPOD]]
    with exit_on_error("The stack could not start:"):
        stack = Stack(folder, workers, port, origin or (), chosen)
        asyncio.run(run_until_signalled(_up(stack)))


async def _up(stack: Stack) -> None:
    async with stack:
        console.print(
            f"Reelbroker is up at {stack.broker_url}\n"
            f"  Open {stack.broker_url}/#key={stack.api_key}\n"
            f"  export REELBROKER_URL={stack.broker_url} REELBROKER_API_KEY={stack.api_key}\n"
            '  curl -H "Authorization: Bearer $REELBROKER_API_KEY" $REELBROKER_URL/api/jobs\n'
            f"Logs are in {stack.folder / 'logs'}. Ctrl-C stops everything."
        )
        await asyncio.Event().wait()


@cli.command()
def worker(
    folder: Annotated[
        Path | None, typer.Option(help="Join the stack that `reelbroker up` runs from this folder.")
    ] = None,
) -> None:
    """Run one GPU worker until Ctrl-C, in a provider's container or for a stack on this machine."""
    if not all(importlib.util.find_spec(package) for package in WORKER_PACKAGES):
        exit_with("the worker is not installed: pip install 'reelbroker[worker]'")
    if folder is not None:
        log_to_stderr()
        with exit_on_error("The worker could not join:"):
            asyncio.run(run_until_signalled(_join(folder)))
    elif missing := [name for name in WORKER_VARIABLES if not os.environ.get(name)]:
        hint = "(--folder joins a stack on this machine)"
        exit_with(f"not in the environment: {', '.join(missing)} {hint}")
    else:
        # The worker replaces this process, so that the platform's signals reach the worker.
        os.execv(sys.executable, [sys.executable, "-m", "gpu_worker.handler"])  # noqa: S606


async def _join(folder: Path) -> None:
    async with Guest(folder) as guest:
        console.print(f"{guest.name} works for {guest.broker_url}   (log: {guest.log})")
        console.print("Ctrl-C stops it.")
        await guest.until_over()
    console.print("The stack has ended, and its guest with it.")


@cli.command()
def backup(target: Path) -> None:
    """Copy the SQLite database. The broker may run meanwhile."""
    with exit_on_error():
        copy_database(_settings().database_url, target)
        console.print(f"{target}: {target.stat().st_size:,} bytes, checked")


@cli.command()
def restore(source: Path) -> None:
    """Replace the database by a copy, then read newer results from the bucket."""
    with exit_on_error():
        restore_database(source, _settings().database_url)
        console.print("Restored. Looking for results that are newer ...")
    reconcile(dry_run=False)


@cli.command()
def reconcile(dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Check every open job once, now. A running broker does so by itself."""
    settings = _settings()
    log_to_stderr("ERROR")
    with _database(settings, writes=not dry_run) as engine:
        bucket = open_bucket(settings)
        findings = asyncio.run(repair.reconcile(settings, engine, bucket, dry_run))
    columns = ("job", "was", "would be" if dry_run else "is", "message")
    rows = [dict(zip(columns, vars(found).values(), strict=True)) for found in findings]
    print_rows(rows, as_json)


@cli.command()
def drain(off: Annotated[bool, typer.Option("--off", help="Send jobs again.")] = False) -> None:
    """Stop the running broker from taking and sending new jobs; running jobs go on."""
    _call_broker("POST", "/api/operations/drain", {"on": not off})
    stopped = "No new jobs are taken or sent; those that run go on."
    console.print("Jobs are taken again." if off else stopped)


@cli.command()
def sweep(dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Remove objects from the bucket that no job needs. A running broker does so daily."""
    settings = _settings()
    with _database(settings, writes=not dry_run) as engine:
        retention = Retention(
            settings, JobStore(engine), UploadStore(engine), open_bucket(settings)
        )
        if dry_run:
            listed = [{"key": found.key, "bytes": found.bytes} for found in retention.removable()]
            parts = [{"key": left.key, "bytes": None} for left in retention.unfinished()]
            print_rows(listed + parts, as_json)
        else:
            console.print(f"{retention.sweep()} objects removed")


@cli.command()
def doctor(as_json: AsJson = False) -> None:
    """Check configuration, database, bucket, endpoint and worker, and print how to fix problems."""
    settings = _settings()
    log_to_stderr("CRITICAL")
    findings = []
    for found in examine(settings):
        findings.append(found)
        if not as_json:
            mark = "[green]ok[/green]" if found.ok else "[red]no[/red]"
            console.print(f"{mark}  [bold]{found.what:24}[/bold] {safe_text(found.report)}")
            if not found.ok:
                console.print(f"    {'':24} [yellow]{safe_text(found.remedy)}[/yellow]")
    if as_json:
        print_json([asdict(found) for found in findings])
    if not all(found.ok for found in findings):
        raise typer.Exit(1)


@jobs.command("show")
def show_job(job_id: str, as_json: AsJson = False) -> None:
    """Show a job, its attempts and its events."""
    with _database(_settings()) as engine:
        story = repair.story(JobStore(engine), job_id)
    if as_json:
        print_json(story)
        return
    for name, value in story["job"].items():
        if value is not None:
            console.print(f"[bold]{name:22}[/bold] {safe_text(value)}")
    for part in ("attempts", "events"):
        console.print(f"\n[bold]{part}[/bold]")
        print_rows(story[part], as_json=False)


@jobs.command("orphans")
def show_orphans(as_json: AsJson = False) -> None:
    """List abandoned attempts that may still run at the provider, and their highest cost."""
    settings = _settings()
    with _database(settings) as engine:
        found = orphans(JobStore(engine), settings.gpu_prices, now_ms())
    print_rows([orphan.model_dump(mode="json") for orphan in found], as_json)


@keys.command("create")
def create_key(
    user: Annotated[str, typer.Argument(help="The user whose jobs the key opens.")],
    name: Annotated[str, typer.Option(help="A name that `keys list` shows.")] = "",
    admin: Annotated[bool, typer.Option("--admin", help="Allow admin calls too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create a key for a user. The broker shows the key only once."""
    made = _call_broker("POST", "/api/keys", {"user_id": user, "name": name, "admin": admin})
    if as_json:
        print_rows([made], as_json)
    else:
        console.print(f"{made['key']}   (id {made['id']}; it cannot be shown again)")


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List all keys by id, user and name."""
    print_rows(_call_broker("GET", "/api/keys")["keys"], as_json)


@keys.command("revoke")
def revoke_key(key_id: str) -> None:
    """Revoke a key."""
    _call_broker("DELETE", f"/api/keys/{key_id}")
    console.print(f"{key_id} is revoked")


@storage.command("setup")
def set_up_storage() -> None:
    """Set the bucket's rules: which pages may use presigned URLs, a day for unfinished uploads."""
    settings = _settings()
    with exit_on_error():
        open_bucket(settings).set_up(settings.page_origins)
    origins = ", ".join(settings.page_origins)
    console.print(f"{settings.r2_bucket_name}: pages that may put and get: {origins}")
    console.print("unfinished multipart uploads are removed after a day")


def _call_broker(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Calls the running broker of the settings as its admin: on SQLite only the broker writes."""
    settings = _settings()
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}"
    key = settings.api_key.get_secret_value() if settings.api_key else ""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with exit_on_error(f"The broker at {url}{path} did not do it:", httpx.HTTPError, ValueError):
        reply = httpx.request(method, url + path, json=body, headers=headers)
        if reply.is_error:
            raise BrokerError(reply.json().get("detail", reply.text))
        return reply.json() if reply.content else None


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        lines = [
            (".".join(variable(str(word)) for word in one["loc"]), one["msg"])
            for one in error.errors()
        ]
        exit_with("\n".join(f"{name}: {text}".removeprefix(": ") for name, text in lines))


@contextlib.contextmanager
def _database(settings: Settings, *, writes: bool = False) -> Iterator[Engine]:
    """Opens the database. Errors of the database or the bucket end the command with 1."""
    with exit_on_error():
        if not writes:
            with reading(settings.database_url) as engine:
                yield engine
            return
        engine = open_engine(settings.database_url)
        try:
            yield engine
        finally:
            engine.dispose()


def log_to_stderr(level: str = "INFO") -> None:
    """Logs events of `level` and above to standard error, each on one line."""
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
    """Runs the command line; the entry point of the console script."""
    cli()


if __name__ == "__main__":
    main()
