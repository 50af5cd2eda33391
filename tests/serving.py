"""Servers of the tests that answer on a port of this machine while a block lasts."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import MappingProxyType
from typing import Any, TypeVar

Server = TypeVar("Server", bound=HTTPServer)


class Handler(BaseHTTPRequestHandler):
    """A handler that prints nothing."""

    def reply(
        self, status: int, data: bytes = b"", headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Send a whole answer, with its length and the time."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Print no line for each request."""


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Answer requests in a thread until the block ends, then close the server."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
