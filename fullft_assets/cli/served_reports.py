"""The pages of reports below `/fullft/reports/` of the UI, since a browser opens no file of the server that
Dagster shows the path of.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fullft_assets.errors import FullftError
from fullft_assets.resources import REPORTS
from fullft_assets.resources.store import default_store

App = Callable[[dict[str, Any], Any, Callable[[Any], Awaitable[None]]], Awaitable[None]]
_PAGE = "report.html"
#: The reference of an artifact that has a report; no part of it leads out of the store.
_REF = re.compile(
    rf"{REPORTS}(\w[\w.-]*/(?:training_snapshot|evaluation_report)/\w[\w.-]*/\w[\w.-]*)/{re.escape(_PAGE)}",
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
    """Return the page of a report in the store that all use cases share, or None if there is none."""
    match, home = _REF.fullmatch(path), os.environ.get("DAGSTER_HOME")
    if match is None or home is None:
        return None
    store = default_store(Path(home))
    try:
        artifact = store.load(match[1])
    except FullftError:
        return None
    return store.read_bytes(f"{artifact.ref}/{_PAGE}") if _PAGE in artifact.files else None
