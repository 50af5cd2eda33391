"""Names, places and dates in texts: found by a spaCy pipeline that the user has (extra `pii`).

No trained pipeline is part of this package or of the extra: `examples.pii_model` names an installed one, or a
folder. It is not deterministic in the way that the patterns are: what it finds depends on the words around,
so its digest is part of what keys are made of.
"""

import importlib.util
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fullft_assets.base_model import suggest_path
from fullft_assets.errors import SettingsError
from fullft_assets.personal_data.kinds import Found
from fullft_assets.settings.examples import PII_MODEL_KINDS
from fullft_assets.settings.use_case import UseCase, locate
from fullft_assets.store.hashing import digest, file_digest

#: Labels of spaCy's pipelines, in all of their languages, by our name of the kind.
_LABELS = {
    "person": ("PER", "PERSON", "PRS", "PS", "persName"),
    "location": ("LOC", "LOCATION", "GPE", "GPE_LOC", "FAC", "FACILITY", "LC", "placeName", "geogName"),
    "date": ("DATE", "DATETIME", "DT", "TME", "date"),
}
#: A pipeline takes about a gigabyte for 100,000 characters at once, and refuses more than a million.
_MOST_CHARACTERS = 20_000
#: Texts, or pieces of long ones, that the pipeline computes together.
_BATCH = 64


@dataclass(frozen=True)
class _Pipeline:
    folder: Path
    labels: tuple[str, ...]

    def digest(self) -> str:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return _digest(
            self.folder, tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
        )


def find_pipeline(use_case_model: str, kinds: Collection[str], root: Path) -> _Pipeline:
    """Return the pipeline that `examples.pii_model` names: a folder below the project's root, or else an
    installed package.

    Raises:
        SettingsError: the extra or the pipeline is missing, or it finds nothing of a kind that is asked for.
    """
    if importlib.util.find_spec("spacy") is None:
        raise SettingsError("needs spacy; pip install 'fullft-assets[pii]', or remove it")
    folder = _folder(use_case_model, root)
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    labels = tuple(
        sorted({label for of_component in meta.get("labels", {}).values() for label in of_component})
    )
    missing_kinds = [kind for kind in PII_MODEL_KINDS if kind in kinds and not {*_LABELS[kind]} & {*labels}]
    if missing_kinds:
        raise SettingsError(
            f"{use_case_model} has no label for {' or '.join(missing_kinds)}; list in examples.pii_kinds the"
            " kinds that it finds"
        )
    return _Pipeline(folder, labels)


def pipeline_key(use_case: UseCase) -> dict[str, str]:
    """Return the part of an artifact's key that identifies the spaCy pipeline of a use case: its digest, or
    an empty dictionary without a pipeline.

    Raises:
        SettingsError: see `find_pipeline`.
    """
    return {} if (pipeline := _pipeline_of(use_case)) is None else {"pii_pipeline": pipeline.digest()}


def entity_model(use_case: UseCase) -> "EntityModel | None":
    """Return the model of a use case, loaded once in a process; None where none is used.

    Raises:
        SettingsError: see `find_pipeline`.
    """
    pipeline = _pipeline_of(use_case)
    kinds = tuple(kind for kind in PII_MODEL_KINDS if kind in use_case.settings.examples.pii_kinds)
    return None if pipeline is None else _load(pipeline, kinds)


def _pipeline_of(use_case: UseCase) -> _Pipeline | None:
    if (examples := use_case.settings.examples).pii_model is None or examples.pii == "off":
        return None
    try:
        return find_pipeline(examples.pii_model, examples.pii_kinds, use_case.project_root)
    except SettingsError as error:
        raise SettingsError(f"examples.pii_model: {error}") from None


def _folder(name: str, root: Path) -> Path:
    candidates = [locate(name, root)]
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is not None and spec.submodule_search_locations:
        package = Path(next(iter(spec.submodule_search_locations)))
        candidates += [path.parent for path in sorted(package.glob("*/config.cfg"))]
    for folder in candidates:
        if (folder / "meta.json").is_file() and (folder / "config.cfg").is_file():
            return folder
    if candidates[0].is_dir():
        raise SettingsError(f"no spaCy pipeline is in {name} (meta.json, config.cfg)")
    raise SettingsError(
        f"no installed spaCy pipeline and no folder has the name {name}{suggest_path(name, root)}"
    )


@lru_cache(maxsize=8)
def _digest(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    # Sensors ask for it at every tick: what has the same sizes and times is not read again.
    return digest({str(path.relative_to(folder)): file_digest(path) for path, _, _ in files})


@lru_cache(maxsize=1)
def _load(pipeline: _Pipeline, kinds: tuple[str, ...]) -> "EntityModel":
    return EntityModel(pipeline, kinds)


class EntityModel:
    """Finds names, places and dates. Creating one loads the spaCy pipeline, which takes seconds."""

    def __init__(self, pipeline: _Pipeline, kinds: Sequence[str]):
        self._kinds = {label: kind for kind in kinds for label in _LABELS[kind]}
        # By its folder: nothing is looked for on a network.
        self._pipeline: Any = importlib.import_module("spacy").load(pipeline.folder)

    def find_all(self, texts: Sequence[str]) -> list[list[Found]]:
        """Return the pieces of personal data in each text; pieces of one text do not overlap."""
        pieces: list[list[Found]] = [[] for _ in texts]
        parts = [(row, start, end) for row, text in enumerate(texts) for start, end in _windows(text)]
        documents = self._pipeline.pipe(
            (texts[row][start:end] for row, start, end in parts), batch_size=_BATCH
        )
        for (row, start, _), document in zip(parts, documents, strict=True):
            for entity in document.ents:
                if (kind := self._kinds.get(entity.label_)) is not None:
                    pieces[row].append(
                        Found(start + entity.start_char, start + entity.end_char, f"[{kind.upper()}]", kind)
                    )
        return pieces


def _windows(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(text):
        if (end := min(len(text), start + _MOST_CHARACTERS)) < len(text):
            end = max(text.rfind(separator, start, end) for separator in "\n ") + 1 or end
        yield start, end
        start = end
