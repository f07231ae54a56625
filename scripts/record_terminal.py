"""Makes docs/pictures/terminal.svg: the command line at work, on the whole system on this machine.

What a command writes goes through a terminal emulator, so that a bar that was written fifty times
is there once, as people see it. The folder that the commands run in holds nothing but their files,
so that no path of this machine is in the picture.
"""

import asyncio
import contextlib
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from io import StringIO
from itertools import groupby
from pathlib import Path

import pyte
from pyte.screens import Char
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text
from sample import sample_clip

from broker.cli.main import log_to_stderr
from broker.client import Client
from broker.embedded.stack import Stack

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "terminal.svg"
COLUMNS, ROWS = 94, 40
CROP = {
    "crop_keyframes": [
        {"time": 0, "x": 0, "y": 0, "width": 405, "height": 720},
        {"time": 5, "x": 875, "y": 0, "width": 405, "height": 720},
    ]
}
#: Long enough to be at work when the list is made.
CAPTIONS = {
    "clips": [
        {"start_time": 0, "end_time": 5, "name": name}
        for name in ("Counter-attack", "Save", "Corner", "Goal")
    ]
}
#: pyte's words for a terminal's own colours, as Rich says them; any other colour is six hexadecimal
#: digits.
OWN = {
    name: name for name in ("default", "black", "red", "green", "blue", "magenta", "cyan", "white")
} | {"brown": "yellow"}
THEME = TerminalTheme(
    (22, 27, 34),
    (201, 209, 217),
    [
        (72, 79, 88),
        (255, 123, 114),
        (63, 185, 80),
        (210, 153, 34),
        (88, 166, 255),
        (188, 140, 255),
        (57, 197, 207),
        (177, 186, 196),
    ],
)
#: Rich's own, but for its web font: a picture in a README may load nothing.
FORMAT = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix {{
  font: {char_height}px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  line-height: {line_height}px;
}}
.{unique_id}-title {{ font: bold 18px system-ui, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


class Terminal:
    """A screen, and commands that are typed at it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)

    def types(self, line: str) -> None:
        """Runs `reelbroker …` to its end and keeps what is then on the screen.

        Raises:
            CalledProcessError: the command failed, which is not what the README promises.
        """
        self._stream.feed(f"\x1b[32m$\x1b[0m \x1b[1m{line}\x1b[0m\r\n".encode())
        command = [sys.executable, "-m", "broker.cli.main", *shlex.split(line)[1:]]
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (ROWS, COLUMNS))
        with subprocess.Popen(
            command,
            cwd=self._folder,
            env=self._environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        ) as process:
            os.close(theirs)
            # Linux raises OSError when nobody writes any more.
            with contextlib.suppress(OSError):
                while written := os.read(ours, 65_536):
                    self._stream.feed(written)
        os.close(ours)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, line)
        self._stream.feed(b"\r\n")

    def lines(self) -> list[Text]:
        """Returns the screen, down to the empty line after the last command's."""
        rows = [self._screen.buffer[row] for row in range(self._screen.cursor.y)]
        return [Text.assemble(*_runs([row[column] for column in range(COLUMNS)])) for row in rows]


def _runs(chars: list[Char]) -> Iterator[tuple[str, Style]]:
    for style, run in groupby(chars, _style):
        yield "".join(char.data for char in run), style


def _style(char: Char) -> Style:
    return Style(color=OWN.get(char.fg, f"#{char.fg}"), bold=char.bold, italic=char.italics)


async def _recorded(folder: Path) -> list[Text]:
    desk = folder / "desk"
    desk.mkdir()
    shutil.copy(sample_clip(), desk / "clip.mp4")
    (desk / "crop.json").write_text(json.dumps(CROP))
    (desk / "captions.json").write_text(json.dumps(CAPTIONS))
    async with Stack(folder / "stack") as stack:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(PICTURE.parents[2]),
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "REELBROKER_URL": stack.broker_url,
            "REELBROKER_API_KEY": stack.api_key,
        }
        terminal = Terminal(desk, environment)
        await asyncio.to_thread(_journey, terminal, stack)
    return terminal.lines()


def _journey(terminal: Terminal, stack: Stack) -> None:
    terminal.types(
        "reelbroker submit clip.mp4 --type framing --params crop.json --watch -o out.mp4"
    )
    terminal.types("reelbroker submit clip.mp4 --type annotate --params captions.json")
    with Client(stack.broker_url, stack.api_key) as client:
        for seen in client.watch(client.jobs(limit=1).jobs[0].job_id):
            if seen.progress:
                break
    terminal.types("reelbroker jobs list")


def main() -> None:
    log_to_stderr("WARNING")
    with tempfile.TemporaryDirectory() as folder:
        lines = asyncio.run(_recorded(Path(folder)))
    console = Console(record=True, width=COLUMNS, file=StringIO(), color_system="truecolor")
    for line in lines:
        console.print(line, soft_wrap=True)
    PICTURE.parent.mkdir(exist_ok=True)
    picture = console.export_svg(title="reelbroker", theme=THEME, code_format=FORMAT)
    PICTURE.write_text(
        "".join(f"{line.rstrip()}\n" for line in picture.splitlines() if line.strip())
    )
    print(f"{PICTURE}: {len(lines)} lines, {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
