"""The licence that a folder states: that of a model, or of data."""

import re
from pathlib import Path
from typing import Any

import yaml

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_LICENCE_FILE = re.compile(r"(?:licen[cs]e|copying)(?:\.(?:txt|md))?", re.IGNORECASE)
#: A licence's name is in its first lines; a README may be long.
_MAX_BYTES = 65_536


def stated_licence(folder: Path) -> str | None:
    """Return the licence in the front matter of a model's README.md, else the name of its licence file with
    its first line; None: neither.
    """
    readme = folder / "README.md"
    if readme.is_file():
        front_matter = _front_matter(_beginning(readme))
        name = front_matter.get("license_name") or front_matter.get("license")
        if name:
            link = front_matter.get("license_link")
            return f"{name} ({link})" if link else str(name)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_file() and _LICENCE_FILE.fullmatch(path.name):
            line = next((line.strip() for line in _beginning(path).splitlines() if line.strip()), "")
            return f"see its file {path.name}" + (f": {line[:120]}" if line else "")
    return None


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MAX_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")


def _front_matter(text: str) -> dict[str, Any]:
    match = _FRONT_MATTER.match(text)
    try:
        fields = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:  # somebody else's README: no licence is stated then
        fields = None
    return fields if isinstance(fields, dict) else {}
