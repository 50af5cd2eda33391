"""Tasks of the lm-evaluation-harness (lm-eval) that the user brings: kept in the store, and what each system
scored on them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fullft_assets.errors import DataError
from fullft_assets.evaluation.intervals import Gain, Interval, Record, bounded_interval
from fullft_assets.evaluation.titles import FINETUNED
from fullft_assets.settings import UseCaseSettings
from fullft_assets.store import Draft, Manifest, Store
from fullft_assets.store.hashing import digest, file_digest

#: Stage of the copy, and the name of its artifact among the inputs of an evaluation.
STAGE = "lm_eval_tasks"
VERSION = "1"
#: Folder in the artifact.
FOLDER = "tasks"
#: task -> metric -> a value for each of the task's rows.
RowScores = Mapping[str, Mapping[str, np.ndarray]]


class TaskScores(Record):
    """What each system scored on one metric of a task; each row counts once, and the gains are paired.

    Attributes:
        gains: fine-tuned minus each other system.
    """

    task: str
    metric: str
    num_rows: int
    scores: dict[str, Interval]
    gains: dict[str, Gain]


def keep(store: Store, case: str, settings: UseCaseSettings, root: Path) -> Manifest | None:
    """Copy the folder of `evaluation.lm_eval` into the store; None where there is none.

    Raises:
        DataError: there is no such folder.
    """
    asked = settings.evaluation.lm_eval
    if asked is None:
        return None
    folder = root / asked.folder
    if not folder.is_dir():
        raise DataError(
            f"evaluation.lm_eval.folder: there is no folder {folder}; name the one with the tasks' YAML files"
        )
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if _counts(path.relative_to(folder), path)
    }

    def write(draft: Draft) -> tuple[dict[str, int], list]:
        for name, path in files.items():
            (draft.path / FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, draft.path / FOLDER / name)
        return {"num_files": len(files)}, []

    inputs = {"files": digest({name: file_digest(path) for name, path in files.items()})}
    return store.ensure(case, STAGE, write, version=VERSION, settings={}, inputs=inputs, seed=0)


def _counts(name: Path, path: Path) -> bool:
    return (
        path.is_file()
        and "__pycache__" not in name.parts
        and not any(part.startswith(".") for part in name.parts)
    )


def task_scores(row_scores: Mapping[str, RowScores], confidence: float) -> list[TaskScores]:
    """Return every score of each task with its interval.

    Args:
        row_scores: of `finetuned` and the other systems.
    """
    return [
        _scores(task, metric, {name: each[task][metric] for name, each in row_scores.items()}, confidence)
        for task, metrics in row_scores[FINETUNED].items()
        for metric in metrics
        # Each system's numbers decide whether a score is a mean over rows, and one row gives no interval.
        if all(metric in each[task] and len(each[task][metric]) > 1 for each in row_scores.values())
    ]


def _scores(task: str, metric: str, values: Mapping[str, np.ndarray], confidence: float) -> TaskScores:
    ours = values[FINETUNED]
    freedom, is_share = (
        max(len(ours) - 1, 1),
        all(((each >= 0) & (each <= 1)).all() for each in values.values()),
    )
    bounds = (0.0, 1.0) if is_share else (None, None)
    return TaskScores(
        task=task,
        metric=metric,
        num_rows=len(ours),
        scores={
            name: bounded_interval(float(each.mean()), _error(each), freedom, confidence, bounds)
            for name, each in values.items()
        },
        gains={
            name: Gain.of(
                float((ours - each).mean()),
                _error(ours - each),
                freedom,
                confidence,
                (ours - each)[ours != each] / len(ours),
            )
            for name, each in values.items()
            if name != FINETUNED
        },
    )


def _error(values: np.ndarray) -> float:
    """Return the standard error of a mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
