"""What the user brings to an evaluation: predictions of another system (a vendor, a RAG), and modules of the
library `evaluate` as metrics. The store keeps copies, which a remote process reads.

A file of predictions has one JSON object a line: the row's `id` and what the system answered under the name
of the task's target (`label`, `labels` or `spans`). A module is code that runs in the evaluation, so
`evaluation.modules` names the digest of what was read.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fullft_assets.errors import DataError
from fullft_assets.evaluation.metrics.base import Metric, Predictions
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.evaluation import Module
from fullft_assets.snapshot import Split, read_index
from fullft_assets.store import CheckOutcome, Draft, Manifest, Store
from fullft_assets.store.hashing import digest, file_digest
from fullft_assets.store.metadata import Metadata
from fullft_assets.task import task_of

#: Stages of the copies, and the names of their artifacts among the inputs of an evaluation.
PREDICTIONS = "external_predictions"
MODULES = "evaluate_modules"
VERSION = "1"
_WANTED = {
    "label": '{"id": "...", "label": "..."}',
    "labels": '{"id": "...", "labels": ["..."]}',
    "spans": '{"id": "...", "spans": [{"start": 0, "end": 4, "label": "..."}]}',
}


class ExternalMetadata(Metadata):
    """Metadata of copied predictions: rows of each file, by the system's name."""

    num_rows: dict[str, int]


def keep(store: Store, case: str, settings: UseCaseSettings, root: Path) -> dict[str, Manifest]:
    """Copy what the section `evaluation` names into the store, and return the copies by stage.

    Raises:
        DataError: a file or a module is missing, a line cannot be read, or a digest is another one than the
            YAML's.
    """
    copies = (
        _keep_predictions(store, case, settings, root),
        _keep_modules(store, case, settings, root),
    )
    return {copy.stage: copy for copy in copies if copy is not None}


def _keep_predictions(store: Store, case: str, settings: UseCaseSettings, root: Path) -> Manifest | None:
    files = {name: root / answer for name, answer in settings.evaluation.external.items()}
    if not files:
        return None
    target = task_of(settings.examples).target
    assert target is not None, "the check of the YAML refuses files for tasks without labels"
    for name, path in files.items():
        if not path.is_file():
            raise DataError(
                f"evaluation.external: {name}: there is no file {path}; write it, or remove the entry"
            )

    def write(draft: Draft) -> tuple[Mapping[str, Any], list[CheckOutcome]]:
        counts = {}
        for name, path in files.items():
            rows = _read(name, path, target)
            lines = (
                json.dumps({"id": id_, target: answer}, ensure_ascii=False) for id_, answer in rows.items()
            )
            (draft.path / f"{name}.jsonl").write_text(
                "".join(f"{line}\n" for line in lines), encoding="utf-8"
            )
            counts[name] = len(rows)
        return ExternalMetadata(num_rows=counts).as_dict(), []

    return store.ensure(
        case,
        PREDICTIONS,
        write,
        version=VERSION,
        settings={"target": target},
        inputs={name: file_digest(path) for name, path in files.items()},
        seed=0,
    )


def _keep_modules(store: Store, case: str, settings: UseCaseSettings, root: Path) -> Manifest | None:
    task = task_of(settings.examples)
    files: dict[str, Path] = {}
    for module in settings.evaluation.named_modules:
        if task.target != "label" and not task.answer_metrics:
            raise DataError(
                f"evaluation.modules: {module.name}: a module takes one label a row or written answers, which"
                f" the task {task.name} does not have; remove it"
            )
        scripts = _scripts(module, root)
        actual = digest({name: file_digest(path) for name, path in scripts.items()})
        if actual != module.digest:
            raise DataError(
                f"evaluation.modules: {module.name}: the digest of its Python files is {actual}; they run in"
                f" the evaluation, so read {next(iter(scripts.values())).parent} and set it in the YAML"
            )
        files |= {f"{module.name}/{name}": path for name, path in scripts.items()}
    if not files:
        return None

    def write(draft: Draft) -> tuple[dict[str, int], list[CheckOutcome]]:
        for name, path in files.items():
            (draft.path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, draft.path / name)
        return {"num_files": len(files)}, []

    inputs = {module.name: module.digest for module in settings.evaluation.named_modules}
    return store.ensure(case, MODULES, write, version=VERSION, settings={}, inputs=inputs, seed=0)


def _scripts(module: Module, root: Path) -> dict[str, Path]:
    """Return the Python files of a module by their names: of a folder of the project, else of the newest copy
    in the cache of the hub.
    """
    hub = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    modules = Path(os.environ.get("HF_MODULES_CACHE", hub / "modules"))
    cache = modules / "evaluate_modules" / "metrics" / f"evaluate-metric--{module.module}"
    copies = sorted(cache.glob(f"*/{module.name}.py"), key=lambda path: path.stat().st_mtime)
    own_folder = root / module.module
    folder = copies[-1].parent if copies and not own_folder.is_dir() else own_folder
    scripts = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*.py"))
        if path.name != "__init__.py"
    }
    if f"{module.name}.py" not in scripts:
        raise DataError(
            f"evaluation.modules: {module.module}: there is neither {own_folder}/{module.name}.py"
            f" nor a copy in {cache}; name a folder of the project, or a module that `evaluate.load` has"
            " downloaded"
        )
    return scripts


def require_complete(store: Store, copies: Manifest, snapshot: Manifest) -> None:
    """Check, before anything costs time, that the files have every test row of a snapshot.

    Raises:
        DataError: rows are missing; the message says how many.
    """
    index = read_index(store, snapshot)
    ids = [
        id_
        for id_, split in zip(index["id"].to_pylist(), index["split"].to_pylist(), strict=True)
        if split == "test"
    ]
    for name in ExternalMetadata.of(copies).num_rows:
        answers(store.folder(copies), name, copies.settings["target"], ids)


def answers(folder: Path, name: str, target: str, ids: Sequence[str]) -> list[Any]:
    """Return a system's answer for each row, in the order of the rows.

    Raises:
        DataError: rows are missing; the message says how many.
    """
    answer_of = _read(name, folder / f"{name}.jsonl", target)
    missing = [id_ for id_ in ids if id_ not in answer_of]
    if missing:
        raise DataError(
            f"evaluation.external: {name}: {len(missing):,} of {len(ids):,} test rows have no prediction, the"
            f" first is {missing[0]!a}; add them to its file, or remove the entry"
        )
    return [answer_of[id_] for id_ in ids]


def positions(name: str, names: Sequence[Sequence[str]], labels: Sequence[str]) -> list[list[int]]:
    """Return label names as positions in the label order.

    Args:
        names: names of each row.

    Raises:
        DataError: a name is no label of the snapshot.
    """
    position_of = {label: position for position, label in enumerate(labels)}
    unknown_labels = [label for row in names for label in row if label not in position_of]
    if unknown_labels:
        num_rows = sum(any(label not in position_of for label in row) for row in names)
        raise DataError(
            f"evaluation.external: {name}: {num_rows:,} rows have a label that the snapshot lacks, the first"
            f" is {str(unknown_labels[0])[:80]!a}; map it to one of {', '.join(labels)}"
        )
    return [[position_of[label] for label in row] for row in names]


def spans(
    name: str, answers: Sequence[Sequence[Mapping[str, Any]]], rows: Split, labels: Sequence[str]
) -> list[list[tuple[int, int, int]]]:
    """Return spans (start, end exclusive, position of the label) of each row.

    Raises:
        DataError: one is outside of its text, or has a label that the snapshot lacks.
    """
    numbers = positions(name, [[str(span["label"]) for span in row] for row in answers], labels)
    spans_of_rows = [
        [(span["start"], span["end"], number) for span, number in zip(row, row_labels, strict=True)]
        for row, row_labels in zip(answers, numbers, strict=True)
    ]
    for id_, text, row in zip(rows.ids, rows.texts, spans_of_rows, strict=True):
        for start, end, _ in row:
            if not 0 <= start < end <= len(text):
                raise DataError(
                    f"evaluation.external: {name}: row {id_!a} has a span {start} to {end} in a text of"
                    f" {len(text):,} characters"
                )
    return spans_of_rows


def _read(name: str, path: Path, target: str) -> dict[str, Any]:
    answer_of: dict[str, Any] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            id_ = str(row["id"])
            if not _FITS[target](answer := row[target]):
                raise TypeError(target)
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"evaluation.external: {name}: {path.name}, line {number}: wanted is {_WANTED[target]}"
            ) from None
        if id_ in answer_of:
            raise DataError(
                f"evaluation.external: {name}: {path.name}, line {number}: {id_!a} has a prediction above"
                " already; remove one"
            )
        answer_of[id_] = answer
    return answer_of


_FITS = {
    "label": lambda answer: isinstance(answer, str),
    "labels": lambda answer: isinstance(answer, list) and all(isinstance(label, str) for label in answer),
    "spans": lambda answer: (
        isinstance(answer, list)
        and all(
            type(span["start"]) is int and type(span["end"]) is int and isinstance(span["label"], str)
            for span in answer
        )
    ),
}


def load_modules(store: Store, copies: Manifest | None, settings: UseCaseSettings) -> dict[str, Metric]:
    """Return the metrics of the copied modules by name."""
    if copies is None:
        return {}
    import evaluate

    is_of_answers = task_of(settings.examples).target is None
    metrics: dict[str, Metric] = {}
    for module in settings.evaluation.named_modules:
        program = evaluate.load(str(store.folder(copies) / module.name), keep_in_memory=True)
        names = {"name": module.name, "title": module.name.replace("_", " "), "of_answers": is_of_answers}
        metrics[module.name] = type("EvaluateModule", (_ModuleMetric,), names)(program)
    return metrics


class _ModuleMetric(Metric):
    """A metric that a module of `evaluate` computes; each row counts once, whatever its group's size."""

    tasks = ("classification", "sft")
    bounds = (None, None)

    def __init__(self, module: Any):
        self._module = module

    def measures(self, predictions: Predictions) -> bool:
        return predictions.num_predicted is not None or self.of_answers

    def compute(self, predictions: Predictions) -> float:
        # `compute` would write each resample into an Arrow table; `_compute` is what a module defines.
        if self.of_answers:
            scores = self._module._compute(
                predictions=list(predictions.predicted), references=list(predictions.truth)
            )
        else:
            assert predictions.num_predicted is not None, "only what has labels is measured"
            scores = self._module._compute(
                predictions=predictions.num_predicted.argmax(1).tolist(),
                references=predictions.truth.tolist(),
            )
        return self._number(scores)

    def _number(self, scores: Mapping[str, Any]) -> float:
        value = scores.get(self.name, next(iter(scores.values())) if len(scores) == 1 else None)
        try:
            return float(value)  # pyright: ignore[reportArgumentType]  # else it is refused
        except (TypeError, ValueError):
            raise DataError(
                f"evaluation.modules: {self.name}: computes {', '.join(scores)}, and none is a number called"
                f" {self.name}; return {{{self.name!r}: number}}"
            ) from None
