"""Asks the real R2, RunPod and Modal for each fact that the code assumes and nobody could see.

It reads the broker's settings, runs one short job on each provider, and prints each fact, what the
code assumes, what was found, and what depends on it. It removes what it made. The exit code is 1
where something is not as assumed. `--embedded` tries itself on a stack on this machine.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import structlog
from live_facts import NOT_TRIED, Fact, Lab, clean, facts, found, prepare
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from sample import sample_clip

from broker.bucket import open_bucket
from broker.embedded.stack import Stack
from broker.providers.registry import open_providers
from broker.settings import Settings

#: A cold start of some minutes and a run of seconds on each provider, at 0.0004 USD a second.
MOST_USD = 0.10
console = Console(highlight=False, soft_wrap=True)


async def tried(
    settings: Settings, http: httpx.AsyncClient | None = None
) -> list[tuple[Fact, str]]:
    """Tries every fact about the bucket and the providers of the settings; removes what it made."""
    results = []
    async with (
        http or httpx.AsyncClient(timeout=60) as client,
        open_providers(settings, client) as providers,
    ):
        key = settings.runpod_api_key
        lab = Lab(
            client,
            open_bucket(settings),
            {
                place.provider: (providers.named(place.provider), place.target)
                for place in reversed(providers.places)
            },
            "" if key is None else key.get_secret_value(),
            sample_clip(),
        )
        try:
            await prepare(lab)
            for fact in facts(tuple(sorted(lab.providers, reverse=True))):
                console.print(f"[dim]{fact.what} ...[/dim]", end="\r")
                results.append((fact, await found(lab, fact)))
        finally:
            removed = await clean(lab)
    console.print(f"{removed} objects removed from the bucket{' ' * 40}")
    return results


def show(results: list[tuple[Fact, str]]) -> int:
    """Prints the table; returns how many facts are not as assumed."""
    table = Table("", "fact", "assumed", "found", "what depends on it")
    differ = 0
    for fact, value in results:
        is_fine = fact.is_as_assumed(value)
        differ += not is_fine
        mark = "[green]ok[/green]" if is_fine else "[red]NO[/red]"
        table.add_row(mark, f"{fact.name}\n{fact.what}", fact.assumed, value, fact.depends)
    Console(width=160, highlight=False).print(table)
    console.print("Not tried:")
    for line in NOT_TRIED:
        console.print(f"  {line}")
    console.print(f"{len(results) - differ} of {len(results)} facts are as assumed")
    return differ


@contextlib.asynccontextmanager
async def embedded() -> AsyncIterator[Settings]:
    """Yields the settings of a stack with both providers."""
    with tempfile.TemporaryDirectory(prefix="reelbroker-live-") as folder:
        async with Stack(Path(folder), providers=("runpod", "modal")) as stack:
            environment = stack._broker_command()[1]
            os.environ["MODAL_SERVER_URL"] = environment["MODAL_SERVER_URL"]
            yield Settings.model_validate(environment)


async def _embedded() -> list[tuple[Fact, str]]:
    async with embedded() as settings:
        return await tried(settings)


def main() -> None:
    """Prints the facts."""
    parser = argparse.ArgumentParser(prog="scripts/try-live", description=__doc__)
    parser.add_argument("--yes", action="store_true", help="do not ask before money is spent")
    parser.add_argument("--embedded", action="store_true", help="on a stack on this machine")
    chosen = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("ERROR"))
    if chosen.embedded:
        sys.exit(bool(show(asyncio.run(_embedded()))))
    os.chdir(os.environ.get("CALLED_FROM", "."))
    try:
        settings = Settings()
    except ValidationError as error:
        sys.exit(str(error))
    names = " and ".join(dict.fromkeys(entry.name for entry in settings.provider_entries))
    console.print(
        f"This runs one short job on {names}, cancels a few more, and sends some 200 requests.\n"
        f"The jobs cost about {MOST_USD / 10:.2f} USD, and {MOST_USD:.2f} USD at most."
    )
    if not chosen.yes and input("Go on? [y/N] ").strip().lower() != "y":
        sys.exit("Nothing was sent.")
    sys.exit(bool(show(asyncio.run(tried(settings)))))


if __name__ == "__main__":
    main()
