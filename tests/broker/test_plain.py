"""Text of others in a terminal and in a log: readable, and without power over what shows it."""

import pytest
import structlog

from broker.cli.main import log_to_stderr
from broker.plain import plain

ATTACK = "\x1b]0;owned\x07 \x9b2J a\rb \u202egpj.exe\u2069 \x00"


@pytest.mark.abuse
def test_what_steers_a_terminal_is_spelled_out():
    """Escape sequences of both kinds, carriage returns, and overrides of the direction."""
    shown = plain(ATTACK)
    assert shown == r"\x1b]0;owned\x07 \x9b2J a\rb \u202egpj.exe\u2069 \x00"
    assert plain("größe\n\t日本 שיר") == "größe\n\t日本 שיר"


@pytest.mark.abuse
def test_a_log_line_steers_no_terminal(capsys):
    """An operator looks at it with `cat`: what a name or an answer has in it is shown, on one
    line.
    """
    log_to_stderr()
    structlog.get_logger().info("ended", error=f"{ATTACK}\naction=forged", job_id="a")
    structlog.reset_defaults()
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.rstrip("\n").isprintable()
    assert r"\x9b2J" in told
