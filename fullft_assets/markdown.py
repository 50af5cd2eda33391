"""Markdown of a report: escaping what users wrote, and rendering to HTML."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

from fullft_assets.escaping import visible

_SPECIAL = re.compile(r"[\\`*\[\]|!~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
#: Encloses what a table row is about, in front of its first cell: see `about_row`.
_MARK = "\ue000"
_ROW_MARK = re.compile(rf"^{_MARK}(document|group|system)={_MARK}([^{_MARK}]*){_MARK}")
_BETWEEN_CELLS = re.compile(r"\n(?=<t[dhr]|</t[rhdb]|<tbody|</table)")


def escape(value: object) -> str:
    """Return a value so that Markdown shows it as it is, also in a cell of a table."""
    text = str(value).replace(_MARK, " ").replace("\n", " ")
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", text).replace("<", "&lt;")


def escape_name(name: str) -> str:
    """Return a delivered name so that Markdown shows it as it is, also the characters in it that are not
    seen.
    """
    return escape(visible(name))


def fenced(text: str) -> str:
    """Return a text as a block of code, which nothing within it ends."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 3)
    return f"{fence}\n{text}\n{fence}"


def about_row(kind: str, value: str) -> str:
    """Return a mark in front of a table row's first cell, from which HTML gets `<tr data-KIND="VALUE">`.

    An erasure finds the rows of a document or of a group by it.
    """
    return f"{_MARK}{kind}={_MARK}{quote(value, safe='')}{_MARK}"


def to_html(markdown: str, pictures: Mapping[str, str]) -> str:
    """Render Markdown to HTML; HTML within it is text.

    Args:
        pictures: PNG as base64, by the name in `pictures/NAME.png`.
    """
    from markdown_it import MarkdownIt
    from markupsafe import escape as escape_html

    def image(tokens: Any, index: int, options: Any, env: Any) -> str:
        name = tokens[index].attrs["src"].removeprefix("pictures/").removesuffix(".png")
        caption = escape_html(tokens[index].content)
        return (
            f'<figure><img src="data:image/png;base64,{pictures[name]}"'
            f' alt="{caption}"><figcaption>{caption}</figcaption></figure>'
        )

    def open_row(tokens: Any, index: int, options: Any, env: Any) -> str:
        about = tokens[index].meta.get("about")
        return "<tr>" if about is None else f'<tr data-{about[0]}="{escape_html(unquote(about[1]))}">'

    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    renderer.core.ruler.before("inline", "report", _read_marks)
    # The protocol of renderers has no rules.
    rules: dict[str, Any] = renderer.renderer.rules  # pyright: ignore[reportAttributeAccessIssue]
    # Escaped as Jinja escapes, which an erasure looks for.
    rules["text"] = lambda tokens, index, options, env: str(escape_html(tokens[index].content))
    rules["image"] = image
    rules["tr_open"] = open_row
    return _BETWEEN_CELLS.sub("", renderer.render(markdown))


def _read_marks(state: Any) -> None:
    """Write attributes into the tokens: what a table row is about, a cell's column and whether it says yes or
    no; unwrap pictures from paragraphs.
    """
    row = None
    heads = []
    column = 0
    for before, token, after in zip(state.tokens, state.tokens[1:], state.tokens[2:], strict=False):
        if before.type == "thead_open":
            heads = []
        if before.type == "tr_open":
            row = before
            column = 0
        if token.type != "inline":
            continue
        if before.type == "paragraph_open" and re.fullmatch(
            r"!\[[^\n]*\]\(pictures/[^)\n]+\)", token.content
        ):
            before.hidden = after.hidden = True
        if before.type == "th_open":
            heads.append(token.content)
        if before.type == "td_open":
            # A narrow screen shows a row as a list, in which each cell needs the name of its column.
            if column and heads[column]:
                before.attrSet("data-column", heads[column])
            column += 1
            if row is not None and (match := _ROW_MARK.match(token.content)):
                row.meta["about"] = (match[1], match[2])
                token.content = token.content[match.end() :]
            kind = {"✓": "yes", "✗": "no"}.get(token.content[:1])
            if kind is not None:
                before.attrSet("class", kind)
