"""MSG: a message as Outlook saves it, with the fields of an EML file. ([MS-OXMSG])"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.office import mail, rtf_text
from fullft_assets.documents.formats.office.html_text import text_of
from fullft_assets.documents.formats.parsing import OLE_MAGIC, parsing, whole_characters
from fullft_assets.documents.formats.protocol import Format, Reading

if TYPE_CHECKING:
    from oxmsg import Message

#: Property of the body as compressed RTF, and that of the message's id. ([MS-OXPROPS])
_RTF, _MESSAGE_ID = 0x1009, 0x1035


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield the document that a message is."""
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
        body = _body(message)
    yield 1, mail.record(file, message.subject, body, about, reading)


def _body(message: Message) -> str:
    """Return the plain body, else the HTML or the RTF as text."""
    if message.body:
        return whole_characters(message.body)
    if message.html_body:
        return text_of(message.html_body)
    packed = message.properties.binary_prop_value(_RTF)
    if not packed:
        return ""
    import compressed_rtf

    return rtf_text.text_of(compressed_rtf.decompress(packed).decode("cp1252").rstrip("\0"))


FORMAT = Format(records, endings=(".msg",), is_whole_file=True, max_bytes=mail.MAX_BYTES, is_slow=True)
