"""The sample `summaries`: documentation in Python's standard library (PSF licence) without its first line,
and that line as its summary.

PEP 257 asks for a docstring that begins with a summary of one line, a blank line behind it: pairs that people
wrote and that every Python has. The group is the module.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from fullft_assets.demos.folders import written_whole
from fullft_assets.demos.licence_texts import docstrings

INSTRUCTION = "Summarise this documentation in one line."
#: Characters: of a shorter text there is nothing to summarise, a longer one would need more memory, and a
#: longer first line is no summary.
MIN_TEXT = 150
MAX_TEXT = 600
SUMMARY = (20, 100)
_NOT_DOCUMENTED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}


def pairs() -> Iterator[dict[str, str]]:
    """Yield `id`, `prompt`, `completion` and `module` of every docstring that begins with a summary."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library)
        if _NOT_DOCUMENTED & set(module.parts):
            continue
        for number, text in enumerate(docstrings(path)):
            summary, _, body = text.partition("\n\n")
            if (
                "\n" not in summary
                and SUMMARY[0] <= len(summary) <= SUMMARY[1]
                and MIN_TEXT <= len(body) <= MAX_TEXT
            ):
                yield {
                    "id": f"{module.as_posix()}#{number}",
                    "prompt": f"{INSTRUCTION}\n\n{body}",
                    "completion": summary,
                    "module": module.as_posix(),
                }


def write(folder: Path) -> Path:
    """Write the pairs as JSON lines below a folder and return it; one that exists is left alone."""
    if folder.is_dir():
        return folder
    with written_whole(folder) as aside:
        lines = (json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs())
        (aside / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
