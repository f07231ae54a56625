"""The ids of jobs: drawn by us or by a client, or derived from another id, so that asking twice makes one job.

Anybody can compute a derived id. It is therefore of a version that no client may choose: else another user could take it first, and the
one whom it belongs to would find it in use.
"""

import hashlib
import uuid

#: UUIDs of one's own making (RFC 9562, 5.8).
_DERIVED = 8
_VERSION_BIT, _VARIANT_BIT = 76, 62


def derived(*names: str) -> str:
    """Returns the id that follows from names, none of which has a slash in it."""
    number = int.from_bytes(hashlib.sha256("/".join(names).encode()).digest()[:16])
    number = number & ~(0xF << _VERSION_BIT) & ~(0b11 << _VARIANT_BIT)
    return str(uuid.UUID(int=number | _DERIVED << _VERSION_BIT | 0b10 << _VARIANT_BIT))


def chosen(text: str) -> str:
    """Returns a UUID that a client has chosen, in its usual spelling; raises ValueError where it may be none."""
    known = uuid.UUID(text)
    if known.version == _DERIVED:
        raise ValueError("a UUID of version 8 cannot be chosen")
    return str(known)
