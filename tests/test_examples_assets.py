"""examples: in a real Dagster instance each rule is a check with its counts and its severity; an error holds
the batch back.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from fullft_assets import documents
from fullft_assets.documents.names import alias
from fullft_assets.personal_data import search
from fullft_assets.resources import open_store
from fullft_assets.store import Store
from tests import project as projects
from tests.asset_runs import run_assets
from tests.prepared import validate

SECRET = "the patient of room twelve"


class Runs:
    def __init__(self, project: projects.Project, instance: dg.DagsterInstance):
        self.project, self.instance = project, instance

    def run(self, *assets: str) -> dg.ExecuteInProcessResult:
        use_case = self.project.use_case()
        store = open_store(use_case, self.instance)
        documents.cut_batches(store, use_case.name, self.project.documents, use_case.settings.documents)
        [batch] = documents.list_batches(store, use_case.name)
        self.instance.add_dynamic_partitions(f"{use_case.name}/batch", [batch.name])
        return run_assets(use_case, self.instance, *assets, partition=batch.name)


@pytest.fixture
def runs(project: projects.Project) -> Iterator[Runs]:
    with dg.DagsterInstance.ephemeral(tempdir=str(project.home)) as instance:
        yield Runs(project, instance)


def checks_of(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    return {
        found.check_name: found
        for found in result.get_asset_check_evaluations()
        if found.asset_key.path[-1] == "labeled_examples"
    }


def counts(check: Any) -> dict[str, Any]:
    return {name: value.value for name, value in check.metadata.items()}


def deliver(project: projects.Project) -> None:
    rows = [row for row in projects.licence_rows(70) if not search.find(row["text"])][:60]
    odd = [{"id": "odd", "text": SECRET, "kind": "poem"}, {"id": "bare", "text": f"{SECRET}, again"}]
    said = [
        {"id": "twice", "text": "said twice", "kind": kind, "annotator": who}
        for who, kind in (("ann", "text"), ("bob", "text"))
    ]
    more = [
        {"id": "thrice", "text": "said again", "kind": kind, "annotator": who}
        for who, kind in (("ann", "tag"), ("bob", "tag"))
    ]
    mails = [{"id": "mail", "text": "write to jo@example.org for a licence", "kind": "notice"}]
    project.deliver(
        "delivery-1.jsonl",
        [*({**row, "expression": row["id"]} for row in [*odd, *said, *more, *mails]), *rows],
    )


RULES = {
    "severities": {"labels_are_known": "error", "encodings_are_intact": "off", "annotators_agree": "error"},
    "pii": "mask",
    "expectations": [
        {
            "name": "expect_column_values_to_be_between",
            "arguments": {"column": "num_words", "min_value": 1},
            "severity": "error",
        }
    ],
}


def test_each_rule_is_a_check_with_its_counts_and_severity(runs: Runs) -> None:
    deliver(runs.project)
    runs.project.configure(examples=RULES)
    result = runs.run("raw_documents", "labeled_examples", "quarantined_examples")
    checks = checks_of(result)
    assert "encodings_are_intact" not in checks
    assert counts(checks["labels_are_known"]) == {"num_rows": 67, "num_failed": 1}
    assert counts(checks["labels_are_present"]) == {"num_rows": 67, "num_failed": 1}
    assert counts(checks["personal_data_is_absent"]) == {"num_rows": 67, "num_failed": 0, "num_masked": 1}
    assert counts(checks["own_1_column_values_to_be_between"]) == {"num_rows": 67, "num_failed": 0}
    assert counts(checks["annotators_agree"]) == {"num_items": 2, "kappa": 1}
    assert counts(checks["rows_are_accounted_for"]) == {"num_rows": 67, "num_valid": 65, "num_quarantined": 2}
    errors = {name for name, check in checks.items() if check.severity == dg.AssetCheckSeverity.ERROR}
    gates = {
        "rows_are_accounted_for",
        "quarantined_share_is_bounded",
        "named_fields_have_values",
        "groups_are_given",
    }
    assert errors == {"labels_are_known", "annotators_agree", "own_1_column_values_to_be_between"} | gates
    assert {name for name, check in checks.items() if not check.passed} == {
        "labels_are_known",
        "labels_are_present",
    }
    assert f"{alias('delivery-1.jsonl')}:1" in checks["labels_are_known"].description
    [made] = [
        e.materialization
        for e in result.get_asset_materialization_events()
        if e.asset_key.path[-1] == "labeled_examples"
    ]
    assert made.metadata["num_items_annotated_twice"].value == 2
    assert made.metadata["kappa_per_label"].value.splitlines()[2:] == ["| 1 | tag |", "| 1 | text |"]
    events = "\n".join(repr(record) for record in runs.instance.all_logs(result.run_id))
    assert "labels_are_known" in events
    assert SECRET not in events and "jo@example.org" not in events


@pytest.mark.parametrize(("severity", "goes_on"), [("warn", True), ("error", False)])
def test_a_red_rule_holds_the_batch_back_only_as_an_error(runs: Runs, severity: str, goes_on: bool) -> None:
    deliver(runs.project)
    runs.project.configure(examples={"severities": {"labels_are_known": severity}})
    together = runs.run("raw_documents", "labeled_examples", "quarantined_examples", "tokenized_chunks")
    written = {event.asset_key.path[-1] for event in together.get_asset_materialization_events()}
    assert {"labeled_examples", "quarantined_examples"} <= written, "what was found is kept either way"
    assert ("tokenized_chunks" in written) == together.success == goes_on
    assert runs.run("tokenized_chunks").success == goes_on, "alone it is no way round the rule"


@pytest.mark.parametrize("mask_raw", [True, False])
def test_masked_is_what_is_kept_of_raw_rows_too_unless_the_yaml_says_otherwise(
    project: projects.Project, mask_raw: bool
) -> None:
    rows = projects.licence_rows(40)
    written = [
        {
            **rows[0],
            "text": f"{rows[0]['text']} Write to ana@correo.example or pay to DE89 3704 0044 0532 0130 00.",
        },
        *rows[1:],
    ]
    project.deliver("delivery-1.jsonl", written)
    project.configure(documents={"mask_raw": mask_raw}, examples={"pii": "mask"})
    use_case = project.use_case()
    store = Store(str(project.home / "own-store"))
    raw, valid, _ = validate(store, use_case)
    kept = [
        path
        for path in (project.home / "own-store").rglob("*.parquet")
        if b"ana@correo.example" in _plain(path)
    ]
    assert [path.name for path in kept] == ([] if mask_raw else ["documents.parquet"])
    assert valid.check("personal_data_is_absent").metadata["num_masked"] == valid.metadata["num_masked"] >= 1
    assert raw.metadata["num_masked"] == (valid.metadata["num_masked"] if mask_raw else 0)
    assert any(
        "[EMAIL] or pay to [IBAN]" in text
        for text in pq.read_table(store.folder(valid) / "examples.parquet")["text"].to_pylist()
    )


@pytest.mark.parametrize("mask_raw", [True, False])
def test_masked_is_what_is_kept_of_a_window_of_production_too(
    project: projects.Project, mask_raw: bool
) -> None:
    written = [
        {"id": "seen", "text": "Write to ana@correo.example or pay to DE89 3704 0044 0532 0130 00."},
        {"id": "2", "text": "Nothing."},
    ]
    projects.write_rows(project.production / "window.jsonl", written)
    project.configure(
        documents={"mask_raw": mask_raw},
        examples={"pii": "mask"},
        monitoring={"path": "data/letters/production"},
    )
    use_case = project.use_case()
    store = Store(str(project.home / "own-store"))
    [window] = documents.cut_batches(
        store, use_case.name, documents.source_of(use_case, "window"), use_case.settings.documents, "window"
    )
    kept = documents.keep(store, use_case, window.name, "window")
    [path] = (project.home / "own-store").rglob("*.parquet")
    assert (b"ana@correo.example" in _plain(path)) is not mask_raw
    assert [row["text"] for row in pq.read_table(path).to_pylist()] == (
        ["Write to [EMAIL] or pay to [IBAN].", "Nothing."] if mask_raw else [row["text"] for row in written]
    )
    assert (kept.stage, kept.metadata["num_masked"]) == ("production_documents", int(mask_raw))


def _plain(path: Path) -> bytes:
    return json.dumps(pq.read_table(path).to_pylist(), default=str).encode()
