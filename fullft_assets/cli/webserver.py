"""Dagster's webserver with the pages of reports, behind a guard: no page of another origin can act through
the browser of somebody who may use the UI.

`python -m fullft_assets.cli.webserver` takes the options of `dagster-webserver`, and `fullft ui` those of
`dagster dev`. Dagster itself runs mutations that are sent by GET, or by POST as a form, whatever the
headers Origin and Host say. A browser opens no file of the server that Dagster shows the path of, so
reports have pages below `/fullft/reports/` of the UI.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fullft_assets.artifacts import EVALUATION_REPORT, REPORT_PAGE, TRAINING_SNAPSHOT
from fullft_assets.errors import FullftError
from fullft_assets.resources import REPORTS
from fullft_assets.resources.store import default_store

#: The reference of an artifact that has a report; no part of it leads out of the store.
_REF = re.compile(
    rf"{REPORTS}(\w[\w.-]*/(?:{TRAINING_SNAPSHOT}|{EVALUATION_REPORT})/\w[\w.-]*/\w[\w.-]*)"
    rf"/{re.escape(REPORT_PAGE)}",
    re.ASCII,
)
_HEADERS = [
    (b"content-type", b"text/html; charset=utf-8"),
    # A page shows texts of documents: nothing in it runs, and it loads nothing.
    (b"content-security-policy", b"sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
]


def with_reports(app: App) -> App:
    """Return an ASGI application that answers the paths of reports, and leaves the rest to another one."""

    async def answer(scope: dict[str, Any], receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if (
            scope["type"] != "http"
            or scope["method"] not in ("GET", "HEAD")
            or not scope["path"].startswith(REPORTS)
        ):
            await app(scope, receive, send)
            return
        page = await asyncio.to_thread(_page, scope["path"])
        await send(
            {"type": "http.response.start", "status": 404 if page is None else 200, "headers": _HEADERS}
        )
        await send(
            {"type": "http.response.body", "body": b"There is no such report." if page is None else page}
        )

    return answer


def _page(path: str) -> bytes | None:
    match, home = _REF.fullmatch(path), os.environ.get("DAGSTER_HOME")
    if match is None or home is None:
        return None
    store = default_store(Path(home))
    try:
        artifact = store.load(match[1])
    except FullftError:
        return None
    return store.read_bytes(f"{artifact.ref}/{REPORT_PAGE}") if REPORT_PAGE in artifact.files else None


#: Names of the UI behind a proxy, with commas between them, such as `ui.example.com,ui.example.com:8443`.
HOSTS_VARIABLE = "FULLFT_UI_HOSTS"
_READS = ("GET", "HEAD", "OPTIONS")
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """An ASGI application that answers what `refusal` refuses, and leaves the rest to another application."""

    def __init__(self, app: App, hosts: Iterable[str] = ()):
        self._app, self._hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI calls an application."""

        async def unframed(message: Any) -> None:
            if message["type"] == "http.response.start":
                # A page of another site could lay an invisible frame with the UI under what somebody clicks.
                message = {
                    **message,
                    "headers": [*message.get("headers", ()), (b"x-frame-options", b"SAMEORIGIN")],
                }
            await send(message)

        reason = None if scope["type"] == "lifespan" else refusal(scope, self._hosts)
        if reason is None:
            await self._app(scope, receive, unframed)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
        else:
            await send(
                {
                    "type": "http.response.start",
                    "status": 403,
                    "headers": [(b"content-type", b"text/plain; charset=utf-8")],
                }
            )
            await send({"type": "http.response.body", "body": f"{reason}\n".encode()})


def refusal(scope: Scope, hosts: frozenset[str]) -> str | None:
    """Return why a request is refused, or None.

    Args:
        scope: the request, as ASGI describes it.
        hosts: names of the UI beside `localhost`.
    """
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1").strip().lower())
    host = headers.get("host", [""])[0]
    if len(headers.get("host", ())) != 1 or not _is_own(host, hosts):
        return (
            f"The UI has no name `{host}`. Name it in the variable {HOSTS_VARIABLE} of the webserver if it is"
            " one of yours."
        )
    method = scope.get("method")
    is_graphql = scope["path"].rstrip("/").endswith("/graphql")
    if method in _READS:
        # A browser's address line gets a page to type queries into, which executes none of them.
        if is_graphql and method == "GET" and "text/html" not in headers.get("accept", [""])[0]:
            return "GraphQL is asked by POST, with the content type application/json."
        return None
    for origin in headers.get("origin", ()):
        address = urlsplit(origin).netloc
        if address != host and address not in hosts:
            return (
                f"A page of {origin} may not act on {host}. Name a proxy's address in the variable"
                f" {HOSTS_VARIABLE} of the webserver."
            )
    if not set(headers.get("sec-fetch-site", ())) <= {"same-origin", "none"}:
        return f"A page of another origin may not act on {host}."
    has_body = "transfer-encoding" in headers or headers.get("content-length", ["0"]) != ["0"]
    types = {value.split(";")[0].strip() for value in headers.get("content-type", ())}
    if method is not None and (is_graphql or has_body or types) and types != {"application/json"}:
        return "Send a body with the content type application/json."
    return None


def _is_own(host: str, hosts: frozenset[str]) -> bool:
    """Return whether a header Host names this server. A page can have its own name lead here, but not an
    address (DNS rebinding).
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost" or host in hosts or name in hosts:
            return True
        ip_address(name)
    except ValueError:
        return False
    return True


def main() -> None:
    """Run `dagster-webserver` behind the guard."""
    from dagster_webserver import cli
    from dagster_webserver.webserver import DagsterWebserver

    create = DagsterWebserver.create_asgi_app
    hosts = [name.strip().lower() for name in os.environ.get(HOSTS_VARIABLE, "").split(",") if name.strip()]

    # The command calls this method, and has no setting for another application.
    def create_guarded(self: Any, **options: Any) -> Any:
        return Guard(with_reports(create(self, **options)), hosts)

    DagsterWebserver.create_asgi_app = create_guarded
    cli.main()


def develop(options: Sequence[str]) -> None:
    """Run `dagster dev`, with its options, with this webserver in place of Dagster's own."""
    from dagster._cli import dev

    start = vars(dev)["open_ipc_subprocess"]

    def start_guarded(command: list[str], **options_of_process: Any) -> Any:
        if command[1:3] == ["-m", "dagster_webserver"]:
            command = [command[0], "-m", __name__, *command[3:]]
        elif command[1:3] != ["-m", "dagster._daemon"]:
            raise RuntimeError(f"this release of Dagster starts the UI in another way: {command}")
        return start(command, **options_of_process)

    setattr(dev, "open_ipc_subprocess", start_guarded)  # noqa: B010  # to replace it
    dev.dev_command.main(list(options), prog_name="fullft ui")


if __name__ == "__main__":
    main()
