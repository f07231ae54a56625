"""Free ports on loopback."""

import contextlib
import itertools
import random
import socket

#: Below the ports of outgoing connections (Linux: from 32768). Such a connection could take a port
#: before its server listens.
_RANGE = range(20_000, 32_768)


def is_free(port: int) -> bool:
    """Returns whether a server can listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _binds(probe, port)


def free_ports(count: int) -> list[int]:
    """Returns distinct free ports. Each stays bound until the last one is found."""
    with contextlib.ExitStack() as bound:
        ports = random.sample(_RANGE, len(_RANGE))
        free = (port for port in ports if _binds(bound.enter_context(socket.socket()), port))
        return list(itertools.islice(free, count))


def _binds(probe: socket.socket, port: int) -> bool:
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
