"""Text of others, as a terminal may show it: characters that would steer the terminal, or turn the text around, are spelled out."""

import re
from collections.abc import MutableMapping
from typing import Any

#: All control characters but tab and line feed, and those that set the direction of what follows.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    r"""Returns the text with each such character as `\x9b` or `\u202e`."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def plain_event(
    _logger: Any, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A structlog processor: so that no name or message of others steers the terminal that shows a log."""
    return {
        name: plain(value) if isinstance(value, str) else value for name, value in event.items()
    }
