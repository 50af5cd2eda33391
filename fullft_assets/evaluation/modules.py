"""Modules of the library `evaluate` as metrics: copied into the store, and loaded from there.

A module is code that runs in the evaluation, so `evaluation.modules` names the digest of what was read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fullft_assets.errors import DataError
from fullft_assets.evaluation.metrics.base import Metric, Predictions
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.evaluation import Module
from fullft_assets.store import Draft, Manifest, Store
from fullft_assets.store.hashing import digest, file_digest
from fullft_assets.task import task_of

#: Stage of the copies, and the name of their artifact among the inputs of an evaluation.
STAGE = "evaluate_modules"
VERSION = "1"


def keep(store: Store, case: str, settings: UseCaseSettings, root: Path) -> Manifest | None:
    """Copy the Python files of `evaluation.modules` into the store; None where there are none.

    Raises:
        DataError: there is no such module, or its digest is another one than the YAML's.
    """
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

    def write(draft: Draft) -> tuple[dict[str, int], list]:
        for name, path in files.items():
            (draft.path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, draft.path / name)
        return {"num_files": len(files)}, []

    inputs = {module.name: module.digest for module in settings.evaluation.named_modules}
    return store.ensure(case, STAGE, write, version=VERSION, settings={}, inputs=inputs, seed=0)


def _scripts(module: Module, root: Path) -> dict[str, Path]:
    """Return the Python files of a module by their names: of a folder of the project, else of the newest copy
    in the cache of the hub.
    """
    hub = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    modules = Path(os.environ.get("HF_MODULES_CACHE", hub / "modules"))
    cached = modules / "evaluate_modules" / "metrics" / f"evaluate-metric--{module.module}"
    copies = sorted(cached.glob(f"*/{module.name}.py"), key=lambda path: path.stat().st_mtime)
    folder = copies[-1].parent if copies else root / module.module
    if (root / module.module).is_dir():
        folder = root / module.module
    scripts = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*.py"))
        if path.name != "__init__.py"
    }
    if f"{module.name}.py" not in scripts:
        raise DataError(
            f"evaluation.modules: {module.module}: there is neither {root / module.module}/{module.name}.py"
            f" nor a copy in {cached}; name a folder of the project, or a module that `evaluate.load` has"
            " downloaded"
        )
    return scripts


def load(store: Store, copies: Manifest | None, settings: UseCaseSettings) -> dict[str, Metric]:
    """Return the metrics of the copied modules by name."""
    if copies is None:
        return {}
    import evaluate

    is_of_answers = task_of(settings.examples).target is None
    metrics: dict[str, Metric] = {}
    for module in settings.evaluation.named_modules:
        loaded = evaluate.load(str(store.folder(copies) / module.name), keep_in_memory=True)
        names = {"name": module.name, "title": module.name.replace("_", " "), "of_answers": is_of_answers}
        metrics[module.name] = type("EvaluateModule", (_ModuleMetric,), names)(loaded)
    return metrics


class _ModuleMetric(Metric):
    """A metric that a module of `evaluate` computes; each row counts once, whatever its group's size."""

    tasks = ("classification", "sft")
    bounds = (None, None)

    def __init__(self, module: Any):
        self._module = module

    def measures(self, predictions: Predictions) -> bool:
        return predictions.given is not None or self.of_answers

    def compute(self, predictions: Predictions) -> float:
        # `compute` would write each resample into an Arrow table; `_compute` is what a module defines.
        if self.of_answers:
            scores = self._module._compute(
                predictions=list(predictions.predicted), references=list(predictions.truth)
            )
        else:
            assert predictions.given is not None, "only what has labels is measured"
            labels = predictions.given.argmax(1).tolist()
            scores = self._module._compute(predictions=labels, references=predictions.truth.tolist())
        return self._number(scores)

    def _number(self, scores: Mapping[str, Any]) -> float:
        """Return the score of the module's own name, else its only one."""
        value = scores.get(self.name, next(iter(scores.values())) if len(scores) == 1 else None)
        try:
            return float(value)  # pyright: ignore[reportArgumentType]  # else it is refused
        except (TypeError, ValueError):
            raise DataError(
                f"evaluation.modules: {self.name}: computes {', '.join(scores)}, and none is a number called"
                f" {self.name}; return {{{self.name!r}: number}}"
            ) from None
