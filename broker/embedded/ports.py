"""Free ports on loopback."""

import contextlib
import random
import socket

#: Below those that the system gives to outgoing connections (Linux: from 32768): one of these could take
#: a port between the draw and the moment in which its server listens.
_RANGE = range(20_000, 32_768)


def is_free(port: int) -> bool:
    """True when a server could listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _binds(probe, port)


def free_ports(count: int) -> list[int]:
    """Draws distinct free ports: all are held open until the last one is drawn."""
    drawn: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.sample(_RANGE, len(_RANGE)):
            if len(drawn) == count:
                break
            if _binds(held.enter_context(socket.socket()), port):
                drawn.append(port)
    return drawn


def _binds(probe: socket.socket, port: int) -> bool:
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
