"""What is delivered stays in the store: no word of a document in Dagster's event log, in a run's output or in a sensor's tick."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fullft_assets import automation
from fullft_assets.assets.case import Case
from fullft_assets.component import FullFineTune
from fullft_assets.resources import latest_by_partition, open_store
from tests import project as projects
from tests import test_documents_formats as formats

#: A word that no document, message or library has but those of this test.
WORD = "zoonomiastic"
INGEST = ("raw_documents", "labeled_examples", "quarantined_examples", "tokenized_chunks")


def deliver(folder: Path) -> None:
    """Write files of many formats with the word in each text: whole ones, broken ones, and rows with every kind of fault."""
    text = f"The {WORD} licence permits use and modification."
    faults = [
        {"id": "long", "text": f"{text} " * 4_000, "kind": "notice"},
        {"id": "short", "text": WORD, "kind": "notice"},
        {"id": "unlabelled", "text": text, "kind": None},
        {"id": "conflict", "text": f"{text} Twice.", "kind": "notice"},
        {"id": "conflict-2", "text": f"{text} Twice.", "kind": "text"},
        {"id": "personal", "text": f"{text} Write to {WORD}@example.org or call +49 30 1234567.", "kind": "notice"},
        {"id": "damaged", "text": f"{text} Fran\u00c3\u00a7ais \ufffd\ufffd\ufffd", "kind": "notice"},
        {"id": "no-text", "text": [text], "kind": "notice"},
        {"id": "no-number", "text": text, "kind": "notice", "confidence": text},
        {"id": "no-name", "text": text, "kind": {WORD: text}},
        {"id": "no-field", WORD: text, "kind": "notice"},
        {"id": "language", "text": f"Die Lizenz {WORD} erlaubt die Nutzung und die Änderung.", "kind": "notice"},
    ]
    good = [{**row, "text": f"{row['text']} {WORD}"} for row in projects.licence_rows(60)]
    projects.write_rows(folder / "good.jsonl", good)
    projects.write_rows(folder / "faults.jsonl", faults)
    with (folder / "faults.jsonl").open("a", encoding="utf-8") as file:
        file.write(f'{{"text": "{text}\n"{text}"\n{{"text": "{text}\\x", "kind": "notice"}}\n')
    (folder / "headless.csv").write_text(f"{text}\n{text}\n")
    (folder / "bars.csv").write_text(f"text|{WORD}\n{text}|notice\n{text}|notice|{text}\n")
    (folder / "spread.jsonl").write_text(json.dumps({"text": text, "kind": "notice"}, indent=1))
    (folder / "quote.csv").write_text(f'text,kind\n"{text},notice\n')
    (folder / "array.json").write_text(json.dumps([{"text": text}])[:-3])
    (folder / "bytes.jsonl").write_bytes(f'{{"text": "{text} naïve"}}\n'.encode() + b'{"text": "\xff' + WORD.encode() + b'"}\n')
    (folder / "page.html").write_text(f"<p>{text}<!-- {WORD}")
    (folder / "page.pdf").write_bytes(formats.written_pdf(formats.shown(text)).replace(b"/Kids", b"/Kinds"))
    (folder / "packed.jsonl.gz").write_bytes(formats.pack(f'{{"text": "{text}"}}\n'.encode(), "gzip")[:-4])
    broken = pa.StringArray.from_buffers(1, *pa.array([f"{text} \xff".encode("latin-1")], pa.binary()).buffers()[1:])
    pq.write_table(pa.table({"text": broken}), folder / "table.parquet")


def ingest(project: projects.Project, instance: dg.DagsterInstance) -> tuple[dg.ExecuteInProcessResult, str]:
    """Let the sensor cut what is new, and run its batch; return the run, and the batch's name."""
    case = Case(project.use_case())
    (sensor, *_) = automation.build_sensors(case)
    (request,) = sensor(dg.build_sensor_context(instance=instance, resources=case.resources())).run_requests
    instance.add_dynamic_partitions("letters/batch", [request.partition_key])
    defs = dg.Definitions.merge(FullFineTune(project.use_case()).build_defs(), dg.Definitions(executor=dg.in_process_executor))
    job = defs.resolve_implicit_global_asset_job_def()
    keys = [dg.AssetKey(["letters", asset]) for asset in INGEST]
    result = job.execute_in_process(asset_selection=keys, partition_key=request.partition_key, instance=instance, raise_on_error=False)
    return result, request.partition_key


def test_no_word_of_a_document_leaves_the_store(project: projects.Project, capfd: pytest.CaptureFixture[str]) -> None:
    (project.documents / "delivery-1.jsonl").unlink()
    deliver(project.documents)
    project.configure(examples={"pii": "flag", "languages": ["en"], "max_characters": 20_000})
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        result, batch = ingest(project, instance)
        assert result.success
        raw = latest_by_partition(open_store(project.use_case(), instance), "letters", "raw_documents")[batch]
        (project.documents / "alone.parquet").write_bytes((project.documents / "table.parquet").read_bytes())
        failed, _ = ingest(project, instance)
        assert not failed.success, "not one of its files can be read"
        events = [entry.to_json() for each in (result, failed) for entry in instance.all_logs(each.run_id)]
    unreadable = {"quote.csv", "array.json", "bytes.jsonl", "page.pdf", "packed.jsonl.gz", "table.parquet"}
    description = raw.check("files_are_readable").description
    assert raw.check("files_are_readable").metadata["num_unreadable"] == len(unreadable)
    assert sum(name in description for name in unreadable) == 5, "five are named, the sixth is counted"
    assert any("faults.jsonl" in event for event in events), "the faults are told by file and row"
    assert len(events) > 30
    assert [event for event in events if WORD in event] == []
    outside = [path for path in project.home.rglob("*") if path.is_file() and "store" not in path.relative_to(project.home).parts]
    assert [path for path in outside if path.suffix == ".db"], "the event log is among them"
    assert [path for path in outside if WORD.encode() in path.read_bytes()] == []
    output = capfd.readouterr()
    assert WORD not in output.out + output.err


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("expect_column_mean_to_be_between", {"column": "group", "min_value": 1}),
        ("expect_column_max_to_be_between", {"column": "label", "min_value": 1}),
        ("expect_column_values_to_be_between", {"column": "domain", "min_value": 1}),
        ("expect_column_value_z_scores_to_be_less_than", {"column": "group", "threshold": 3, "double_sided": True}),
    ],
)
def test_nor_a_label_group_or_domain_when_an_expectation_cannot_be_computed(
    project: projects.Project, capfd: pytest.CaptureFixture[str], name: str, arguments: dict[str, Any]
) -> None:
    rows = [
        {**row, "kind": f"{WORD} {n % 2}", "patient": f"{WORD} {n}", "ward": f"{WORD} {n}"}
        for n, row in enumerate(projects.licence_rows(12))
    ]
    project.deliver("delivery-1.jsonl", rows)
    own = {"name": name, "arguments": arguments}
    project.configure(examples={"labels": None, "group": "patient", "domain": "ward", "expectations": [own]})
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        failed, _ = ingest(project, instance)
        events = [entry.to_json() for entry in instance.all_logs(failed.run_id)]
    assert not failed.success
    line = f"examples.expectations.0: {name} cannot be computed on the profile (TypeError); fix its arguments"
    assert any(line in event for event in events)
    assert [event for event in events if WORD in event] == []
    outside = [path for path in project.home.rglob("*") if path.is_file() and "store" not in path.relative_to(project.home).parts]
    assert [path for path in outside if WORD.encode() in path.read_bytes()] == []
    output = capfd.readouterr()
    assert WORD not in output.out + output.err
