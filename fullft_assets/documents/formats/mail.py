"""Mail: an EML or MSG file is one document, an mbox file has one record a message.

`text` is the subject, a blank line and the body: the plain text where the message has one, else its HTML (or
RTF) as text. Attachments are counted and not read. (RFC 5322, RFC 2046, [MS-OXMSG])
"""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Iterator
from email.message import EmailMessage
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from fullft_assets.documents.formats import encodings, office
from fullft_assets.documents.formats.delivered import (
    OLE_MAGIC,
    Delivered,
    Record,
    Unreadable,
    parsing,
    whole_characters,
)
from fullft_assets.documents.formats.markup import html_text
from fullft_assets.documents.formats.registered import Format, Reading

if TYPE_CHECKING:
    from oxmsg import Message

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


#: Languages whose headers of quoted messages are known. Of Polish one line would do, such as `Do: ...`; what
#: quotes with `>` is removed in every language.
_LANGUAGES = ["en", "de", "fr", "es", "it", "nl", "sv", "da", "cs", "ja", "ko", "zh"]


def _eml_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    yield 1, _record(file, reading, file.data())


def messages(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (number, record or problem) of each message of an mbox file.

    Raises:
        Unreadable: it does not begin like one.
    """
    lines: list[bytes] = []
    number, is_after_blank = 0, True
    with file.binary() as data:
        for line in data:
            if is_after_blank and line.startswith(b"From "):
                if number:
                    yield number, _in_mbox(file, reading, number, lines)
                lines, number = [], number + 1
            elif not number and line.strip():
                raise Unreadable("not an mbox file: its first line does not begin with `From `")
            else:
                # A line of the text that began with "From " was written as ">From ".
                lines.append(line[1:] if line.startswith(b">From ") else line)
            is_after_blank = not line.strip()
    if number:
        yield number, _in_mbox(file, reading, number, lines)


def _in_mbox(file: Delivered, reading: Reading, number: int, lines: list[bytes]) -> Record:
    try:
        return _record(file, reading, b"".join(lines))
    except Unreadable as error:
        return f"message {number}: {error}"


def _record(file: Delivered, reading: Reading, data: bytes) -> Record:
    with parsing("message"):
        # The file's own encoding is looked for part by part.
        message = cast(EmailMessage, email.message_from_bytes(data, policy=email.policy.default))
        if not any(name in message for name in _HEADERS):
            raise Unreadable("not a mail message: none of the usual headers")
        if any(type(defect).__name__ in _CUT_OFF for part in message.walk() for defect in part.defects):
            raise Unreadable("not a complete message (cut off)")
        encoding = reading.documents.encoding
        body = _body(message, encoding)
        about = {name: _header(message, header, encoding) for name, header in _ABOUT.items()}
        attachments = sum(1 for _ in message.iter_attachments()) if message.is_multipart() else 0
    return record(file, about["subject"] or "", body, {**about, "num_attachments": attachments}, reading)


_ABOUT = {"subject": "Subject", "from": "From", "to": "To", "date": "Date", "message_id": "Message-ID"}


def record(file: Delivered, subject: str, body: str, about: dict[str, Any], reading: Reading) -> Record:
    """Return the record of a message, or the problem that it has no text."""
    body = body.replace("\r\n", "\n")
    if reading.documents.mail.quoted == "drop":
        body = without_quoted(body)
    return {
        **file.document("\n\n".join(filter(None, (subject, body.strip())))),
        **about,
        "body": body.strip(),
    }


def _body(message: EmailMessage, encoding: str | None) -> str:
    part = message.get_body(("plain", "html"))
    if part is None:
        return ""
    data = part.get_payload(decode=True)
    if not isinstance(data, bytes):
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

    return ParsedMessage("", languages=list(_LANGUAGES)).HEADER_REGEX


EML = Format(_eml_records, endings=(".eml",), is_whole_file=True, max_bytes=MAX_BYTES, is_slow=True)
MBOX = Format(messages, endings=(".mbox",), may_be_compressed=True)


#: Property of the body as compressed RTF, and that of the message's id. ([MS-OXPROPS])
_RTF, _MESSAGE_ID = 0x1009, 0x1035


def _msg_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    from oxmsg import Message

    data = file.data()
    if not data.startswith(OLE_MAGIC):
        raise Unreadable("not a message of Outlook")
    with parsing("message of Outlook"):
        message = Message.load(data)
        if not message.message_class.startswith("IPM."):
            raise Unreadable("not a message of Outlook (damaged, or an old file of Office)")
        about = {
            "subject": message.subject,
            "from": message.sender,
            "to": ", ".join(f"{each.name} <{each.email_address}>" for each in message.recipients),
            "date": message.sent_date.isoformat() if message.sent_date else None,
            "message_id": message.properties.str_prop_value(_MESSAGE_ID),
            "num_attachments": message.attachment_count,
        }
        body = _msg_body(message)
    yield 1, record(file, message.subject, body, about, reading)


def _msg_body(message: Message) -> str:
    if message.body:
        return whole_characters(message.body)
    if message.html_body:
        return html_text(message.html_body)
    packed = message.properties.binary_prop_value(_RTF)
    if not packed:
        return ""
    import compressed_rtf

    return office.rtf_text(compressed_rtf.decompress(packed).decode("cp1252").rstrip("\0"))


MSG = Format(_msg_records, endings=(".msg",), is_whole_file=True, max_bytes=MAX_BYTES, is_slow=True)
