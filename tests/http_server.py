"""A small HTTP server of a test's own: what stands at the other end of a program's calls."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Quiet(BaseHTTPRequestHandler):
    """A handler that does not write each request to the screen."""

    def log_message(self, *_):
        pass


class BreaksOff(Quiet):
    """A server whose line is lost in the middle of an answer."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"the beginning")
        self.close_connection = True


@contextmanager
def serving(handler):
    """Serves on a free port of this machine, in a thread, while entered; yields the port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()
