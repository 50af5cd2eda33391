"""A proxy in front of an S3 server that spoils some of the answers: errors, slowness, answers that are cut
off, and ones that are lost.

It also heeds the conditions of PutObject, as AWS does, where the server behind it ignores them.
"""

import hashlib
import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests import serving as servers

#: `lost` and `cut` are those of a request that was served.
FAULTS = ("500", "503", "slow", "cut", "lost")
_SLOW_SECONDS = 0.2
#: A request is spoilt so often at most, so that a client that tries again gets through.
_MOST_OF_ONE = 2


class FaultProxy(ThreadingHTTPServer):
    """Passes requests on; whether and how the answer is spoilt is drawn.

    Args:
        endpoint: of the server behind it.
        faults: of `FAULTS`.
        share: of the requests that are spoilt.
        seed: of the draws, which the order of requests shares out.
        folder: where the server behind it has its buckets, if that one ignores `If-Match` and
            `If-None-Match`.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, endpoint: str, faults: tuple[str, ...], share: float, seed: int, folder: Path | None = None
    ):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(endpoint)
        self._faults, self._share, self._random = faults, share, random.Random(seed)
        self._lock = threading.Lock()
        #: How often each fault was injected, and each request spoilt.
        self.injected: Counter[str] = Counter()
        self.spoilt: Counter[str] = Counter()
        self._folder, self.one_of_pointers = folder, threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def may_write(self, path: str, wanted: str | None, absent: str | None) -> bool:
        """Return whether the conditions of a write hold: the ETag is the MD5 of the file that the
        server has.
        """
        if self._folder is None or wanted is absent is None:
            return True
        file = self._folder / unquote(urlsplit(path).path).lstrip("/")
        tag = hashlib.md5(file.read_bytes()).hexdigest() if file.is_file() else None
        return not (absent == "*" and tag is not None) and (wanted is None or wanted.strip('"') == tag)

    def fault_of(self, request: str) -> str | None:
        """Draw what happens to a request."""
        with self._lock:
            if self._random.random() >= self._share or self.spoilt[request] >= _MOST_OF_ONE:
                return None
            fault = self._random.choice(self._faults)
            self.spoilt[request] += 1
            self.injected[fault] += 1
            return fault


class _Handler(servers.Handler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def _pass_on(self) -> None:
        body = self._body()
        fault = self.server.fault_of(f"{self.command} {self.path}")
        if fault in ("500", "503"):
            code = {"500": "InternalError", "503": "SlowDown"}[fault]
            self._answer(
                int(fault),
                f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode(),
                {"Content-Type": "application/xml"},
            )
            return
        if fault == "slow":
            time.sleep(_SLOW_SECONDS)
        # rclone cuts or refuses what is asked for while the same file is written. Conditions are those of
        # pointers.
        with self.server.one_of_pointers if "/pointers/" in self.path else nullcontext():
            wanted, absent = self.headers.get("If-Match"), self.headers.get("If-None-Match")
            if self.command != "PUT" or self.server.may_write(self.path, wanted, absent):
                self._forward(body, fault)
            else:
                self._answer(
                    412,
                    b"<Error><Code>PreconditionFailed</Code></Error>",
                    {"Content-Type": "application/xml"},
                )

    def _forward(self, body: bytes, fault: str | None) -> None:
        upstream = http.client.HTTPConnection(self.server.upstream.netloc, timeout=60)
        # With the headers that the client has signed, its `Host` among them.
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("transfer-encoding", "expect"):
                upstream.putheader(name, value)
        upstream.endheaders(body)
        found = upstream.getresponse()
        data = found.read()
        upstream.close()
        if fault != "lost":
            self._answer(found.status, data, dict(found.getheaders()), is_cut=fault == "cut")
        self.close_connection = self.close_connection or fault in ("cut", "lost")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, data: bytes, headers: dict[str, str], *, is_cut: bool = False) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if is_cut else data)

    def handle(self) -> None:
        """Serve a connection; a client that gave up is no error."""
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


@contextmanager
def serving(
    endpoint: str,
    *,
    faults: tuple[str, ...] = FAULTS,
    share: float = 0.3,
    seed: int = 1,
    folder: Path | None = None,
) -> Iterator[FaultProxy]:
    with servers.serving(FaultProxy(endpoint, faults, share, seed, folder)) as proxy:
        yield proxy
