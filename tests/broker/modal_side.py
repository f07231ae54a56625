"""Modal's client against the embedded server, in this process; tests plant faults between them."""

import base64
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cbor2
from modal_proto import api_pb2

from broker.embedded.modal_server import ModalConfig, ModalServer
from broker.embedded.ports import free_ports
from broker.providers.modal import Modal

TOKEN = ("ak-test", "as-test")
TARGET = "modal:main/reelbroker/export"


class SteerableServer(ModalServer):
    """The embedded server with a function, as if deployed; `fault` comes before each rpc.

    A fault gets the rpc's name, its request and a function that carries the rpc out.
    """

    def __init__(self, config):
        super().__init__(config)
        self.fault: Callable[[str, Any, Any], Any] | None = None
        self.calls: list[str] = []
        self.streams: list[Any] = []  #: of the rpcs so far
        self.requests: list[tuple[str, Any]] = []
        self._deploying.app, self._deploying.name = "reelbroker", "export"
        self._deploying.function = api_pb2.Function(
            module_name="gpu_worker.modal_app", function_name="export", timeout_secs=60
        )
        self._deployed = self._deploying
        for name, rpc in self._rpcs.items():
            self._rpcs[name] = self._steered(name, rpc)

    def __getattr__(self, name):
        handler = super().__getattr__(name)

        async def kept(stream):
            self.streams.append(stream)
            await handler(stream)

        return kept

    def cut(self):
        """Cuts the lines of all rpcs so far."""
        for stream in self.streams:
            stream._stream.connection.close()

    def _steered(self, name, rpc):
        async def steered(request, caller):
            self.calls.append(name)
            self.requests.append((name, request))
            if self.fault is None:
                return await rpc(request, caller)
            return await self.fault(name, request, lambda: rpc(request, caller))

        return steered


@dataclass
class Served:
    provider: Modal
    server: SteerableServer
    port: int


@contextlib.asynccontextmanager
async def modal_server(folder, **deadlines):
    """Serves, with a client that is set to it."""
    (port,) = free_ports(1)
    server = SteerableServer(ModalConfig(TOKEN, folder))

    former = os.environ.get("MODAL_SERVER_URL")
    os.environ["MODAL_SERVER_URL"] = f"http://127.0.0.1:{port}"
    provider = Modal(*TOKEN, **deadlines)
    try:
        async with server.serving(port):
            yield Served(provider, server, port)
            await provider.close()
    finally:
        if former is None:
            del os.environ["MODAL_SERVER_URL"]
        else:
            os.environ["MODAL_SERVER_URL"] = former


def sent(server):
    """Returns each call's id and the WorkerInput that the broker sent, the oldest first."""
    return {
        job.id: cbor2.loads(base64.b64decode(job.input["args"]))[0][0]
        for job in server._queue._jobs.values()
    }
