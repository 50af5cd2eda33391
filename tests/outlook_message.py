"""A message as Outlook saves it: a compound file ([MS-CFB]) whose streams are the message's properties
([MS-OXMSG]).
"""

import struct

_END, _FREE, _FAT, _NONE = 0xFFFFFFFE, 0xFFFFFFFF, 0xFFFFFFFD, 0xFFFFFFFF
#: Property ids ([MS-OXPROPS]).
CLASS, SUBJECT, SENDER, BODY, HTML, RTF, MESSAGE_ID = 0x001A, 0x0037, 0x0C1A, 0x1000, 0x1013, 0x1009, 0x1035


def written(properties: dict[int, str | bytes], num_attachments: int = 0) -> bytes:
    """Return a message with these properties: text, or bytes."""
    entries, streams = b"", dict[str, bytes]()
    for name, value in {CLASS: "IPM.Note", **properties}.items():
        kind, data = (0x001F, value.encode("utf-16-le")) if isinstance(value, str) else (0x0102, value)
        entries += struct.pack("<HHIII", kind, name, 6, len(data) + (2 if kind == 0x1F else 0), 0)
        streams[f"__substg1.0_{name:04X}{kind:04X}"] = data
    streams["__properties_version1.0"] = (
        struct.pack("<8x4I8x", 0, num_attachments, 0, num_attachments) + entries
    )
    return _compound(streams)


def _compound(streams: dict[str, bytes]) -> bytes:
    """Return a compound file of streams under the root, each in sectors of 64 bytes."""
    small, small_fat, directory = b"", list[int](), list[bytes]()
    for at, (name, data) in enumerate(streams.items(), start=1):
        start, count = len(small_fat), -(-len(data) // 64)
        small_fat += [start + number + 1 for number in range(count - 1)] + [_END]
        small += data.ljust(count * 64, b"\0")
        directory.append(
            _entry(name, 2, right=at + 1 if at < len(streams) else _NONE, start=start, size=len(data))
        )
    parts = [
        b"".join([_entry("Root Entry", 5, child=1, start=3, size=len(small)), *directory]),
        struct.pack(f"<{len(small_fat)}I", *small_fat),
        small,
    ]
    sectors, fat, starts = b"", [_FAT], list[int]()
    for number, part in enumerate(parts):
        count = max(1, -(-len(part) // 512))
        starts.append(len(fat))
        fat += [len(fat) + at + 1 for at in range(count - 1)] + [_END]
        sectors += part.ljust(count * 512, b"\xff" if number == 1 else b"\0")
    sectors = sectors.replace(struct.pack("<IQ", 3, len(small)), struct.pack("<IQ", starts[2], len(small)), 1)
    header = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(16) + struct.pack("<HHHHH6x", 0x3E, 3, 0xFFFE, 9, 6)
    header += struct.pack("<9I", 0, 1, starts[0], 0, 4096, starts[1], 1, _END, 0) + struct.pack(
        "<109I", 0, *[_FREE] * 108
    )
    return header + struct.pack("<128I", *fat, *[_FREE] * (128 - len(fat))) + sectors


def _entry(
    name: str, kind: int, *, right: int = _NONE, child: int = _NONE, start: int = 0, size: int = 0
) -> bytes:
    encoded = name.encode("utf-16-le") + b"\0\0"
    about = struct.pack("<HBBIII36xIQ", len(encoded), kind, 1, _NONE, right, child, start, size)
    return encoded.ljust(64, b"\0") + about
