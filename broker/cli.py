"""The `reelbroker` command: `serve` runs the broker, `up` the whole stack on this machine."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvicorn
from pydantic import ValidationError
from rich.console import Console

from broker.app import create_app
from broker.embedded.stack import Stack, run_until_signalled
from broker.errors import StackError
from broker.settings import Settings

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()
Folder = Annotated[Path, typer.Option(help="Where the stack keeps its data, keys and logs.")]


@cli.command()
def serve() -> None:
    """Run the broker; settings come from the environment (see .env.example)."""
    log_to_stderr()
    try:
        settings = Settings()
    except ValidationError as error:
        for found in error.errors():
            print(f"{found['loc'][0]}: {found['msg']}", file=sys.stderr)  # noqa: T201
        raise typer.Exit(2) from None
    uvicorn.run(
        create_app(settings), host=settings.host, port=settings.port, access_log=False, log_level="warning"
    )


@cli.command()
def up(
    folder: Folder = Path(".reelbroker"),
    workers: Annotated[int, typer.Option(min=1, max=16)] = 1,
    port: Annotated[int | None, typer.Option(help="The broker's port; a free one by default.")] = None,
) -> None:
    """Run store, endpoint, workers and broker on this machine until Ctrl-C."""
    log_to_stderr()
    try:
        asyncio.run(run_until_signalled(_up(folder, workers, port)))
    except StackError as error:
        console.print(f"[red]The stack could not start:[/red] {error}", highlight=False)
        raise typer.Exit(1) from None


async def _up(folder: Path, workers: int, port: int | None) -> None:
    async with Stack(folder, workers, port) as stack:
        console.print(
            f"Reelbroker is up at {stack.broker_url}   (logs: {stack.folder / 'logs'})", soft_wrap=True
        )
        console.print(
            f"  export REELBROKER_URL={stack.broker_url} REELBROKER_API_KEY={stack.api_key}", soft_wrap=True
        )
        console.print(
            '  curl -H "Authorization: Bearer $REELBROKER_API_KEY" $REELBROKER_URL/api/jobs', soft_wrap=True
        )
        console.print("Ctrl-C stops everything.")
        await asyncio.Event().wait()


def log_to_stderr(level: str = "INFO") -> None:
    """Writes one line an event, `level` and above, to standard error."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
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
