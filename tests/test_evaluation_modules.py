"""Modules of `evaluate` as metrics: their code is read first, copied into the store, and scores every system
with an interval.
"""

import re
import socket
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from sklearn.metrics import balanced_accuracy_score

from fullft_assets.errors import DataError
from fullft_assets.evaluation import external, read_evaluation
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.evaluation import EvaluationSettings
from fullft_assets.store import Store
from tests import test_evaluation_workload as classification

SCRIPT = """
import datasets
import evaluate
from sklearn.metrics import balanced_accuracy_score


class Recall(evaluate.Metric):
    def _info(self):
        features = datasets.Features(
            {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        )
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"balanced_accuracy": float(balanced_accuracy_score(references, predictions)), "rows": 1.0}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return classification.Lab(tmp_path_factory.mktemp("mail"))


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The hub's cache of modules; no connection can be opened."""

    def refuse(*_: object) -> None:
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "modules"


def with_module(settings: UseCaseSettings, module: str, digest: str = "0" * 20) -> UseCaseSettings:
    return settings.model_copy(
        update={"evaluation": settings.evaluation.model_copy(update={"modules": {module: digest}})}
    )


def with_its_digest(store: Store, settings: UseCaseSettings, module: str, root: Path) -> UseCaseSettings:
    """Return settings with the digest that the refusal of another one names."""
    with pytest.raises(DataError, match="digest of its Python") as refused:
        external.keep(store, "mail", with_module(settings, module), root)
    (digest,) = re.findall(r"files is ([0-9a-f]{20});", str(refused.value))
    return with_module(settings, module, digest)


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_module_scores_every_system_with_an_interval(lab: Any, cache: Path, is_cached: bool) -> None:
    key = f"module-{is_cached}"
    folder = lab.root / "metrics" / "balanced_accuracy"
    if is_cached:
        folder = cache / "evaluate_modules" / "metrics" / "evaluate-metric--balanced_accuracy" / ("a" * 64)
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    script = folder / "balanced_accuracy.py"
    script.write_text(SCRIPT)
    module = "balanced_accuracy" if is_cached else "metrics/balanced_accuracy"
    settings = with_its_digest(lab.store, lab.use_case.settings, module, lab.root)
    brought = external.keep(lab.store, "mail", settings, lab.root)
    assert list(brought[external.MODULES].files) == ["balanced_accuracy/balanced_accuracy.py"]
    # The evaluation runs what was copied.
    script.write_text("raise SystemExit")
    with pytest.raises(DataError, match="digest of its Python"):
        external.keep(lab.store, "mail", settings, lab.root)
    candidate = lab.checkpoint(key, classification.small_model(lab.labels, [0, 1, 2]))
    report = lab.evaluate(candidate, key, settings=settings, brought=brought)
    rows = pq.read_table(lab.store.folder(report) / "predictions.parquet").to_pydict()
    evaluation = read_evaluation((lab.store.folder(report) / "evaluation.json").read_bytes())
    for system, score in evaluation.scores["balanced_accuracy"].items():
        predicted = rows["predicted" if system == "finetuned" else f"{system}.predicted"]
        assert score.estimate == pytest.approx(balanced_accuracy_score(rows["label"], predicted))
        assert score.low <= score.estimate <= score.high
    # A system and a metric both have `_` in their names.
    metadata = EvaluationMetadata.of(report)
    assert set(metadata.scores) == set(metadata.systems) == set(evaluation.scores["macro_f1"]) - {"finetuned"}
    scores = {
        f"{name}_{metric}": score for name, row in metadata.scores.items() for metric, score in row.items()
    }
    assert (
        EvaluationMetadata.of(
            report.model_copy(update={"metadata": {**report.metadata, **scores, "scores": {}}})
        ).scores
        == metadata.scores
    )
    assert "balanced accuracy" in (lab.store.folder(report) / "report.md").read_text()


def test_a_module_that_is_not_there_or_has_a_taken_name_is_refused(cache: Path, tmp_path: Path) -> None:
    settings = UseCaseSettings.model_validate(
        {"base_model": "model", "documents": {"path": "data"}, "examples": {"label": "kind"}}
    )
    store = Store(str(tmp_path / "store"))
    with pytest.raises(DataError, match=r"metrics/cost: .*/metrics/cost/cost\.py"):
        external.keep(store, "mail", with_module(settings, "metrics/cost"), tmp_path)
    with pytest.raises(ValidationError, match="accuracy is .* registered"):
        EvaluationSettings(modules={"metrics/accuracy": "0" * 20})
    several = settings.model_copy(
        update={"examples": settings.examples.model_copy(update={"task": "multi_label"})}
    )
    with pytest.raises(DataError, match="task multi_label does not"):
        external.keep(store, "mail", with_module(several, "metrics/cost"), tmp_path)
