"""How commands print: text for people, JSON for programs, and each error in one line."""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from broker.errors import BrokerError
from broker.plain import plain

console = Console(highlight=False, soft_wrap=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def safe_text(value: Any) -> str:
    """Returns a value as text that changes neither the terminal nor the markup around the text."""
    return escape(plain(str(value)))


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))  # noqa: T201


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Prints a table, or the rows as JSON."""
    if as_json:
        print_json(rows)
    elif not rows:
        console.print("none")
    else:
        table = Table(*rows[0], box=None, pad_edge=False)
        for row in rows:
            table.add_row(*("" if value is None else safe_text(value) for value in row.values()))
        console.print(table, soft_wrap=not console.is_terminal)


def exit_with(message: str, code: int = 2) -> NoReturn:
    """Prints a message to standard error and exits. Code 2 means: the command line is wrong."""
    print(plain(message), file=sys.stderr)  # noqa: T201
    raise typer.Exit(code)


@contextlib.contextmanager
def exit_on_error(failed: str = "", *others: type[Exception]) -> Iterator[None]:
    """Prints a broker's error, or one of `others`, in one line and exits with 1."""
    kinds: tuple[type[Exception], ...] = (BrokerError, *others)
    try:
        yield
    except kinds as error:
        text = safe_text(error)
        console.print(f"[red]{safe_text(failed)}[/red] {text}" if failed else f"[red]{text}[/red]")
        raise typer.Exit(1) from None
