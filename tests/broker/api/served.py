"""A broker on a real port: uvicorn in a thread, as `reelbroker serve` runs it."""

import contextlib
import threading
import time

import httpx
import uvicorn

from broker.app import create_app
from broker.connection import Connection
from broker.embedded.ports import free_ports

API_KEY = "test-key-0123456789"


class Served:
    """Where it is, and a client with the key."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"
        self.ws = f"ws://127.0.0.1:{port}"
        self.headers = {"Authorization": f"Bearer {API_KEY}"}
        self.client = httpx.Client(base_url=self.url, headers=self.headers, timeout=30)

    def async_client(self, **options):
        return httpx.AsyncClient(base_url=self.url, headers=self.headers, **options)


@contextlib.contextmanager
def serve(settings, transport, port=None):
    """Runs a broker for the length of the `with`."""
    port = port or free_ports(1)[0]
    config = uvicorn.Config(
        create_app(settings, transport=transport),
        port=port,
        http=Connection,
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        served = Served(port)
        with served.client:
            yield served
    finally:
        server.should_exit = True
        thread.join()
