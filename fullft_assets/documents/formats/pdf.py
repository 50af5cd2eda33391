"""PDF: the text layer, one document a file."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.pdf_worker import FILE_SECONDS, PAGE_SECONDS
from fullft_assets.documents.formats.protocol import Format, Reading

NO_TEXT_LAYER = "no text layer (scanned pages?); recognise the text (OCR) and deliver again"


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield the document that a PDF is."""
    text = reading.shared(TextLayers).read(file.path)
    yield 1, file.document(text) if text else NO_TEXT_LAYER


class TextLayers:
    """Reader of text layers in a process of its own, started at the first PDF and used for all of a batch."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> TextLayers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def read(self, path: Path) -> str:
        """Return a PDF's text, pages separated by a blank line; empty where it has no text layer.

        Raises:
            Unreadable: it is damaged, encrypted, or takes too long.
        """
        answer = json.loads(self._ask(path))
        if "unreadable" in answer:
            raise Unreadable(answer["unreadable"])
        text = "\n\n".join(page.strip() for page in answer["pages"])
        # A font's table may map a glyph to half of a surrogate pair, which is no character.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return re.sub(r"\n{3,}", "\n\n", text).strip()

    def _ask(self, path: Path) -> str:
        if self._process is None:
            # By its path, without its folder on sys.path: the package takes longer to import than a PDF to read.
            worker = Path(__file__).with_name("pdf_worker.py")
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        try:
            process.stdin.write(json.dumps(str(path)) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer.endswith("\n"):
            return answer
        process.communicate()  # its pipe is closed: it has ended, or is about to
        self._process = None
        if process.returncode == -signal.SIGALRM:
            raise Unreadable(f"takes longer than {PAGE_SECONDS:.0f} s a page or {FILE_SECONDS:.0f} s in all")
        raise Unreadable(f"not a complete PDF (its reader ended with exit code {process.returncode})")


FORMAT = Format(records, endings=(".pdf",), is_whole_file=True, is_slow=True)
