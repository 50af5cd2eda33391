"""What is delivered stays in the store: no word of a document in Dagster's event log, in a run's output or in
a sensor's tick.
"""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fullft_assets import automation, documents
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.documents.names import alias
from fullft_assets.errors import DataError
from fullft_assets.resources import latest, latest_by_partition, open_store
from fullft_assets.settings import ExamplesSettings
from fullft_assets.store import Store
from tests import project as projects, test_documents_formats as formats
from tests.asset_runs import run_assets

#: A word that no document, message or library has but those of this test.
WORD = "zoonomiastic"


def deliver(folder: Path) -> None:
    """Write files of many formats with the word in each text: whole ones, broken ones, and rows with every
    kind of fault.
    """
    text = f"The {WORD} licence permits use and modification."
    faults = [
        {"id": "long", "text": f"{text} " * 4_000, "kind": "notice"},
        {"id": "short", "text": WORD, "kind": "notice"},
        {"id": "unlabelled", "text": text, "kind": None},
        {"id": "conflict", "text": f"{text} Twice.", "kind": "notice"},
        {"id": "conflict-2", "text": f"{text} Twice.", "kind": "text"},
        {
            "id": "personal",
            "text": f"{text} Write to {WORD}@example.org or call +49 30 1234567.",
            "kind": "notice",
        },
        {"id": "damaged", "text": f"{text} Fran\u00c3\u00a7ais \ufffd\ufffd\ufffd", "kind": "notice"},
        {"id": "no-text", "text": [text], "kind": "notice"},
        {"id": "no-number", "text": text, "kind": "notice", "confidence": text},
        {"id": "no-name", "text": text, "kind": {WORD: text}},
        {"id": "no-field", WORD: text, "kind": "notice"},
        {
            "id": "language",
            "text": f"Die Lizenz {WORD} erlaubt die Nutzung und die Änderung.",
            "kind": "notice",
        },
    ]
    good = [{**row, "text": f"{row['text']} {WORD}"} for row in projects.licence_rows(60)]
    projects.write_rows(folder / "good.jsonl", good)
    projects.write_rows(folder / "faults.jsonl", faults)
    with (folder / "faults.jsonl").open("a", encoding="utf-8") as file:
        file.write(f'{{"text": "{text}\n"{text}"\n{{"text": "{text}\\x", "kind": "notice"}}\n')
    projects.write_files(
        folder,
        {
            "headless.csv": f"{text}\n{text}\n",
            "bars.csv": f"text|{WORD}\n{text}|notice\n{text}|notice|{text}\n",
            "spread.jsonl": json.dumps({"text": text, "kind": "notice"}, indent=1),
            "quote.csv": f'text,kind\n"{text},notice\n',
            "array.json": json.dumps([{"text": text}])[:-3],
            "bytes.jsonl": f'{{"text": "{text} naïve"}}\n'.encode()
            + b'{"text": "\xff'
            + WORD.encode()
            + b'"}\n',
            "page.html": f"<p>{text}<!-- {WORD}",
            "page.pdf": formats.written_pdf(formats.shown(text)).replace(b"/Kids", b"/Kinds"),
            "packed.jsonl.gz": formats.pack(f'{{"text": "{text}"}}\n'.encode(), "gzip")[:-4],
        },
    )
    broken = pa.StringArray.from_buffers(
        1, *pa.array([f"{text} \xff".encode("latin-1")], pa.binary()).buffers()[1:]
    )
    pq.write_table(pa.table({"text": broken}), folder / "table.parquet")


def ingest(project: projects.Project, instance: dg.DagsterInstance) -> tuple[dg.ExecuteInProcessResult, str]:
    """Let the sensor cut what is new, and run its batch; return the run, and the batch's name."""
    graph = CaseGraph(project.use_case())
    (sensor, *_) = automation.build_sensors(graph)
    (request,) = sensor(dg.build_sensor_context(instance=instance, resources=graph.resources())).run_requests
    instance.add_dynamic_partitions("letters/batch", [request.partition_key])
    result = run_assets(project.use_case(), instance, *automation.INGEST, partition=request.partition_key)
    return result, request.partition_key


def assert_only_in_the_store(
    project: projects.Project, events: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Look for the word in the events of runs, in everything of Dagster's home but the store, and in what was
    printed.
    """
    assert [event for event in events if WORD in event] == []
    outside = [
        path
        for path in project.home.rglob("*")
        if path.is_file() and "store" not in path.relative_to(project.home).parts
    ]
    assert [path for path in outside if path.suffix == ".db"], "the event log is among them"
    assert [path for path in outside if WORD.encode() in path.read_bytes()] == []
    output = capfd.readouterr()
    assert WORD not in output.out + output.err


def planted_rows(count: int) -> list[dict[str, Any]]:
    """Return rows with the word in the id, the text, the group, the domain and the label, which is a
    sentence.
    """
    sentences = [
        f"This one is about the {WORD} licence, its terms and its use.",
        f"And this about another {WORD} one, which nobody reads.",
    ]
    return [
        {
            "id": f"{WORD}-{n}",
            "text": f"{row['text']} {WORD} {n}",
            "kind": sentences[n % 2],
            "patient": f"{WORD} {n // 2}",
            "ward": f"{WORD} {n % 3}",
        }
        for n, row in enumerate(projects.licence_rows(count))
    ]


@pytest.mark.slow
def test_no_word_that_is_delivered_leaves_the_store(
    project: projects.Project, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of texts, labels, ids and groups, nor of names of files; the snapshot is refused."""
    (project.documents / "delivery-1.jsonl").unlink()
    deliver(project.documents)
    project.deliver(f"ward {WORD}/letter of {WORD}.jsonl", planted_rows(120))
    projects.write_files(
        project.documents,
        {
            f"{WORD}.csv": f'text,kind\n"{WORD},notice\n',
            f"{WORD}.doc": WORD,
            f"{WORD}.pdf": formats.written_pdf(formats.shown("A page"), b""),
        },
    )
    (project.documents / f"{WORD}.txt").symlink_to(project.root / "pyproject.toml")
    (project.documents / f"letter.{WORD}").write_text(WORD)
    monkeypatch.setattr(ExamplesSettings, "max_ungrouped_share", 1.0)
    project.configure(
        examples={"labels": None, "group": "patient", "domain": "ward", "pii": "flag", "languages": ["en"]},
        snapshot={"min_train_rows": 20, "min_rows_per_label": 5_000},
    )
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        ingested, batch = ingest(project, instance)
        assert ingested.success
        store = open_store(project.use_case(), instance)
        raw = latest_by_partition(store, "letters", "raw_documents")[batch]
        examples = latest_by_partition(store, "letters", "labeled_examples")[batch]
        refused = run_assets(project.use_case(), instance, "training_snapshot")
        (sensor, *_) = automation.build_sensors(CaseGraph(project.use_case()))
        tick = sensor(
            dg.build_sensor_context(instance=instance, resources=CaseGraph(project.use_case()).resources())
        )
        (project.documents / "alone.parquet").write_bytes((project.documents / "table.parquet").read_bytes())
        failed, _ = ingest(project, instance)
        assert not failed.success, "not one of its files can be read"
        runs = (ingested, refused, failed)
        events = [entry.to_json() for each in runs for entry in instance.all_logs(each.run_id)]
        events += [str(tick.asset_events), str(tick.skip_reason.skip_message)]
    assert not refused.success and any("labels are left, " in event for event in events)
    assert WORD in json.dumps(examples.metadata), "the store has the labels"
    check = raw.check("files_are_readable")
    assert check.metadata["num_unreadable"] == 7 and check.description.count(": ") >= 5
    assert ": 1 .doc, 1 without" in events[-1] and ": 1 (a link that " in events[-1]
    assert any(f"{alias(f'{WORD}.pdf')}: 1 page(s) without text" in event for event in events)
    assert any(alias("faults.jsonl") in event for event in events), "the faults are reported by file and row"
    assert_only_in_the_store(project, events, capfd)


def planted_targets(task: str, count: int) -> list[dict[str, Any]]:
    """Return rows with the word in everything that is delivered, some of them with a fault, for a task with
    several labels a row.
    """
    rows = planted_rows(count)
    for number, row in enumerate(rows):
        names = [row.pop("kind"), f"{WORD} {number % 2}"]
        whole = [{"start": 0, "end": 10, "label": name} for name in names]
        row["kinds"] = names if task == "multi_label" else whole
    rows[1]["kinds"] = None
    rows[2]["kinds"] = (
        {WORD: WORD} if task == "multi_label" else [{"start": 5, "end": 100_000, "label": WORD}]
    )
    rows[3]["kinds"] = (
        [[WORD]] if task == "multi_label" else [{"start": 0, "end": 3, "label": WORD, "text": WORD}]
    )
    rows[4]["text"] = rows[5]["text"]
    rows[6]["patient"] = None
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multi_label", "token_classification"])
def test_nor_what_is_planted_where_a_row_has_several_labels_nor_in_a_window(
    project: projects.Project, capfd: pytest.CaptureFixture[str], task: str
) -> None:
    (project.documents / "delivery-1.jsonl").unlink()
    project.deliver(f"ward {WORD}/{WORD}.jsonl", planted_targets(task, 60))
    (project.documents / f"{WORD}.pdf").write_bytes(formats.written_pdf(formats.shown("A page"), b""))
    own = {
        "task": task,
        "label": "kinds",
        "labels": None,
        "group": "patient",
        "domain": "ward",
    }
    project.configure(
        examples=own,
        snapshot={"min_train_rows": 5, "test_share": 0.3, "validation_share": 0.3},
        monitoring={"path": "data/letters/production"},
    )
    projects.write_rows(
        project.production / f"{WORD}.jsonl", [*planted_targets(task, 8), {"id": WORD, "text": [WORD]}]
    )
    with (project.production / f"{WORD}.jsonl").open("a", encoding="utf-8") as file:
        file.write(f'{{"text": "{WORD}\n')
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        ingested, batch = ingest(project, instance)
        taken = run_assets(project.use_case(), instance, "training_snapshot")
        seen = keep_window(project, instance)
        assert ingested.success
        assert taken.success
        assert seen.success
        store = open_store(project.use_case(), instance)
        events = [
            entry.to_json() for each in (ingested, taken, seen) for entry in instance.all_logs(each.run_id)
        ]
    quarantined = latest_by_partition(store, "letters", "quarantined_examples")[batch].metadata["reasons"]
    assert sum(quarantined.values()) >= 3 and any(
        reason.startswith("equal text") or "duplicate" in reason for reason in left_out(store)
    )
    [window] = latest_by_partition(store, "letters", "production_documents").values()
    assert (window.metadata["num_rows"], WORD in json.dumps(window.metadata)) == (10, True)
    assert_only_in_the_store(project, events, capfd)


def left_out(store: Store) -> dict[str, int]:
    """Return how many rows the snapshot leaves out, by reason."""
    snapshot = latest(store, "letters", "training_snapshot")
    assert snapshot is not None and WORD in json.dumps(snapshot.metadata), "the store has the labels"
    return snapshot.metadata["left_out"]


def keep_window(project: projects.Project, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    """Cut what production has seen, and keep its one window."""
    use_case = project.use_case()
    cut = documents.cut_batches(
        open_store(use_case, instance),
        "letters",
        documents.source_of(use_case, "window"),
        use_case.settings.documents,
        "window",
    )
    instance.add_dynamic_partitions("letters/window", [window.name for window in cut])
    return run_assets(use_case, instance, "production_documents", partition=cut[0].name)


@pytest.mark.parametrize(
    ("inside", "place", "wrapped"),
    [
        ("fullft_assets.documents.raw.without_erased", "documents/raw.py", False),
        ("fullft_assets.examples.validation._hashes", "examples/validation.py", False),
        ("fullft_assets.examples.agreement.superseded", "examples/validation.py", True),
        ("fullft_assets.chunks.tokenizing.chunk", "chunks/tokenizing.py", False),
    ],
)
def test_nor_what_an_error_says_that_nobody_foresaw(
    project: projects.Project,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    inside: str,
    place: str,
    wrapped: bool,
) -> None:
    def fail(*_: object, **__: object) -> None:
        try:
            raise KeyError(f"a row that says {WORD}")
        except KeyError as error:
            # A cause goes to the event log as well, also that of an error whose own line is harmless.
            raise (
                DataError("the rows have no ids") if wrapped else ValueError(f"no number: {WORD}")
            ) from error

    monkeypatch.setattr(inside, fail)
    project.deliver(
        "delivery-1.jsonl", [{**row, "text": f"{row['text']} {WORD}"} for row in projects.licence_rows(12)]
    )
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        failed, _ = ingest(project, instance)
        events = [entry.to_json() for entry in instance.all_logs(failed.run_id)]
    assert not failed.success
    (event,) = failed.get_step_failure_events()
    said = event.step_failure_data.user_failure_data.description
    tracebacks = [*project.home.rglob("tracebacks/*.txt")]
    if wrapped:
        assert (said, tracebacks) == ("the rows have no ids", [])
    else:
        assert said.startswith(f"ValueError at fullft_assets/{place}:")
        assert said.endswith(f"is in {tracebacks[0]}") and len(tracebacks) == 1
        assert (
            f"a row that says {WORD}" in tracebacks[0].read_text()
            and f"no number: {WORD}" in tracebacks[0].read_text()
        )
    assert_only_in_the_store(project, events, capfd)


def test_a_short_label_is_shown_and_nothing_in_it_acts_on_a_browser(
    project: projects.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = "![t](http://host/x.png)\u202e<b>`|"
    monkeypatch.setattr(
        "fullft_assets.assets.model.suggested_group", lambda _: f"set examples.group: {picture}"
    )
    rows = [{**row, "kind": (picture, "notice")[n % 2]} for n, row in enumerate(projects.licence_rows(120))]
    project.deliver("delivery-1.jsonl", rows)
    project.configure(
        examples={"labels": None},
        snapshot={"test_share": 0.3, "validation_share": 0.3},
    )
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        ingested, batch = ingest(project, instance)
        taken = run_assets(project.use_case(), instance, "training_snapshot")
        assert ingested.success and taken.success
        store = open_store(project.use_case(), instance)
        [made] = taken.asset_materializations_for_node("letters__training_snapshot")
        link = str(made.metadata["data_report"].value)
        page = Path(store.url, link.removeprefix("/fullft/reports/"))
        assert link.startswith("/fullft/reports/letters/training_snapshot/")
        assert {
            "parts",
            "labels_set_aside",
        }.isdisjoint(made.metadata)
        report = page.with_suffix(".md").read_text()
        assert "<img" not in page.read_text() and "<b>`" not in page.read_text()
    counts = str(made.metadata["label_counts"].value)
    shown = r"\!\[t\](http://host/x.png)\\u202e&lt;b>\`\|"
    assert f"| {shown} | " in counts and f"| {shown} | " in report
    assert f"- **group**: set examples.group: {shown}" in report
