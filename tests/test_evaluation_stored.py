"""Stored reports of each task: their scores against scikit-learn on the stored rows, and the lists beside
them, which lose erased documents.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn import metrics
from sklearn.preprocessing import MultiLabelBinarizer

from fullft_assets import erasure
from fullft_assets.evaluation import Evaluation, read_evaluation
from fullft_assets.evaluation.comparison import MAX_GROUP_WEIGHT
from fullft_assets.settings import UseCaseSettings
from fullft_assets.store import Manifest, Store
from fullft_assets.tasks.language import scoring
from tests import (
    labelled_reports,
    test_evaluation_language_workload as language,
    test_evaluation_workload as classification,
)

#: Of these the report has all probabilities of the fine-tuned model alone.
OF_PROBABILITIES = ("auroc",)
REPORTS = ["classified", "several", "spanned", "written"]


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    """A report with a champion and with metrics beside the task's own."""
    lab = classification.Lab(tmp_path_factory.mktemp("mail"))
    settings: UseCaseSettings = lab.use_case.settings
    more = settings.model_copy(
        update={"evaluation": settings.evaluation.model_copy(update={"metrics": [*OF_PROBABILITIES]})}
    )
    candidate = lab.checkpoint("candidate", classification.small_model(lab.labels, [0, 1, 2]))
    champion = lab.checkpoint(
        "champion", classification.small_model(lab.labels, [1, 0, 2], head=["invoice", "letter", "order"])
    )
    return lab.store, lab.evaluate(candidate, "stored", champion, more)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    return labelled_reports.several_labels(tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def spanned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    return labelled_reports.spans(tmp_path_factory.mktemp("spans"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    root = tmp_path_factory.mktemp("language")
    lab = language.Lab(root / "lab", "sft")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "MAX_NEW_TOKENS", 4)
        return lab.store, lab.evaluate(
            lab.checkpoint("learned", lab.learn(root / "model", steps=2)), key="stored"
        )


Scores = dict[str, Callable[[str], float]]


def classification_scores(rows: pd.DataFrame, found: Evaluation, weights: np.ndarray) -> Scores:
    names = list(cast(Any, found).labels)
    measurable = [name for name in names if name not in found.rare_labels]
    truth = np.array([names.index(label) for label in rows["label"]])

    probabilities = np.stack(rows["probabilities"].to_list())

    def macro_f1(system: str) -> float:
        given = rows[column(system, "predicted")]
        options = {"average": "macro", "sample_weight": weights, "zero_division": 0}
        return metrics.f1_score(rows["label"], given, labels=measurable, **options)

    def auroc(system: str) -> float:
        areas = [
            metrics.roc_auc_score(truth == label, probabilities[:, label], sample_weight=weights)
            for label, name in enumerate(names)
            if name in measurable
        ]
        return float(np.mean(areas))

    return {
        "macro_f1": macro_f1,
        "accuracy": lambda system: metrics.accuracy_score(
            rows["label"], rows[column(system, "predicted")], sample_weight=weights
        ),
        "auroc": auroc,
    }


def multi_label_scores(rows: pd.DataFrame, found: Evaluation, weights: np.ndarray) -> Scores:
    names = list(cast(Any, found).labels)
    table = MultiLabelBinarizer(classes=names)
    truth = table.fit_transform(rows["labels"])
    measurable = [place for place, name in enumerate(names) if name not in found.rare_labels]

    def given(system: str) -> np.ndarray:
        return table.transform(rows[column(system, "predicted")])

    def f1(system: str, average: str, labels: list[int] | None = None) -> float:
        return metrics.f1_score(
            truth, given(system), labels=labels, average=average, sample_weight=weights, zero_division=0
        )

    return {
        "micro_f1": lambda system: f1(system, "micro"),
        "macro_f1": lambda system: f1(system, "macro", measurable),
        "subset_accuracy": lambda system: metrics.accuracy_score(truth, given(system), sample_weight=weights),
    }


def span_scores(rows: pd.DataFrame, found: Evaluation, weights: np.ndarray) -> Scores:
    """Micro-F1 takes counts of spans, as the report has no texts: a system's are of its stored columns."""

    def micro_f1(system: str) -> float:
        given = rows[column(system, "predicted")].map(len)
        right, true = rows[column(system, "num_right")], rows["num_spans"]
        return float(2 * (right * weights).sum() / ((true + given) * weights).sum())

    return {"micro_f1": micro_f1}


def language_scores(rows: pd.DataFrame, found: Evaluation, weights: np.ndarray) -> Scores:
    tokens = rows["num_tokens_finetuned"]
    weights = weights * np.minimum(tokens, found.token_cap) / np.maximum(tokens, 1)

    def mean_loss(system: str) -> float:
        loss, number = rows[f"loss_{system}"] * weights, rows[f"num_tokens_{system}"] * weights
        return float(loss.sum() / number.sum())

    return {
        "token_probability": lambda system: float(np.exp(-mean_loss(system))),
        "perplexity": lambda system: float(np.exp(mean_loss(system))),
    }


SCORES = {
    "classified": classification_scores,
    "several": multi_label_scores,
    "spanned": span_scores,
    "written": language_scores,
}


def column(system: str, what: str) -> str:
    return what if system == "finetuned" else f"{system}.{what}"


def stored(store: Store, report: Manifest) -> tuple[Evaluation, pd.DataFrame, np.ndarray]:
    """Return an evaluation with its stored rows, and how much each row counts."""
    folder = store.folder(report)
    rows = pq.read_table(folder / "predictions.parquet").to_pandas()
    sizes: Mapping[str, int] = Counter(rows["group"])
    weights = np.array([1 / min(sizes[group], MAX_GROUP_WEIGHT) for group in rows["group"]])
    return read_evaluation((folder / "evaluation.json").read_bytes()), rows, weights


@pytest.mark.parametrize("name", REPORTS)
def test_scores_are_scikit_learn_s_on_the_stored_rows(request: pytest.FixtureRequest, name: str) -> None:
    found, rows, weights = stored(*request.getfixturevalue(name))
    compared = 0
    for metric, score in SCORES[name](rows, found, weights).items():
        for system in ["finetuned"] if metric in OF_PROBABILITIES else list(found.scores[metric]):
            interval = found.scores[metric][system]
            assert interval.low <= interval.estimate <= interval.high
            # Probabilities are stored in single precision.
            assert interval.estimate == pytest.approx(score(system), rel=1e-5, abs=1e-6), (metric, system)
            compared += 1
    assert compared > len(SCORES[name](rows, found, weights))


@pytest.fixture
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, Manifest]:
    """A store with a report that the test may change."""
    store, report = request.getfixturevalue(request.param)
    shutil.copytree(store.url, tmp_path / "store")
    return Store(str(tmp_path / "store")), report


@pytest.mark.parametrize("copied", ["classified", "written"], indirect=True)
def test_an_erased_document_is_in_no_report_and_in_no_list_beside_it(copied: tuple[Store, Manifest]) -> None:
    store, report = copied
    lists = [name for name in ("answers.jsonl", "label_errors.jsonl") if name in report.files]
    tables = ["predictions.parquet"]

    def ids(name: str) -> list[str]:
        path = store.folder(store.load(report.ref)) / name
        if name in tables:
            return pq.read_table(path)["id"].to_pylist()
        return [json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()]

    def shown() -> set[str]:
        page = (store.folder(store.load(report.ref)) / "report.html").read_text(encoding="utf-8")
        return set(re.findall(r'<tr data-document="([^"]+)">', page))

    assert lists
    before = {name: ids(name) for name in (*lists, *tables)}
    on_page = shown()
    erased = sorted({min(on_page), *(each[0] for each in before.values())})
    erasure.erase(store, report.case, erased)
    for name, each in before.items():
        assert ids(name) == [id_ for id_ in each if id_ not in erased]
    assert shown() == on_page - {*erased}
