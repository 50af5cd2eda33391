"""Dagster's webserver with the pages of reports, behind a guard: no page of another origin can act through
the browser of somebody who may use the UI.

`python -m fullft_assets.cli.webserver` takes the options of `dagster-webserver`, and `fullft ui` those of
`dagster dev`. Dagster itself runs mutations that are sent by GET, or by POST as a form, whatever the
headers Origin and Host say. A browser opens no file of the server that Dagster shows the path of, so
reports have pages below `/fullft/reports/` of the UI.
"""

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fullft_assets.artifacts import EVALUATION_REPORT, REPORT_PAGE, TRAINING_SNAPSHOT
from fullft_assets.errors import FullftError, SettingsError
from fullft_assets.extras import require_names
from fullft_assets.resources import REPORTS
from fullft_assets.resources.store import default_store
from fullft_assets.security import LOGIN_KEY_VARIABLE, PERSON_TAG

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
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

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
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
    match = _REF.fullmatch(path)
    home = os.environ.get("DAGSTER_HOME")
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


#: What the tokens of the login are for: the `aud` that the proxy asks for, or the ARN of AWS's load balancer.
LOGIN_AUDIENCE_VARIABLE = "FULLFT_LOGIN_AUDIENCE"
#: Where proxies put the token: AWS's load balancer, and oauth2-proxy in two ways.
_TOKEN_HEADERS = ("x-amzn-oidc-data", "authorization", "x-forwarded-access-token")


class Login:
    """The login in front of the UI: a proxy that adds a signed token to each request (a JSON web token, RFC
    7519, with RS256 or ES256).

    Args:
        keys: public keys in PEM of whoever signs the tokens.
        audience: what the tokens are for.
    """

    def __init__(self, keys: str, audience: str):
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        blocks = re.findall(r"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", keys, re.DOTALL)
        self._keys: list[Any] = [load_pem_public_key(block.encode()) for block in blocks]
        self._audience = audience
        if not blocks or not audience:
            raise SettingsError(
                f"{LOGIN_KEY_VARIABLE} names a file without a public key in PEM, or {LOGIN_AUDIENCE_VARIABLE}"
                " is not set: set both"
            )

    def person(self, headers: Mapping[str, str]) -> str | None:
        """Return who sends a request, or None.

        Args:
            headers: by their names in small letters.
        """
        import jwt

        words = next((headers[name] for name in _TOKEN_HEADERS if name in headers), "").split()
        for key in self._keys if words else ():
            # A key of the other kind is a TypeError.
            with suppress(jwt.PyJWTError, KeyError, TypeError):
                # A load balancer of AWS signs with a key of its region, for all accounts: what counts is
                # which one it says it is, in the header that it writes itself.
                signer = jwt.get_unverified_header(words[-1]).get("signer")
                claims = jwt.decode(
                    words[-1],
                    key,
                    # Of the two only one fits the kind of the key, whatever the token says.
                    algorithms=["RS256", "ES256"],
                    audience=None if signer else self._audience,
                    options={"require": ["exp"], "verify_aud": not signer},
                )
                if signer in (None, self._audience):
                    return (
                        claims.get("email")
                        if str(claims.get("email_verified", True)).lower() != "false"
                        else None
                    ) or claims["sub"]
        return None


@dataclass(frozen=True)
class Guard:
    """An ASGI application that refuses what `refusal` refuses, and what nobody who is logged in sends, and
    leaves all else to another application.

    Attributes:
        app: the other application.
        hosts: names of the UI beside `localhost`.
        login: the login in front of the UI, if there is one.
    """

    app: App
    hosts: Collection[str] = ()
    login: Login | None = None

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

        reason = None if scope["type"] == "lifespan" else refusal(scope, self.hosts)
        # A probe of the server's health has no login.
        if reason is None and self.login and scope["type"] != "lifespan" and scope["path"] != "/server_info":
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            if self.login.person(headers) is None:
                reason = "Log in: the request has no token of the login in front of the UI."
        if reason is None:
            await self.app(scope, receive, unframed)
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


def refusal(scope: Scope, hosts: Collection[str]) -> str | None:
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
        # A browser's address line gets a page to type queries into, which executes none of them. A page of
        # any origin may send that header in capitals, which Dagster does not take for it: no query passes.
        is_page = "text/html" in headers.get("accept", [""])[0] and not scope.get("query_string")
        is_query = is_graphql and method != "OPTIONS" and not is_page
        return "GraphQL is asked by POST, with the content type application/json." if is_query else None
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


def _is_own(host: str, hosts: Collection[str]) -> bool:
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
    from dagster import DagsterInstance
    from dagster._core.workspace.context import WorkspaceRequestContext
    from dagster_webserver import cli
    from dagster_webserver.webserver import DagsterWebserver

    require_names(DagsterWebserver, ("create_asgi_app",))
    require_names(DagsterInstance, ("submit_run",))
    require_names(WorkspaceRequestContext, ("source",))
    create = DagsterWebserver.create_asgi_app
    submit = DagsterInstance.submit_run
    # Who only looks needs no login.
    key_file = None if "--read-only" in sys.argv else os.environ.get(LOGIN_KEY_VARIABLE)
    login = (
        Login(Path(key_file).read_text(), os.environ.get(LOGIN_AUDIENCE_VARIABLE, "")) if key_file else None
    )
    hosts = [name.strip().lower() for name in os.environ.get(HOSTS_VARIABLE, "").split(",") if name.strip()]

    # The command calls this method, and has no setting for another application.
    def create_guarded(self: Any, **options: Any) -> Any:
        return Guard(with_reports(create(self, **options)), hosts, login)

    # Every run that a request asks for comes by here: what its tags say of a person is replaced.
    def submit_with_person(self: DagsterInstance, run_id: str, workspace: Any) -> Any:
        name = login and login.person(getattr(getattr(workspace, "source", None), "headers", None) or {})
        run = self.get_run_by_id(run_id)
        if name or (run and PERSON_TAG in run.tags):
            self.add_run_tags(run_id, {PERSON_TAG: name or ""})
        return submit(self, run_id, workspace)

    DagsterWebserver.create_asgi_app = create_guarded
    DagsterInstance.submit_run = submit_with_person
    cli.main()


def develop(options: Sequence[str]) -> None:
    """Run `dagster dev`, with its options, with this webserver in place of Dagster's own."""
    from dagster._cli import dev

    require_names(dev, ("open_ipc_subprocess",))
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
