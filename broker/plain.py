"""Foreign text for a terminal: control characters and text direction marks are escaped."""

import re
from collections.abc import MutableMapping
from typing import Any

#: All control characters but tab and line feed, and the marks of text direction.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    r"""Returns the text with each such character as `\x9b` or `\u202e`."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def plain_event(
    _logger: Any, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A structlog processor that escapes foreign text, so that a log cannot control a terminal."""
    return {
        name: plain(value) if isinstance(value, str) else value for name, value in event.items()
    }
