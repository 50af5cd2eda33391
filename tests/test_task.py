"""Tasks, metrics and baselines as registrations: what the tasks name exists, and another package's metric and
baseline take part.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fullft_assets.checking.validation import load_use_case
from fullft_assets.errors import SettingsError
from fullft_assets.evaluation import FINETUNED, Comparison, read_evaluation, title
from fullft_assets.evaluation.metrics import Metric, Predictions
from fullft_assets.settings import EvaluationSettings, ExamplesSettings
from fullft_assets.task import BASELINES, METRICS, TASKS
from fullft_assets.tasks.classification import assessment
from tests import project as projects
from tests.other_package import install_shown


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package of docs/extending.md, as pip installs it."""
    site = tmp_path / "site"
    install_shown(site)
    monkeypatch.syspath_prepend(str(site))
    registries = (METRICS, BASELINES, TASKS)
    for registry in registries:
        monkeypatch.setattr(registry, "_loaded", {})
        vars(registry).pop("_theirs", None)
    yield
    for registry in registries:
        vars(registry).pop("_theirs", None)


@pytest.mark.parametrize("name", list(TASKS))
def test_what_a_task_names_is_registered_for_it(name: str) -> None:
    task = TASKS.get(name)
    assert task.name == name and (task.templates / "parts.md.j2").is_file()
    assert set(task.metrics) <= set(task.shown_metrics)
    for metric in task.shown_metrics:
        assert METRICS.get(metric).name == metric and name in METRICS.get(metric).tasks
    for metric in task.metrics:
        assert METRICS.get(metric).bounds == (0, 1)
    for baseline in task.baselines:
        assert BASELINES.get(baseline).name == baseline and name in BASELINES.get(baseline).tasks
    assert task.required_baseline in (None, *task.baselines)


def test_a_mistyped_task_gets_a_hint() -> None:
    with pytest.raises(ValueError, match="unknown task `multi_lable`; did you mean `multi_label`?"):
        ExamplesSettings(task="multi_lable")


def evaluated(*metrics: str, n: int = 240) -> assessment.ClassificationEvaluation:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, n)
    given = {
        name: np.where(rng.random(n) < share, labels, (labels + 1) % 3)
        for name, share in ((FINETUNED, 0.8), ("tfidf", 0.6))
    }
    comparison = Comparison(
        EvaluationSettings(metrics=list(metrics)), "macro_f1", seed=1, task="classification"
    )
    groups = [f"g{number}" for number in rng.integers(0, 60, n)]
    found = assessment.assess(
        labels, {name: np.eye(3)[each] for name, each in given.items()}, groups, ["a", "b", "c"], comparison
    )
    weights = [1 / min(groups.count(group), 10) for group in groups]
    for name, each in given.items():
        if "auroc" in metrics:
            assert found.scores["auroc"][name].estimate == pytest.approx(
                np.mean([roc_auc_score(labels == k, each == k, sample_weight=weights) for k in range(3)])
            )
        if "worst_recall" in metrics:
            worst = min((each == labels)[labels == label].mean() for label in range(3))
            assert found.scores["worst_recall"][name].estimate == pytest.approx(worst)
    return found


def test_a_registered_metric_is_shown_with_its_interval_and_is_off_by_default() -> None:
    assert "auroc" not in evaluated().columns
    found = evaluated("auroc")
    assert list(found.columns) == ["macro_f1", "accuracy", "auroc"]
    score = found.columns["auroc"][FINETUNED]
    assert score.low < score.estimate < score.high
    assert found.headline["auroc_low"] == score.low
    assert found.scores["macro_f1"] == evaluated().scores["macro_f1"]


def test_another_packages_metric_is_computed_with_its_interval(other_package: None) -> None:
    found = evaluated("worst_recall")
    score = found.columns["worst_recall"][FINETUNED]
    assert title("worst_recall") == "worst recall"
    assert score.low < score.estimate < score.high
    assert found.gains["worst_recall"]["tfidf"].estimate == pytest.approx(
        score.estimate - found.scores["worst_recall"]["tfidf"].estimate
    )
    assert read_evaluation(found.model_dump_json()) == found


def test_resamples_of_rows_and_of_sums_agree() -> None:
    class Plain(Metric):
        name, title, tasks = "accuracy", "accuracy", ("classification",)

        def compute(self, predictions: Predictions) -> float:
            return float(np.average(predictions.is_right, weights=predictions.row_weights))

    expected = evaluated()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METRICS._loaded, "accuracy", Plain())
        found = evaluated()
    for name, score in found.scores["accuracy"].items():
        assert score.estimate == pytest.approx(expected.scores["accuracy"][name].estimate)
    # A score's interval also looks at what it would be without each group, which only sums can tell.
    gain = found.gains["accuracy"]["tfidf"]
    # Which groups differ, only sums can tell, too.
    different = {"least_detectable"}
    assert gain.model_dump(exclude=different) == pytest.approx(
        expected.gains["accuracy"]["tfidf"].model_dump(exclude=different)
    )


def test_a_metric_out_of_its_bounds_is_an_error() -> None:
    with pytest.raises(ValueError, match="metric accuracy: computed 1.5, .* 0.0 to 1.0"):
        METRICS.get("accuracy").require_in_bounds(1.5)


def test_another_packages_task_takes_what_it_names_and_what_is_for_the_task_that_it_extends(
    other_package: None, tmp_path: Path
) -> None:
    sections = {"examples": {"task": "urgency"}, "evaluation": {"metrics": ["auroc"]}}
    project = projects.create(tmp_path / "a", **sections)
    assert load_use_case(project.yaml_path).settings.baselines == ("majority", "first_letter")
    load_use_case(
        projects.create(
            tmp_path / "b", **sections, planning={"baselines": ["tfidf", "first_letter"]}
        ).yaml_path
    )
    refused = projects.create(tmp_path / "c", **sections, planning={"baselines": ["label_shares"]})
    with pytest.raises(SettingsError, match="label_shares .* task urgency; .* multi_label"):
        load_use_case(refused.yaml_path)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"planning": {"baselines": ["label_shares"]}},
            "label_shares is not for the task classification; it is for multi_label",
        ),
        (
            {"evaluation": {"metrics": ["perplexity"]}},
            "perplexity is not for the task classification; it is for sft, language_modeling",
        ),
        ({"planning": {"baselines": ["tfidff"]}}, "unknown baseline `tfidff`; did you mean `tfidf`?"),
    ],
)
def test_names_that_do_not_fit_the_task_are_refused(sections: dict, message: str, tmp_path: Path) -> None:
    project = projects.create(tmp_path, **sections)
    with pytest.raises(SettingsError, match=message.replace("?", r"\?")):
        load_use_case(project.yaml_path)
