"""EC2's instance metadata as far as spot notices go, version 2 of its protocol, on a port of this machine."""

import json
import secrets
from contextlib import AbstractContextManager
from http.server import ThreadingHTTPServer

from tests.serving import Handler, serving

_TTL, _TOKEN = "X-aws-ec2-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token"


class MetadataServer(ThreadingHTTPServer):
    """A service without a notice, until `announce`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tokens: set[str] = set()
        self.notice: dict[str, str] | None = None
        self.num_looks = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def announce(self) -> None:
        """Give notice, as two minutes before the end."""
        self.notice = {"action": "terminate", "time": "2026-11-25T18:02:00Z"}


class _Handler(Handler):
    server: MetadataServer

    def do_PUT(self) -> None:
        ttl = self.headers.get(_TTL, "")
        if self.path != "/latest/api/token" or not ttl.isdecimal() or not 1 <= int(ttl) <= 21_600:
            self.reply(400)
        else:
            token = secrets.token_urlsafe()
            self.server.tokens.add(token)
            self.reply(200, token.encode())

    def do_GET(self) -> None:
        if self.headers.get(_TOKEN) not in self.server.tokens:
            self.reply(401)
        elif self.path != "/latest/meta-data/spot/instance-action":
            self.reply(404)
        else:
            self.server.num_looks += 1
            notice = self.server.notice
            self.reply(404) if notice is None else self.reply(200, json.dumps(notice).encode())


def serve() -> AbstractContextManager[MetadataServer]:
    return serving(MetadataServer())
