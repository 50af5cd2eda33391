"""Mail: an EML file is one document, an mbox file has one record a message.

`text` is the subject, a blank line and the body: the plain text where the message has one, else its HTML as
text. Attachments are counted and not read. (RFC 5322, RFC 2046)
"""

import email
import email.policy
import re
from collections.abc import Iterator
from email.message import EmailMessage
from functools import cache
from typing import cast

from fullft_assets.documents.formats import encodings
from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable, parsing
from fullft_assets.documents.formats.markup import html_text
from fullft_assets.documents.formats.registered import Format, Reading

MAX_BYTES = 64 * 2**20
_HEADERS = (
    "Subject",
    "From",
    "To",
    "Date",
    "Message-ID",
    "Received",
    "Return-Path",
    "MIME-Version",
    "Content-Type",
)
_CUT_OFF = ("CloseBoundaryNotFoundDefect", "StartBoundaryNotFoundDefect", "NoBoundaryInMultipartDefect")
_QUOTED = re.compile(r"[ \t]*>")
#: The line before a quoted message, such as "On Monday, ... wrote:", which may be broken once.
_INTRODUCTION = re.compile(r"\n[^\n]{0,200}(?:\n[^\n]{1,120})?:[ \t]*\n*\Z")
#: What Outlook puts before the message that is answered, in a few languages.
_ORIGINAL = re.compile(
    r"^[ \t]*(?:-{2,} ?(?:Original Message|Ursprüngliche Nachricht|Message d'origine|Mensaje"
    r" original|Messaggio originale) ?-{2,}|_{20,})[ \t]*$.*",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)


def _eml_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    yield 1, _record(file, reading, file.data())


def messages(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (number, record or problem) of each message of an mbox file.

    Raises:
        Unreadable: it does not begin like one.
    """
    number = 0
    lines: list[bytes] = []
    is_after_blank = True
    with file.binary() as data:
        for line in data:
            if is_after_blank and line.startswith(b"From "):
                if number:
                    yield number, _in_mbox(file, reading, lines)
                number += 1
                lines = []
            elif not number and line.strip():
                raise Unreadable("not an mbox file: its first line does not begin with `From `")
            else:
                # A line of the text that began with "From " was written as ">From ".
                lines.append(line[1:] if line.startswith(b">From ") else line)
            is_after_blank = not line.strip()
    if number:
        yield number, _in_mbox(file, reading, lines)


def _in_mbox(file: Delivered, reading: Reading, lines: list[bytes]) -> Record:
    try:
        return _record(file, reading, b"".join(lines))
    except Unreadable as error:
        return str(error)


def _record(file: Delivered, reading: Reading, data: bytes) -> Record:
    with parsing("message"):
        # The file's own encoding is looked for part by part.
        message = cast(EmailMessage, email.message_from_bytes(data, policy=email.policy.default))
        if not any(name in message for name in _HEADERS):
            raise Unreadable("not a mail message: none of the usual headers")
        if any(type(defect).__name__ in _CUT_OFF for part in message.walk() for defect in part.defects):
            raise Unreadable("not a complete message (cut off)")
        encoding = reading.documents.encoding
        body = _body(message, encoding).replace("\r\n", "\n")
        headers = {name: _header(message, header, encoding) for name, header in _ABOUT.items()}
        attachments = sum(1 for _ in message.iter_attachments()) if message.is_multipart() else 0
    if reading.documents.mail.quoted == "drop":
        body = without_quoted(body)
    body = body.strip()
    return {
        **file.document("\n\n".join(filter(None, (headers["subject"], body)))),
        **headers,
        "num_attachments": attachments,
        "body": body,
    }


_ABOUT = {"subject": "Subject", "from": "From", "to": "To", "date": "Date", "message_id": "Message-ID"}


def _body(message: EmailMessage, encoding: str | None) -> str:
    if (part := message.get_body(("plain", "html"))) is None:
        return ""
    if not isinstance((data := part.get_payload(decode=True)), bytes):
        raise Unreadable("not a complete message (a part has no content)")
    text = _decoded(data, encoding or part.get_content_charset())
    return html_text(text) if part.get_content_subtype() == "html" else text


def _decoded(data: bytes, charset: str | None) -> str:
    if charset is not None and encodings.is_encoding(charset):
        try:
            return data.decode(charset)
        except UnicodeError:
            pass
    return encodings.decode(data)


def _header(message: EmailMessage, name: str, encoding: str | None) -> str | None:
    raw = next((str(value) for key, value in message.raw_items() if key.lower() == name.lower()), None)
    if raw is None:
        return None
    # Bytes outside ASCII, which a header must not contain, come as halves of surrogate pairs.
    data = raw.encode("utf-8", "surrogateescape")
    return (str(message[name]) if data.isascii() else _decoded(data, encoding)).strip()


def without_quoted(body: str) -> str:
    """Return a body without the messages that it quotes and the lines that introduce them."""
    body = _ORIGINAL.sub("", body)
    lines: list[str] = []
    is_quoted = False
    for line in body.split("\n"):
        if _QUOTED.match(line):
            if not is_quoted:
                lines = [_INTRODUCTION.sub("\n", "\n" + "\n".join(lines))[1:]]
            is_quoted = True
        elif line.strip() or not is_quoted:
            lines.append(line)
            is_quoted = False
    body = "\n".join(lines)
    header = _headers().search(body)
    # A message that is forwarded without a word begins with its header.
    return body[: header.start()] if header and body[: header.start()].strip() else body


@cache
def _headers() -> re.Pattern[str]:
    from mailparser_reply.parser import EmailMessage as ParsedMessage

    # Of Polish one line would do, such as `Do: ...`; what quotes with `>` is removed in every language.
    return ParsedMessage(
        "", languages=["en", "de", "fr", "es", "it", "nl", "sv", "da", "cs", "ja", "ko", "zh"]
    ).HEADER_REGEX


EML = Format(_eml_records, endings=(".eml",), is_whole_file=True, max_bytes=MAX_BYTES, is_slow=True)
MBOX = Format(messages, endings=(".mbox",), may_be_compressed=True)
