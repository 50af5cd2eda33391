"""Process that reads the text layers of PDFs: one path (JSON) a line on stdin, one answer (JSON) a line on stdout.

A PDF may be made (or damaged) so that reading it never ends or takes all memory. Here that ends this
process alone: an alarm and a limit of the address space see to it, whatever the parser is doing.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
import time
from typing import Any

#: Longest time for one page (and for opening the file), and for all of a file.
PAGE_SECONDS = 20.0
FILE_SECONDS = 600.0
MAX_PAGES = 20_000
MAX_MEMORY_BYTES = 4 * 2**30
#: Bytes at the end that must contain the end mark, as Acrobat requires.
_TAIL_BYTES = 1024


def main() -> None:
    """Answer each line until stdin ends."""
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for line in sys.stdin:
        answer = extract(json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def extract(path: str) -> dict[str, Any]:
    """Return {"pages": texts}, or {"unreadable": why}; the reason contains nothing of the content."""
    end = time.monotonic() + FILE_SECONDS
    signal.setitimer(signal.ITIMER_REAL, PAGE_SECONDS)
    try:
        return _extract(path, end)
    except Exception as error:  # a parser of damaged files raises whatever it stumbles over
        return {"unreadable": f"not a complete PDF ({type(error).__name__})"}


def _extract(path: str, end: float) -> dict[str, Any]:
    import pypdf
    from pypdf.generic import DictionaryObject

    # Half of a damaged stream is half of a page; better none of it.
    pypdf.overwrite_configuration(zlib_maximum_recovery_input_length=0)
    with open(path, "rb") as file:
        head = file.read(_TAIL_BYTES)
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        if b"%PDF-" not in head:
            return {"unreadable": "not a PDF"}
        if b"%%EOF" not in file.read():
            return {"unreadable": "not a complete PDF (cut off: no end mark)"}
        file.seek(0)
        reader = pypdf.PdfReader(file)
        if reader.is_encrypted and not reader.decrypt(""):
            return {"unreadable": "encrypted; deliver it without a password"}
        num_pages = len(reader.pages)
        pages_object = reader.root_object["/Pages"].get_object()
        if not isinstance(pages_object, DictionaryObject) or pages_object.get("/Count") != num_pages:
            return {"unreadable": "not a complete PDF (pages are missing)"}
        if num_pages > MAX_PAGES:
            return {"unreadable": f"has more than {MAX_PAGES:,} pages"}
        pages = []
        for page in reader.pages:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, min(PAGE_SECONDS, end - time.monotonic())))
            pages.append(page.extract_text())
    return {"pages": pages}


if __name__ == "__main__":
    main()
