"""Ids of jobs: random, chosen by a client, or derived from another id, so that a repeat is one job.

Anybody can compute a derived id. It has a version that no client may choose; otherwise another user
could take the id first.
"""

import hashlib
import uuid

#: Custom UUIDs (RFC 9562, 5.8).
_DERIVED = 8
_VERSION_BIT, _VARIANT_BIT = 76, 62


def derived(*names: str) -> str:
    """Returns the id that is derived from names without slashes."""
    number = int.from_bytes(hashlib.sha256("/".join(names).encode()).digest()[:16])
    number = number & ~(0xF << _VERSION_BIT) & ~(0b11 << _VARIANT_BIT)
    return str(uuid.UUID(int=number | _DERIVED << _VERSION_BIT | 0b10 << _VARIANT_BIT))


def chosen(text: str) -> str:
    """Returns a client's UUID in its usual spelling; raises ValueError where it is not allowed."""
    known = uuid.UUID(text)
    if known.version == _DERIVED:
        raise ValueError("a UUID of version 8 cannot be chosen")
    return str(known)
