"""Scores a language model on tasks of the lm-evaluation-harness (the extra `lm-eval`), from YAML files alone:
nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedModel

from fullft_assets.base_model import ModelFolder
from fullft_assets.errors import DataError, SettingsError
from fullft_assets.jobs.progress import Progress
from fullft_assets.models.inference import move
from fullft_assets.settings import LmEvalSettings
from fullft_assets.tasks.language.assessment import RowScores

#: Sequences that are scored at a time.
_BATCH_SIZE = 8


def score_tasks(
    model: PreTrainedModel,
    model_folder: ModelFolder,
    folder: Path,
    asked: LmEvalSettings,
    seed: int,
    progress: Progress,
) -> RowScores:
    """Return what a model scored on each row of the tasks; metrics that are no mean over rows are named in
    the log and left out.

    Args:
        model_folder: with its tokenizer.
        folder: with the tasks' YAML files; the files that they name are relative to it.

    Raises:
        SettingsError: lm-eval is not installed.
        DataError: a task cannot be loaded, or has no metric that is a mean over its rows.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise SettingsError(
            "evaluation.lm_eval: lm-eval is not installed; pip install 'fullft-assets[lm-eval]'"
        )
    from lm_eval.evaluator import evaluate  # pyright: ignore[reportMissingImports]  # an extra
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]  # an extra

    with _in_folder(folder):
        loaded = _load(asked.tasks, folder, seed)
        move(model)
        was_training = model.training
        tokenizer = AutoTokenizer.from_pretrained(str(model_folder))
        scored = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=_BATCH_SIZE)
        done = evaluate(scored, loaded, bootstrap_iters=0)
        model.train(was_training)
    return {
        task: _by_row(task, rows, done["results"][task], progress) for task, rows in done["samples"].items()
    }


def _load(names: Sequence[str], folder: Path, seed: int) -> Any:
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]  # an extra

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise DataError(
            f"evaluation.lm_eval.tasks: no YAML file in the folder has the task {unknown[0]}; it has"
            f" {', '.join(manager.all_tasks)}"
        )
    try:
        loaded = manager.load(list(names))
    except Exception as error:
        # Of lm-eval, of datasets, or of the YAML's own code: what they raise has no common class.
        raise DataError(
            f"evaluation.lm_eval: lm-eval cannot load {', '.join(names)}: {type(error).__name__}: {error}"
        ) from error
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=seed)
    return loaded


def _by_row(
    task: str, rows: Sequence[dict[str, Any]], reported: dict[str, Any], progress: Progress
) -> dict[str, np.ndarray]:
    values: dict[str, list[Any]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["doc_id"]):
        for metric in row["metrics"]:
            values[f"{metric},{row['filter']}"].append(row[metric])
    row_scores = {}
    for name, each in values.items():
        is_mean = all(isinstance(value, bool | int | float | np.number) for value in each) and np.isclose(
            np.mean(each), reported[name]
        )
        title = name.removesuffix(",none").replace(",", ", ")
        if is_mean:
            row_scores[title] = np.array(each, float)
        else:
            progress.say(f"lm-eval task {task}: {title} is no mean over the rows, so it is left out")
    if not row_scores:
        raise DataError(
            f"evaluation.lm_eval: the task {task} has no metric that is a mean over its rows, such as acc or"
            " exact_match"
        )
    return row_scores


@contextlib.contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    """Let relative paths of a YAML start at its folder, and keep what datasets writes of them only as long as
    this lasts.
    """
    from datasets import config
    from huggingface_hub import constants

    with tempfile.TemporaryDirectory(prefix="fullft-") as scratch, contextlib.chdir(folder):
        before = config.HF_DATASETS_CACHE, config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
        config.HF_DATASETS_CACHE = Path(scratch)
        config.HF_HUB_OFFLINE = True
        constants.HF_HUB_OFFLINE = True
        try:
            yield
        finally:
            config.HF_DATASETS_CACHE, config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
