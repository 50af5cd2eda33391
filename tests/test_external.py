"""Predictions that the user brings: judged on the same test rows by the same metrics, verified, and refused
where rows are missing.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from sklearn.metrics import f1_score

from fullft_assets.checking.validation import load_use_case
from fullft_assets.errors import DataError, SettingsError
from fullft_assets.evaluation import external, read_evaluation
from fullft_assets.settings import EvaluationSettings, UseCaseSettings
from fullft_assets.snapshot import Split
from fullft_assets.store import Manifest
from fullft_assets.tasks.token_classification.recipe import normal
from tests import labelled_reports, project as projects, test_evaluation_workload as classification


def write(path: Path, rows: dict[str, Any], target: str = "label") -> Path:
    path.write_text(
        "".join(json.dumps({"id": id_, target: answer}) + "\n" for id_, answer in rows.items()),
        encoding="utf-8",
    )
    return path


def with_external(settings: UseCaseSettings, external: dict[str, Any], **more: Any) -> UseCaseSettings:
    return settings.model_copy(
        update={"evaluation": settings.evaluation.model_copy(update={"external": external, **more})}
    )


class TestLabels:
    @pytest.fixture(scope="class")
    def lab(self, tmp_path_factory: pytest.TempPathFactory) -> classification.Lab:
        return classification.Lab(tmp_path_factory.mktemp("mail"))

    @pytest.fixture(scope="class")
    def answers(self, lab: classification.Lab) -> dict[str, str]:
        names = [lab.labels[number] for number in lab.test.labels]
        return {
            id_: name if row % 5 else lab.labels[row % 3]
            for row, (id_, name) in enumerate(zip(lab.test.ids, names, strict=True))
        }

    @pytest.fixture(scope="class")
    def report(self, lab: classification.Lab, answers: dict[str, str]) -> Manifest:
        # A file may have more rows than are tested.
        write(lab.root / "vendor.jsonl", {**answers, "another row": "memo"})
        settings = with_external(lab.use_case.settings, {"vendor": "vendor.jsonl"}, metrics=["auroc"])
        brought = external.keep(lab.store, "mail", settings, lab.root)
        candidate = lab.checkpoint("candidate", classification.small_model(lab.labels, [0, 1, 2]))
        return lab.evaluate(candidate, "with_vendor", settings=settings, brought=brought)

    def test_it_is_scored_on_the_same_rows_and_has_to_be_beaten(self, lab, report, answers) -> None:
        rows = pq.read_table(lab.store.folder(report) / "predictions.parquet").to_pydict()
        assert rows["vendor.predicted"] == [answers[id_] for id_ in rows["id"]]
        weights = [1 / min(rows["group"].count(group), 10) for group in rows["group"]]
        expected = f1_score(rows["label"], rows["vendor.predicted"], average="macro", sample_weight=weights)
        assert report.metadata["scores"]["vendor"]["macro_f1"] == pytest.approx(expected)
        found = read_evaluation((lab.store.folder(report) / "evaluation.json").read_bytes())
        assert "vendor" in found.baselines and found.gains["macro_f1"]["vendor"].high < 0
        assert not report.check("beats_baselines").passed

    def test_a_missing_row_is_an_error_before_anything_is_trained(self, lab, answers) -> None:
        write(lab.root / "short.jsonl", dict(list(answers.items())[2:]))
        kept = external.keep(
            lab.store,
            "mail",
            with_external(lab.use_case.settings, {"short": "short.jsonl"}),
            lab.root,
        )[external.PREDICTIONS]
        count, first = len(lab.test), lab.test.ids[0]
        with pytest.raises(
            DataError,
            match=(
                f"external: short: 2 of {count} test rows have no prediction, the first is '{first}'; add"
                " them"
            ),
        ):
            external.require_complete(lab.store, kept, lab.snapshot)

    def test_another_file_is_another_input(self, lab, answers) -> None:
        settings = with_external(lab.use_case.settings, {"changed": "changed.jsonl"})
        write(lab.root / "changed.jsonl", answers)
        first, again = (
            external.keep(lab.store, "mail", settings, lab.root)[external.PREDICTIONS] for _ in range(2)
        )
        write(lab.root / "changed.jsonl", {**answers, lab.test.ids[0]: "memo"})
        other = external.keep(lab.store, "mail", settings, lab.root)[external.PREDICTIONS]
        assert first.ref == again.ref != other.ref and first.content_digest != other.content_digest


def test_several_labels_and_spans_are_judged(tmp_path: Path) -> None:
    def labels(test: Split, names: list[str]) -> dict[str, Any]:
        return {
            id_: [names[i] for i in np.flatnonzero(row)]
            for id_, row in zip(test.ids, test.labels, strict=True)
        }

    def spans(test: Split, names: list[str]) -> dict[str, Any]:
        truth = normal(test.texts, test.spans or [])
        # One answer has white space at its end, which belongs to no span.
        found = {
            id_: [{"start": start, "end": end, "label": names[label]} for start, end, label in row]
            for id_, row in zip(test.ids, truth, strict=True)
        }
        for id_, text in zip(test.ids, test.texts, strict=True):
            for span in found[id_]:
                if text[span["end"] : span["end"] + 1] == " ":
                    span["end"] += 1
        return found

    for make, target, answer in (
        (labelled_reports.several_labels, "labels", labels),
        (labelled_reports.spans, "spans", spans),
    ):

        def bring(prepared: Any, answer: Any = answer, target: str = target) -> UseCaseSettings:
            write(
                prepared.use_case.project_root / "oracle.jsonl",
                answer(prepared.split("test"), prepared.labels),
                target,
            )
            return with_external(prepared.use_case.settings, {"oracle": "oracle.jsonl"})

        _, report = make(tmp_path / target, bring)
        assert (
            report.metadata["scores"]["oracle"]["micro_f1"] == 1.0
            and report.metadata["best_baseline"] == "oracle"
        )


@pytest.mark.parametrize(
    ("target", "line", "problem"),
    [
        ("label", '{"id": 1}', 'line 1: wanted is {"id": "...", "label": "..."}'),
        ("label", '{"id": 1, "label": null}', "line 1: wanted is"),
        ("label", "label,1", "line 1: wanted is"),
        (
            "label",
            '{"id": 1, "label": "a"}\n{"id": "1", "label": "b"}',
            "line 2: '1' has a prediction above already; remove one",
        ),
        ("labels", '{"id": 1, "labels": "a"}', 'line 1: wanted is {"id": "...", "labels": ["..."]}'),
        (
            "spans",
            '{"id": 1, "spans": [{"start": 0, "end": 2.5, "label": "a"}]}',
            'line 1: wanted is {"id": "...", "spans": [',
        ),
        ("spans", '{"id": 1, "spans": [3]}', "line 1: wanted is"),
    ],
)
def test_a_line_that_is_no_answer_is_named(tmp_path: Path, target: str, line: str, problem: str) -> None:
    (tmp_path / "vendor.jsonl").write_text(line)
    with pytest.raises(DataError) as caught:
        external.answers(tmp_path, "vendor", target, ["1"])
    assert f"vendor.jsonl, {problem}" in str(caught.value)


def test_a_span_outside_of_its_text_is_an_error() -> None:
    rows = Split(["r"], ["short"], np.zeros(1, np.int64), ["g"], [[[1]]])
    with pytest.raises(DataError, match="row 'r' .* 2 to 9 .* 5 "):
        external.spans("vendor", [[{"start": 2, "end": 9, "label": "a"}]], rows, ["a"])


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([{"name": "a", "file": "a.jsonl"}], "give each entry as NAME: FILE"),
        ({"a": 0.5}, "valid string"),
        ({"A b": "a.jsonl"}, "pattern"),
    ],
)
def test_systems_that_cannot_be_named_or_scored_are_refused(given: Any, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        EvaluationSettings(external=given)


def test_the_check_of_a_yaml_names_what_cannot_be_judged(tmp_path: Path) -> None:
    project = projects.create(
        tmp_path, evaluation={"external": {"tfidf": "a.jsonl", "champion": "a.jsonl", "gone": "gone.jsonl"}}
    )
    with pytest.raises(SettingsError) as caught:
        load_use_case(project.yaml_path, with_data=True)
    for problem in (
        "tfidf is a system of the report already",
        "champion is a system",
        "there is no file",
    ):
        assert problem in str(caught.value)
    project.configure(
        examples={"task": "language_modeling", "label": None, "labels": None},
        evaluation={"external": {"gone": "gone.jsonl"}},
    )
    with pytest.raises(SettingsError, match="the task language_modeling "):
        project.use_case()
