"""Who may act through the UI: the rules of the guard before Dagster's webserver. test_ui.py asks a
real one.
"""

import asyncio
import base64
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from fullft_assets.cli import webserver
from fullft_assets.errors import SettingsError
from fullft_assets.security import PERSON_TAG
from fullft_assets.store import Store
from tests import manifests

JSON = {"content-type": "application/json", "content-length": "9"}
REPORT = "/report_asset_materialization/letters/finetuned_checkpoint"


def answer(
    method: str | None,
    path: str,
    host: str = "localhost:3000",
    login: webserver.Login | None = None,
    **headers: str,
) -> int:
    """Return the status of a request's answer; without a method it is a websocket's, 101 where it is
    opened.
    """
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(
            {
                "type": "http.response.start" if method else "websocket.accept",
                "status": 200 if method else 101,
                "headers": [],
            }
        )

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [
        (name.replace("_", "-").encode(), value.encode()) for name, value in {"host": host, **headers}.items()
    ]
    path, _, query = path.partition("?")
    scope = {
        "type": "http" if method else "websocket",
        "path": path,
        "query_string": query.encode(),
        "headers": raw,
    } | ({"method": method} if method else {})
    asyncio.run(webserver.Guard(app, ["ui.example.com"], login)(scope, None, send))
    return sent[0].get("status", sent[0].get("code", 101))


@pytest.mark.parametrize(
    "host",
    ["localhost:3000", "127.0.0.1", "[::1]:80", "10.1.2.3:80", "UI.example.com", "ui.example.com:8443"],
)
def test_its_own_names_and_addresses_are_answered(host: str) -> None:
    json_body = {name.replace("-", "_"): value for name, value in JSON.items()}
    assert answer("GET", "/server_info", host) == 200 and answer("POST", "/graphql", host, **json_body) == 200
    assert (
        answer(
            "POST",
            "/graphql",
            host,
            origin=f"http://{host.lower()}",
            sec_fetch_site="same-origin",
            **json_body,
        )
        == 200
    )
    assert answer(None, "/graphql", host, origin=f"https://{host}") == 101


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example:3000",
        "ui.example.com.evil.example",
        "localhost@evil",
        "",
        "[::1",
    ],
)
def test_a_name_that_a_page_had_lead_here_is_refused(host: str) -> None:
    assert answer("GET", "/", host) == 403 and answer(None, "/graphql", host) == 1008


def test_programs_need_no_origin() -> None:
    assert (
        answer("POST", "/graphql", content_type="application/json; charset=utf-8", content_length="9") == 200
    )
    assert answer("POST", REPORT) == answer("POST", REPORT, content_length="0") == 200
    assert answer(None, "/graphql") == 101 and answer("GET", "/graphql", accept="text/html,*/*") == 200


@pytest.mark.parametrize(
    "page",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:8080"},
        {"sec_fetch_site": "same-site"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/graphql"), ("POST", REPORT), ("DELETE", "/x"), (None, "/graphql")]
)
def test_another_origins_page_changes_nothing(method: str | None, path: str, page: dict[str, str]) -> None:
    body = {} if method is None else {"content_type": "application/json", "content_length": "9"}
    assert answer(method, path, **body) != 403 and answer(method, path, **body, **page) in (403, 1008)


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"content_type": "text/plain; application/json"},
        {"content_type": "application/x-www-form-urlencoded"},
    ],
)
def test_graphql_is_json_alone(sent: dict[str, str]) -> None:
    assert answer("POST", "/graphql", **sent) == answer("POST", "/prefix/graphql/", **sent) == 403
    assert answer("GET", "/graphql", **sent) == 403
    mutation = "/graphql?query=mutation{terminateRun(runId:1){__typename}}"
    for accept in ("text/html", "TEXT/HTML"):
        assert answer("GET", mutation, accept=accept, **sent) == 403
        assert answer("HEAD", mutation, accept=accept, **sent) == 403
    assert answer("POST", REPORT, transfer_encoding="chunked", **sent) == 403


def test_only_pages_of_reports_are_served_and_nothing_in_them_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FULLFT_STORE", raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text("{}")
    store, refs = Store(str(tmp_path / "store")), {}
    for stage in ("training_snapshot", "labeled_examples"):
        refs[stage] = manifests.write(store, "letters", stage, files={"report.html": "<h1>a page</h1>"}).ref

    def get(path: str, method: str = "GET") -> tuple[int, bytes, dict[bytes, bytes]]:
        sent: list[dict[str, Any]] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 299, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(
            webserver.with_reports(app)(
                {"type": "http", "method": method, "path": path, "headers": []}, None, send
            )
        )
        return sent[0]["status"], sent[1]["body"], dict(sent[0]["headers"])

    ref = refs["training_snapshot"]
    status, body, headers = get(f"/fullft/reports/{ref}/report.html")
    assert (status, body) == (200, b"<h1>a page</h1>")
    assert headers[b"content-security-policy"].startswith(b"sandbox; default-src 'none'")
    assert get("/assets")[0] == get(f"/fullft/reports/{ref}/report.html", "POST")[0] == 299, "left to the UI"
    for path in (
        f"{refs['labeled_examples']}/report.html",
        f"{ref}/manifest.json",
        f"{ref}/../report.html",
        f"../../{ref}/report.html",
        "letters/training_snapshot/../dagster.yaml",
        "letters/training_snapshot/gone/gone/report.html",
        "/etc/passwd",
        "",
        f"{ref}/report.html\n",
    ):
        assert get(f"/fullft/reports/{path}")[0] == 404, path


KEYS = {"RS256": rsa.generate_private_key(65537, 2048), "ES256": ec.generate_private_key(ec.SECP256R1())}
PEM = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
CLAIMS = {"email": "ann@example.com", "aud": ["fullft", "x"], "exp": time.time() + 86_400}


@pytest.fixture(params=list(KEYS))
def login(request: pytest.FixtureRequest) -> tuple[webserver.Login, str]:
    """A login whose tokens one kind of key signs, and that kind; it knows a key of somebody else as well."""
    publics = [key.public_key() for key in KEYS.values()]
    return webserver.Login(
        "".join(key.public_bytes(*PEM).decode() for key in publics), "fullft"
    ), request.param


def token(kind: str, key: Any = None, headers: Any = None, **claims: Any) -> str:
    # PyJWT, which others sign with.
    return jwt.encode(CLAIMS | claims, key or KEYS[kind], algorithm=kind, headers=headers)


def test_the_login_names_who_asks(login: tuple[webserver.Login, str]) -> None:
    guard, kind = login
    assert guard.person({"authorization": f"Bearer {token(kind)}"}) == "ann@example.com"
    assert guard.person({"authorization": f"Bearer {token(kind, email_verified=False, sub='a1')}"}) == "a1"
    assert (
        guard.person({"x-amzn-oidc-data": token(kind, headers={"signer": "fullft"}, aud=None)})
        == "ann@example.com"
    )
    assert answer("GET", "/runs", login=guard, authorization=f"Bearer {token(kind)}") == 200


def test_nobody_else_is_let_in(login: tuple[webserver.Login, str]) -> None:
    guard, kind = login
    other = (
        rsa.generate_private_key(65537, 2048) if kind == "RS256" else ec.generate_private_key(ec.SECP256R1())
    )
    unsigned = jwt.encode(CLAIMS, None, algorithm="none")
    secret = jwt.encode(CLAIMS, "x" * 32, algorithm="HS256")
    head, claims, signature = token(kind).split(".")
    forged = base64.urlsafe_b64encode(json.dumps(CLAIMS | {"email": "eve"}).encode()).decode().rstrip("=")
    for sent in (
        token(kind, other),
        token(kind, exp=time.time() - 1),
        token(kind, aud="another"),
        token(kind, headers={"signer": "another balancer"}),
        f"{head}.{forged}.{signature}",
        f"{head}.{claims}.",
        unsigned,
        secret,
        "x",
        "a.b.c",
    ):
        assert guard.person({"authorization": f"Bearer {sent}"}) is None, sent
        assert answer("GET", "/runs", login=guard, authorization=f"Bearer {sent}") == 403
    assert answer("GET", "/runs", login=guard) == answer(None, "/graphql", login=guard) - 1008 + 403 == 403
    assert answer("GET", "/server_info", login=guard) == 200


def test_a_login_without_a_key_or_an_audience_is_refused() -> None:
    with pytest.raises(SettingsError, match="FULLFT_LOGIN_AUDIENCE is not set"):
        webserver.Login("no key", "fullft")


@pytest.mark.heavy
def test_the_tag_with_who_launched_a_run_is_the_servers_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dagster as dg
    from dagster_webserver import cli
    from dagster_webserver.webserver import DagsterWebserver

    # What `main` replaces is put back.
    monkeypatch.setattr(DagsterWebserver, "create_asgi_app", DagsterWebserver.create_asgi_app)
    monkeypatch.setattr(dg.DagsterInstance, "submit_run", lambda *_: None)
    monkeypatch.setattr(cli, "main", lambda: None)
    keys = [key.public_key() for key in KEYS.values()]
    (tmp_path / "keys.pem").write_bytes(b"".join(key.public_bytes(*PEM) for key in keys))
    monkeypatch.setenv("FULLFT_LOGIN_KEY", str(tmp_path / "keys.pem"))
    monkeypatch.setenv("FULLFT_LOGIN_AUDIENCE", "fullft")
    webserver.main()
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:

        def person_of(headers: dict[str, str]) -> str | None:
            run = dg.DagsterRun(job_name="letters_by_hand", tags={PERSON_TAG: "forged"})
            instance.add_run(run)
            instance.submit_run(run.run_id, SimpleNamespace(source=SimpleNamespace(headers=headers)))
            return instance.get_run_by_id(run.run_id).tags[PERSON_TAG]

        assert person_of({"authorization": f"Bearer {token('ES256')}"}) == "ann@example.com"
        assert person_of({}) == ""
        # Who only looks needs no login, not even its key.
        monkeypatch.setenv("FULLFT_LOGIN_KEY", str(tmp_path / "missing"))
        monkeypatch.setattr(sys, "argv", ["webserver", "--read-only"])
        webserver.main()
