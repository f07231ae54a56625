"""What Modal's client and container runtime read from the environment, for the embedded server.

This module does not import Modal's packages: the stack needs it where they are not installed.
"""

from pathlib import Path

#: The header by which a container names itself: `KEY/SLOT.N`. Real containers need none.
CONTAINER_HEADER = "x-reelbroker-container"
#: How often a container's heartbeat comes.
HEARTBEAT_SECONDS = 5
#: What the worker's app reads at a deploy and in a container; nothing is pulled from there.
DEPLOYMENT = {"REELBROKER_MODAL_IMAGE": "embedded/worker"}


def container_arguments(folder: Path) -> Path:
    """Returns the file of the arguments that a container needs; it exists once deployed."""
    return folder / "container.bin"


def client_environment(port: int, token: tuple[str, str]) -> dict[str, str]:
    """Returns what the client reads: broker and deploy."""
    return {
        "MODAL_SERVER_URL": f"http://127.0.0.1:{port}",
        "MODAL_TOKEN_ID": token[0],
        "MODAL_TOKEN_SECRET": token[1],
    }


def container_environment(
    port: int, token: tuple[str, str], folder: Path, container: str
) -> dict[str, str]:
    """Returns what a container reads; `container` is its slot and a number, `SLOT.N`."""
    return {
        "MODAL_SERVER_URL": f"http://127.0.0.1:{port}",
        "MODAL_CONTAINER_ARGUMENTS_PATH": str(container_arguments(folder)),
        "MODAL_HEARTBEAT_INTERVAL": str(HEARTBEAT_SECONDS),
        "MODAL_IS_REMOTE": "1",
        "MODAL_OVERRIDE_HEADERS": f"{CONTAINER_HEADER}:{token[1]}/{container}",
        "MODAL_TASK_ID": container,
    }
