"""Text of scanned pages, recognised by RapidOCR (extra `ocr`): its models are in its package, and nothing
goes over a network.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PACKAGES = ("rapidocr", "onnxruntime", "pypdfium2")
#: Pixels of a page are this many times its points: 144 dpi, at which body text is tall enough for the models.
_SCALE = 2


def is_installed() -> bool:
    """Return whether the extra `ocr` is there."""
    return all(importlib.util.find_spec(name) is not None for name in _PACKAGES)


def version() -> str:
    """Return the release whose models read the pages: another one may read another text."""
    return importlib.metadata.version("rapidocr")


def recognised(
    path: Path, pages: Sequence[str], recognise: Callable[[Any], Any], advance: Callable[[], None]
) -> list[str]:
    """Return the pages of a PDF, those without text with what is recognised on them, a line of the page each.

    Args:
        pages: the text of each page.
        recognise: what `engine` yields.
        advance: called before each page, as its time begins anew.
    """
    texts = list(pages)
    with importlib.import_module("pypdfium2").PdfDocument(path) as document:
        for number, text in enumerate(pages):
            if not text:
                advance()
                lines = recognise(document[number].render(scale=_SCALE).to_numpy()).txts
                texts[number] = "\n".join(lines or ())
    return texts


@contextmanager
def engine() -> Iterator[Callable[[Any], Any]]:
    """Yield what recognises the text of an image [height, width, 3]; one thread, as processes read files side
    by side.
    """
    rapidocr = importlib.import_module("rapidocr")
    yield rapidocr.RapidOCR(
        params={"Global.log_level": "critical", "EngineConfig.onnxruntime.intra_op_num_threads": 1}
    )
