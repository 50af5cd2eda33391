"""Erasure of somebody whom every stage has seen: in a production window, in quarantine, in what the
tokenizer's audit and drift keep.
"""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fullft_assets import chunks, documents, erasure
from fullft_assets.launch.workloads import monitoring, training
from fullft_assets.monitoring import EXPLANATION, SCALE, Scale, render_explanation, shifted_words
from fullft_assets.store import MANIFEST, Manifest
from tests import manifests, project as projects
from tests.prepared import QUIET, Prepared, prepare
from tests.test_erasure_batches import traces

#: A word of each of these persons that is in all of their documents and nowhere else.
WORDS = {
    "patient-0": "zorblaxine",
    "patient-1": "quentavimab",
    "patient-2": "drubasterol",
    "patient-3": "hexopramil",
}
NUM_VALID, NUM_ROWS = 4, 400


def of_persons() -> list[dict[str, str]]:
    """Return five documents of each person; the fifth has a label that is not known."""
    given = projects.licence_rows(5 * len(WORDS), skip=NUM_ROWS)
    found = []
    for number, row in enumerate(given):
        person = list(WORDS)[number // 5]
        kind = row["kind"] if number % 5 < NUM_VALID else "no kind"
        text = f"{row['text']} {WORDS[person]} number {number}"
        found.append({"id": f"{person}-{number}", "text": text, "kind": kind, "expression": person})
    return found


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Everything from the delivery to a drift report, by a tiny model."""
    root = tmp_path_factory.mktemp("seen")
    case = prepare(
        root,
        tiny=True,
        delivered=[*projects.licence_rows(NUM_ROWS), *of_persons()],
        monitoring={"path": "data/letters/production"},
    )
    store, name = case.store, case.use_case.name
    batch = only(case, "labeled_examples").metadata["batch"]
    chunks.audit_tokenizer(store, case.use_case, {batch: only(case, "labeled_examples")})
    training.work(case.job("finetuned_checkpoint"), store, QUIET)
    seen = [
        {"id": f"{person}-seen", "text": f"a note about {word}", "expression": person}
        for person, word in WORDS.items()
    ]
    projects.write_rows(
        case.project.production / "window.jsonl", [*projects.licence_rows(150, skip=500), *seen]
    )
    [window] = documents.cut_batches(
        store, name, case.project.production, case.use_case.settings.documents, "window"
    )
    job = case.job("drift_report", monitoring={"min_window_rows": 20})
    more = {
        "production_documents": documents.keep(store, case.use_case, window.name, "window").ref,
        "finetuned_checkpoint": only(case, "finetuned_checkpoint").ref,
    }
    monitoring.work(job.model_copy(update={"inputs": {**job.inputs, **more}}), store, QUIET)
    store.rewrite(only(case, "drift_report"), _explain)
    return case


def _explain(folder: Path) -> dict[str, Any]:
    """Write what an alarm would have: words that the window has and the reference windows lack."""
    words = shifted_words(
        ["a text"] * 20, [f"a note about {word}" for word in WORDS.values() for _ in range(5)]
    )
    (folder / EXPLANATION).write_text(render_explanation("What moved", [], words))
    return {}


def only(case: Prepared, stage: str) -> Manifest:
    (made,) = case.store.artifacts(case.use_case.name, stage)
    return made


def rows(case: Prepared, stage: str, file: str) -> int:
    return len(pq.read_table(case.store.folder(only(case, stage)) / file))


def test_nothing_of_them_is_left(case: Prepared) -> None:
    person = next(person for person in WORDS if person in case.split("train").groups)
    stages = (
        "raw_documents",
        "production_documents",
        "labeled_examples",
        "quarantined_examples",
        "drift_report",
    )
    before = {stage: only(case, stage).metadata for stage in stages}
    seen_by = {path.split("/")[1] for path in traces(Path(case.store.url), WORDS[person])}
    # The scale has embeddings of single rows, and their words as hashes.
    assert {*stages, "tokenizer_audit"} <= seen_by
    scale = only(case, "drift_scale")
    assert scale.metadata["num_held_out"] > 0
    # That of an earlier champion, whose snapshot a clean-up has removed.
    with case.store.create(
        case.use_case.name, "drift_scale", "earlier", version=scale.version, seed=scale.seed
    ) as draft:
        shutil.copytree(
            case.store.folder(scale), draft.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST)
        )
        draft.commit(settings={}, inputs=dict.fromkeys(scale.inputs, "removed"), metadata=scale.metadata)
    manifests.write(
        case.store,
        case.use_case.name,
        "cheaper_baselines",
        inputs={"training_snapshot": case.snapshot.content_digest},
    )
    report = erasure.erase(case.store, case.use_case.name, [person], by="group")
    assert traces(Path(case.store.url), WORDS[person], person) == []
    assert (
        report.num_found,
        report.missing,
    ) == (NUM_VALID + 2, [])
    assert report.rewritten == dict.fromkeys((*stages, "tokenized_chunks", "training_snapshot"), 1) | {
        "drift_scale": 2
    }
    scales = case.store.artifacts(case.use_case.name, "drift_scale")
    assert [made.metadata["num_held_out"] for made in scales] == [0, 0]
    case.store.delete(next(made for made in scales if made.key == "earlier"))
    made_of_words = ("cheaper_baselines", "near_duplicate_index", "tokenizer_audit")
    assert +report.deleted == dict.fromkeys(made_of_words, 1) and report.trained_on == [
        only(case, "finetuned_checkpoint").ref
    ]
    assert not any(person in line for line in report.lines())

    after = {stage: only(case, stage).metadata for stage in stages}
    raw, valid, quarantined = (
        after[stage] for stage in ("raw_documents", "labeled_examples", "quarantined_examples")
    )
    assert raw["num_rows"] == before["raw_documents"]["num_rows"] - NUM_VALID - 1
    assert (
        valid["num_valid"]
        == rows(case, "labeled_examples", "examples.parquet")
        == before["labeled_examples"]["num_valid"] - NUM_VALID
    )
    assert quarantined["num_quarantined"] == before["quarantined_examples"]["num_quarantined"] - 1
    assert quarantined["num_quarantined"] == rows(case, "quarantined_examples", "quarantined.parquet")
    (reason,) = (
        why for why, count in before["quarantined_examples"]["reasons"].items() if count == len(WORDS)
    )
    assert quarantined["reasons"] == {**before["quarantined_examples"]["reasons"], reason: len(WORDS) - 1}
    assert valid["num_rows"] == raw["num_rows"] == valid["num_valid"] + valid["num_quarantined"]
    assert (
        valid["num_quarantined"]
        == quarantined["num_quarantined"]
        == rows(case, "labeled_examples", "quarantined_rows.parquet")
    )
    assert (
        after["production_documents"]["num_rows"]
        == rows(case, "production_documents", "documents.parquet")
        == 153
    )

    assert sorted(only(case, "drift_report").files) == ["far.jsonl", "report.md", "sums.npz", "verdict.json"]
    scale = only(case, "drift_scale")
    assert scale.metadata["num_held_out"] == len(Scale.load(case.store.folder(scale) / SCALE).held_out) == 0
    again = erasure.erase(case.store, case.use_case.name, [person], by="group")
    assert (+again.rewritten, +again.deleted, again.num_before) == ({}, {}, 1)
