"""The sample `licence_texts`, and the documentation of Python's standard library (PSF licence).

`licence_texts` has complete licence texts to continue pre-training a language model with, and general text to
replay, so that the model keeps its English: the docstrings of the library's modules. The licence texts are
those rules of the `licensedcode-data` package that are full texts (by the ScanCode project,
https://github.com/aboutcode-org/scancode-toolkit, CC-BY-4.0); the group is the licence expression.
"""

import ast
import json
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from fullft_assets.demos import licences
from fullft_assets.demos.licences import written_whole

NUM_FILES = 4
#: A shorter text is no document: a single line that names a licence.
MIN_CHARACTERS = 200


def licence_texts() -> Iterator[dict[str, str]]:
    """Yield `id`, `text` and `license-expression` of every full licence text."""
    for rule in licences.rules():
        if rule["kind"] == "text" and len(rule["text"]) >= MIN_CHARACTERS:
            yield {"id": rule["id"], "text": rule["text"], "license-expression": rule["expression"]}


def general() -> Iterator[dict[str, str]]:
    """Yield `id` and `text` of the docstrings of each module of Python's standard library that documents
    itself.
    """
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = "\n\n".join(docstrings(path))
        if len(text) >= MIN_CHARACTERS:
            yield {"id": path.stem, "text": text}


def write_licence_texts(folder: Path, *, max_texts: int | None = None) -> Path:
    """Write the delivery below `folder` (`documents/` and `general/`); an existing one is left alone."""
    if folder.is_dir():
        return folder
    delivered = list(licence_texts())[:max_texts]
    size = -(-len(delivered) // NUM_FILES)
    with written_whole(folder) as aside:
        for number in range(NUM_FILES):
            _write_lines(
                aside / "documents" / f"texts-{number + 1}.jsonl",
                delivered[number * size : (number + 1) * size],
            )
        _write_lines(aside / "general" / "standard-library.jsonl", list(general()))
    return folder


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a Python file: of the module, its classes and functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old escapes in old modules
        module = ast.parse(path.read_bytes())
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            text := ast.get_docstring(node)
        ):
            yield text
