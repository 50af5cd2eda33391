"""`fullft verify`: reports of each task as the evaluation writes them, then with one number, prediction or
label changed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fullft_assets import erasure
from fullft_assets.chunks import save_tokenizer
from fullft_assets.cli import commands, main
from fullft_assets.errors import DataError, StoreError
from fullft_assets.evaluation import external
from fullft_assets.evaluation.forgetting import Forgetting
from fullft_assets.evaluation.recomputed_labels import RecomputedLabels
from fullft_assets.evaluation.verdict import _forgetting_is_within_budget
from fullft_assets.evaluation.verification import Verification, is_within_budget, verify
from fullft_assets.jobs.progress import Progress
from fullft_assets.report import read_list, write_list
from fullft_assets.resources import set_latest
from fullft_assets.settings import UseCaseSettings
from fullft_assets.snapshot import Split
from fullft_assets.store import Manifest, Store
from fullft_assets.store.hashing import file_digest
from fullft_assets.tasks.language import scoring
from fullft_assets.workloads.evaluation import work
from tests import licence_labels, manifests
from tests import test_evaluation_language_workload as language
from tests import test_evaluation_workload as classification
from tests.checkpoint_metadata import checkpoint_metadata
from tests.prepared import Prepared, prepare

QUIET = Progress(silent=True)
METRICS = ["weighted_f1", "matthews_corrcoef", "brier", "log_loss", "auroc"]


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    """A report with a champion, with metrics that can be recomputed and one that cannot."""
    lab = classification.Lab(tmp_path_factory.mktemp("mail"))
    settings: UseCaseSettings = lab.use_case.settings
    more = settings.model_copy(
        update={"evaluation": settings.evaluation.model_copy(update={"metrics": METRICS})}
    )
    candidate = lab.checkpoint("candidate", classification.small_model(lab.labels, [0, 1, 2]))
    champion = lab.checkpoint(
        "champion", classification.small_model(lab.labels, [1, 0, 2], head=["invoice", "letter", "order"])
    )
    return lab.store, lab.evaluate(candidate, "verified", champion, more)


def labelled(
    root: Path,
    examples: dict[str, Any],
    rows: list[dict[str, Any]],
    chunks: dict[str, Any],
    bring: Callable[[Prepared], UseCaseSettings] | None = None,
) -> tuple[Store, Manifest]:
    """Return a report on an untrained model, whose baselines are trained.

    Args:
        bring: writes files of external systems, and returns the settings that name them.
    """
    prepared = prepare(
        root, tiny=True, delivered=rows, examples=examples, chunks=chunks, snapshot={"test_share": 0.3}
    )
    recipe, settings, store = prepared.recipe, prepared.use_case.settings, prepared.store

    def artifact(stage: str, fill: Callable[[Path], dict[str, Any]]) -> Manifest:
        with store.create("letters", stage, "k1", version="1", seed=17) as draft:
            return draft.commit(settings={"training": {"epochs": 1}}, inputs={}, metadata=fill(draft.path))

    def baselines(folder: Path) -> dict[str, Any]:
        scored = recipe.score_baselines(settings.baselines, folder, prepared.baseline_context)
        return manifests.baselines(recipe.labels, {name: 0.5 for name, _ in scored})

    def checkpoint(folder: Path) -> dict[str, Any]:
        model = recipe.load(settings.training)
        recipe.finish(model, QUIET)
        model.save_pretrained(folder / "model")
        save_tokenizer(prepared.base_model, [], folder / "model")
        return checkpoint_metadata(snapshot=prepared.snapshot.ref)

    inputs = {
        "training_snapshot": prepared.snapshot,
        "finetuned_checkpoint": artifact("finetuned_checkpoint", checkpoint),
        "cheaper_baselines": artifact("cheaper_baselines", baselines),
        "pilot_run": artifact(
            "pilot_run", lambda _: manifests.pilot([{"rows": 8, settings.primary_metric: 0.1}])
        ),
    }
    if bring is not None:
        settings = bring(prepared)
        inputs[external.STAGE] = external.keep(store, "letters", settings, prepared.use_case.project_root)
    return store, evaluated(prepared, inputs, settings)


def evaluated(prepared: Prepared, inputs: dict[str, Manifest], settings: UseCaseSettings) -> Manifest:
    job = prepared.job("evaluation_report", "verified")
    job = job.model_copy(
        update={"inputs": {name: manifest.ref for name, manifest in inputs.items()}, "settings": settings}
    )
    work(job, prepared.store, QUIET)
    return prepared.store.find("letters", "evaluation_report", "verified")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    known = ["copyleft", "copyleft_limited", "notice", "permissive", "reference", "tag"]
    examples = {"label": "labels", "labels": known, "task": "multi_label", "group": "expression"}
    rows = licence_labels.labelled_rows(240, known=set(known))
    rows = [{**row, "labels": [] if number % 11 == 0 else row["labels"]} for number, row in enumerate(rows)]
    return labelled(tmp_path_factory.mktemp("several"), examples, rows, {"max_windows": 1})


@pytest.fixture(scope="module")
def spanned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    examples = {"task": "token_classification", "label": "spans", "labels": None, "group": "expression"}
    rows = licence_labels.spanned_rows(240)
    return labelled(
        tmp_path_factory.mktemp("spans"), examples, rows, {"max_tokens": 32, "max_windows": None, "stride": 4}
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    root = tmp_path_factory.mktemp("language")
    lab = language.Lab(root / "lab", "sft")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "MAX_NEW_TOKENS", 4)
        return lab.store, lab.evaluate(
            lab.checkpoint("learned", lab.learn(root / "model", steps=2)), key="verified"
        )


REPORTS = ["classified", "several", "spanned", "written"]


@pytest.fixture
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, Manifest]:
    """A store with a report that the test may change."""
    store, report = request.getfixturevalue(request.param)
    shutil.copytree(store.url, tmp_path / "store")
    return Store(str(tmp_path / "store")), report


def forge(store: Store, made: Manifest, name: str, change: Callable[[Path], None], **inputs: str) -> Manifest:
    """Change a file of an artifact, and its manifest as if it had been written so: digests do not tell."""
    path = Path(store.url, made.ref, name)
    change(path)
    entry = made.files[name].model_copy(update={"bytes": path.stat().st_size, "sha256": file_digest(path)})
    made = made.model_copy(update={"files": {**made.files, name: entry}, "inputs": {**made.inputs, **inputs}})
    Path(store.url, made.ref, "manifest.json").write_text(made.model_dump_json())
    return made


def with_value(column: str, row: int, value: Any) -> Callable[[Path], None]:
    """Return a change of one cell of a parquet file."""

    def change(path: Path) -> None:
        table = pq.read_table(path)
        values = table[column].to_pylist()
        assert values[row] != value
        values[row] = value
        at = table.column_names.index(column)
        pq.write_table(
            table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type)), path
        )

    return change


def with_number(*keys: str | int) -> Callable[[Path], None]:
    """Return a change of one number of evaluation.json."""

    def change(path: Path) -> None:
        found = json.loads(path.read_text())
        part = found
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] += 1 if isinstance(part[keys[-1]], int) else -1e-4 * max(1, part[keys[-1]])
        path.write_text(json.dumps(found))

    return change


@pytest.mark.parametrize(
    ("name", "least"),
    [("classified", 200), ("several", 90), ("spanned", 60), ("written", 60)],
    ids=lambda value: str(value),
)
def test_a_report_as_it_was_written_verifies(request: pytest.FixtureRequest, name: str, least: int) -> None:
    found = verify(*request.getfixturevalue(name))
    assert found.differences == [] and found.unverified == []
    assert found.num_agreeing > least
    assert found.lines == [f"{found.num_agreeing:,} numbers agree"]


def test_a_span_is_compared_without_the_space_around_it() -> None:
    truth = Split(
        ["d1"], ["by Ann Lee, "], np.zeros((1, 1), bool), ["g"], [[]], spans=[[(2, 10, 0), (10, 12, 0)]]
    )
    given = [{"label": "name", "start": 3, "end": 10}]
    rows = {"group": ["g"], "num_spans": [2], "predicted": [given]}
    assert RecomputedLabels(rows, truth, ["name"], "spans").score("micro_f1", "finetuned") == pytest.approx(
        2 / 3
    )
    # Of a span of nothing but space there is nothing to find.
    blank = replace(truth, texts=["by Ann Lee  "])
    assert RecomputedLabels(rows, blank, ["name"], "spans").score("micro_f1", "finetuned") == 1.0


@pytest.mark.parametrize("copied", ["classified"], indirect=True)
@pytest.mark.parametrize(
    "keys",
    [
        ("scores", "macro_f1", "tfidf", "estimate"),
        ("scores", "auroc", "finetuned", "low"),
        ("gains", "accuracy", "majority", "standard_error"),
        ("slices", "found", 0, "num_rows"),
        ("slices", "found", -1, "gain", "high"),
        ("leakage", "markers", 0, "recall"),
        ("temperature",),
        ("confusion", 1, 2),
    ],
    ids=lambda keys: "-".join(map(str, keys)),
)
def test_one_changed_number_is_found(copied: tuple[Store, Manifest], keys: tuple[str | int, ...]) -> None:
    store, report = copied
    found = verify(store, forge(store, report, "evaluation.json", with_number(*keys))).differences
    assert any(path_of(keys).fullmatch(line.split(": stored ")[0]) for line in found), found


def path_of(keys: tuple[str | int, ...]) -> re.Pattern[str]:
    """Return the pattern of a number's place as a line names it."""
    parts = ["".join(f"[{key}]" if isinstance(key, int) else f".{key}") for key in keys]
    return re.compile(re.escape("".join(parts).removeprefix(".")).replace(r"\[\-1\]", r"\[\d+\]"))


def numbers_of(stored: Any, keys: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the place of every number of a JSON value."""
    if isinstance(stored, (dict, list)):
        for key, value in stored.items() if isinstance(stored, dict) else enumerate(stored):
            yield from numbers_of(value, (*keys, key))
    elif isinstance(stored, (int, float)) and not isinstance(stored, bool):
        yield keys


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("what", ["evaluation", "metadata"])
def test_every_number_is_recomputed(
    request: pytest.FixtureRequest, name: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each number is changed in turn, and named: one that nobody recomputes would be named as that."""
    store, report = request.getfixturevalue(name)
    compared: dict[str, tuple[Any, Any]] = {}
    compare_fields = Verification.compare_fields

    def spy(self: Verification, stored: Any, recomputed: Any, path: str = "") -> None:
        compared.setdefault(path, (stored, recomputed))
        compare_fields(self, stored, recomputed, path)

    with monkeypatch.context() as patch:
        patch.setattr(Verification, "compare_fields", spy)
        assert verify(store, report).unverified == []
    stored, recomputed = compared["" if what == "evaluation" else "metadata"]
    places = list(numbers_of(stored))
    assert len(places) > 10
    for keys in places:
        found = Verification()
        found.compare_fields(changed(stored, keys), recomputed)
        [line] = found.differences
        assert path_of(keys).fullmatch(line.split(": stored ")[0]), line
    extra = Verification()
    extra.compare_fields({**stored, "num_new": 1, "more": {"share": 0.5}}, recomputed)
    assert (extra.differences, extra.unverified) == ([], ["num_new", "more"])


def changed(stored: Any, keys: tuple[str | int, ...]) -> Any:
    """Return a JSON value with one number changed."""
    if not keys:
        return stored + 1 if isinstance(stored, int) else stored + 1e-3 * abs(stored) + 1e-6
    first, *others = keys
    copied = stored.copy()
    copied[first] = changed(stored[first], tuple(others))
    return copied


@pytest.mark.parametrize("copied", ["classified"], indirect=True)
def test_changed_gates_and_rows_for_annotators_are_found(copied: tuple[Store, Manifest]) -> None:
    store, report = copied

    def promote(path: Path) -> None:
        path.write_text(
            path.read_text()
            .replace('"passed": false', '"passed": true')
            .replace('"answer": "keep"', '"answer": "promote"')
        )

    report = forge(store, report, "decision.json", promote)
    found = verify(store, report).differences
    assert "gate beats_baselines: stored True, recomputed False" in found
    assert re.search(r"answer of the metadata: stored '\w+', recomputed 'promote'", "\n".join(found))

    def close(path: Path) -> None:
        path.write_text(
            re.sub(r'("forgetting_is_within_budget",\s*"passed": )true', r"\1false", path.read_text())
        )

    report = forge(store, report, "decision.json", close)
    assert (
        "gate forgetting_is_within_budget: stored False, recomputed True" in verify(store, report).differences
    )

    def edit(path: Path) -> None:
        first, second, *others = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps({**json.loads(second), "suggested": "memo"}), *others, first]))

    report = forge(store, report, "label_errors.jsonl", edit)
    found = verify(store, report).differences
    assert [line for line in found if re.match(r"label_errors\.jsonl\..+\.suggested: stored 'memo'", line)]
    assert any(line.startswith("order of likely label errors: ") for line in found)
    other = forge(
        store,
        report,
        "label_errors.jsonl",
        lambda path: path.write_text("".join(path.read_text().splitlines(True)[1:])),
    )
    assert any(
        line.startswith("number of likely label errors: ") for line in verify(store, other).differences
    )


@pytest.mark.parametrize(
    ("measured", "limit", "passes"),
    [
        (None, None, True),
        (None, 0.5, False),
        (("loss", 0.69, None), None, True),
        (("loss", 0.70, None), None, False),
        (("loss", 0.70, 0.8), None, True),
        (("loss", 0.70, 0.8), 0.6, False),
        (("distance", 5.0, None), None, True),
        (("distance", 5.0, 0.2), None, False),
    ],
)
def test_what_was_forgotten_is_held_against_the_budget_as_by_the_gate(
    measured: tuple[str, float, float | None] | None, limit: float | None, passes: bool
) -> None:
    forgotten = None
    if measured is not None:
        measure, rise, budget = measured
        rest = {
            "before": 1.0,
            "after": 1.0 + rise,
            "num_trainings": 1,
            "num_unmeasured": 0,
            "training_budget": budget,
        }
        forgotten = Forgetting.model_validate({"measure": measure, "rise": rise, **rest})
    assert is_within_budget(None if forgotten is None else forgotten.model_dump(), limit) == passes
    assert _forgetting_is_within_budget(forgotten, limit).passed == passes


def a_hit(table: pa.Table, column: str) -> int:
    """Return a row of which a system predicted something rightly; the first one for other columns."""
    rows = table.to_pylist()
    hits = {
        "tfidf.predicted": lambda row: row["label"] == row[column],
        "champion.predicted.typos": lambda row: row["label"] == row[column],
        "frozen_probe.predicted": lambda row: {*row["labels"]} & {*row[column]},
        "dictionary.predicted": lambda row: row["dictionary.num_right"],
    }
    return next(number for number, row in enumerate(rows) if column not in hits or hits[column](row))


@pytest.mark.parametrize(
    ("copied", "column", "value", "lines"),
    [
        (
            "classified",
            "tfidf.predicted",
            "memo",
            ["scores.macro_f1.tfidf.estimate:", "scores.accuracy.tfidf.estimate:"],
        ),
        (
            "classified",
            "champion.predicted.typos",
            "memo",
            ["robustness.found[1].score.estimate:", "robustness.found[1].change.estimate:"],
        ),
        ("classified", "probability", 0.999, ["calibration_error:", "length of reliability:"]),
        (
            "classified",
            "group",
            "somebody",
            ["group of 1 rows, the first is row 0 of predictions.parquet: stored 'somebody'"],
        ),
        (
            "several",
            "frozen_probe.predicted",
            [],
            ["scores.micro_f1.frozen_probe.estimate:", "scores.macro_f1.frozen_probe.estimate:"],
        ),
        ("spanned", "dictionary.predicted", [], ["scores.micro_f1.dictionary.estimate:"]),
        ("spanned", "token_probe.num_right_tokens", -5, ["scores.token_accuracy.token_probe.estimate:"]),
        (
            "written",
            "loss_base_model",
            1.0,
            ["scores.perplexity.base_model.estimate:", "gains.perplexity.base_model.low:"],
        ),
        ("written", "num_right_finetuned", -9, ["scores.token_accuracy.finetuned.estimate:"]),
        ("written", "num_bytes", 10**6, ["scores.bits_per_byte.finetuned.estimate:"]),
    ],
    indirect=["copied"],
)
def test_one_changed_prediction_is_found(
    copied: tuple[Store, Manifest], column: str, value: Any, lines: list[str]
) -> None:
    store, report = copied
    row = a_hit(pq.read_table(Path(store.url, report.ref, "predictions.parquet")), column)
    found = verify(store, forge(store, report, "predictions.parquet", with_value(column, row, value)))
    for line in lines:
        assert any(text.startswith(line) for text in found.differences), found.differences


@pytest.mark.parametrize("copied", ["written"], indirect=True)
def test_one_changed_answer_is_found(copied: tuple[Store, Manifest]) -> None:
    store, report = copied

    def change(path: Path) -> None:
        first, *others = path.read_text(encoding="utf-8").splitlines()
        row = json.loads(first)
        row["base_model"] = "It is a notice of mit."
        path.write_text("\n".join([json.dumps(row), *others]), encoding="utf-8")

    found = verify(store, forge(store, report, "answers.jsonl", change)).differences
    for place in (
        "scores.rouge_l.base_model.estimate",
        "scores.chrf.base_model.low",
        "gains.chrf.base_model.estimate",
    ):
        assert any(line.startswith(f"answers.{place}: stored ") for line in found), found


@pytest.mark.parametrize(
    ("copied", "column", "value"),
    [("classified", "label", "order"), ("several", "labels", ["tag"]), ("spanned", "spans", [])],
    indirect=["copied"],
)
def test_one_changed_label_of_the_snapshot_is_found(
    copied: tuple[Store, Manifest], column: str, value: Any
) -> None:
    store, report = copied
    [snapshot] = store.artifacts(report.case, "training_snapshot")
    rows = pq.read_table(store.folder(snapshot) / "index.parquet").select([column, "split"]).to_pylist()
    row = next(
        n
        for n, found in enumerate(rows)
        if found["split"] == "test" and found[column] and found[column] != value
    )
    snapshot = forge(store, snapshot, "index.parquet", with_value(column, row, value))
    found = verify(
        store,
        forge(store, report, "evaluation.json", lambda _: None, training_snapshot=snapshot.content_digest),
    )
    stored = "num_spans" if column == "spans" else column
    assert any(line.startswith(f"{stored} of 1 rows, the first is row ") for line in found.differences), (
        found.differences
    )
    assert any(re.match(r"per_label\[\d+\]\.support: ", line) for line in found.differences)


@pytest.mark.parametrize("copied", ["classified"], indirect=True)
def test_files_and_models_other_than_the_report_names_are_found(copied: tuple[Store, Manifest]) -> None:
    store, report = copied
    checkpoint = store.load(report.metadata["checkpoint"])
    path = Path(store.url, checkpoint.ref, "model", "config.json")
    path.write_text(
        path.read_text().replace("absolute", "relative")
        if "absolute" in path.read_text()
        else path.read_text().swapcase()
    )
    [line] = verify(store, report).differences
    assert line.startswith("digest of finetuned_checkpoint/model/config.json: stored ")
    forge(store, checkpoint, "model/config.json", lambda _: None)
    [line] = verify(store, report).differences
    assert line.startswith("content of finetuned_checkpoint: stored ")
    store.delete(store.load(report.metadata["incumbent"]))
    assert [line.split(":")[0] for line in verify(store, report).differences] == [
        "content of finetuned_checkpoint",
        "champion",
    ]


@pytest.mark.parametrize("copied", ["classified"], indirect=True)
def test_what_cannot_be_recomputed_says_why(copied: tuple[Store, Manifest]) -> None:
    store, report = copied
    rows = Path(store.url, report.ref, "predictions.parquet")
    table = pq.read_table(rows)
    without = forge(store, report, "predictions.parquet", lambda path: pq.write_table(table.slice(1), path))
    assert "metadata.num_test_rows_left_out: stored 0, recomputed 1" in verify(store, without).differences
    twice = forge(
        store,
        report,
        "predictions.parquet",
        lambda path: pq.write_table(pa.concat_tables([table, table.slice(1, 1)]), path),
    )
    with pytest.raises(
        DataError,
        match="1 of [0-9]+ rows are no test rows of the snapshot, or are there twice; evaluate again",
    ):
        verify(store, twice)
    older = forge(
        store,
        report,
        "predictions.parquet",
        lambda path: pq.write_table(table.drop(["tfidf.predicted"]), path),
    )
    with pytest.raises(DataError, match=r"there is no column tfidf\.predicted"):
        verify(store, older)
    forge(store, report, "predictions.parquet", lambda path: pq.write_table(table, path))
    [snapshot] = store.artifacts(report.case, "training_snapshot")
    rewritten = store.rewrite(snapshot, lambda folder: {})
    pq.write_table(
        pq.read_table(store.folder(rewritten) / "index.parquet").slice(1),
        store.folder(rewritten) / "index.parquet",
    )
    moved = report.model_copy(update={"inputs": {**report.inputs, "training_snapshot": "gone"}})
    with pytest.raises(StoreError, match=r"its snapshot \(content gone\) is not in the store"):
        verify(store, moved)
    forged = rewritten.model_copy(update={"metadata": {**rewritten.metadata, "replaces": ["gone"]}})
    Path(store.url, forged.ref, "manifest.json").write_text(forged.model_dump_json())
    with pytest.raises(DataError, match="rows of its snapshot were erased since"):
        verify(store, moved)


@pytest.mark.parametrize("copied", ["classified", "written"], indirect=True)
def test_an_erased_document_is_in_no_list_beside_its_report(copied: tuple[Store, Manifest]) -> None:
    store, report = copied
    folder = store.folder(report)
    lists = [name for name in ("answers.jsonl", "label_errors.jsonl") if name in report.files]
    tables = [name for name in ("predictions.parquet", "validation.parquet") if name in report.files]

    def ids(name: str) -> list[str]:
        path = store.folder(store.load(report.ref)) / name
        return (
            pq.read_table(path)["id"].to_pylist()
            if name in tables
            else [row["id"] for row in map(json.loads, path.open())]
        )

    assert folder.is_dir() and (lists or "validation.parquet" in tables)
    before = {name: ids(name) for name in (*lists, *tables)}
    gone = sorted({found[0] for found in before.values()})
    erasure.erase(store, report.case, gone)
    assert {name: ids(name) for name in before} == {
        name: [id_ for id_ in found if id_ not in gone] for name, found in before.items()
    }


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("copied", ["classified"], indirect=True)
def test_a_table_for_annotators_is_verified_and_loses_an_erased_document(
    copied: tuple[Store, Manifest], delimiter: str
) -> None:
    store, report = copied
    folder, name = store.folder(report), "label_errors.tsv" if delimiter == "\t" else "label_errors.csv"
    rows = read_list(folder / "label_errors.jsonl")
    (folder / "label_errors.jsonl").rename(folder / name)
    entry = report.files["label_errors.jsonl"]
    report = report.model_copy(
        update={"files": {**{k: v for k, v in report.files.items() if v is not entry}, name: entry}}
    )
    report = forge(store, report, name, lambda path: write_list(path, rows, delimiter))
    assert verify(store, report).differences == []
    gone, *left = [row["id"] for row in rows]
    erasure.erase(store, report.case, [gone])
    after = store.folder(store.load(report.ref)) / name
    assert [row["id"] for row in read_list(after)] == left and gone not in after.read_text().replace(
        delimiter, "\n"
    ).split("\n")
    assert after.read_text().splitlines()[0] == delimiter.join(rows[0])


@pytest.mark.parametrize("copied", ["written"], indirect=True)
def test_the_command_ends_with_1_where_a_number_differs(
    copied: tuple[Store, Manifest], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, report = copied

    class UseCase:
        name = report.case

    monkeypatch.setattr(commands, "_load", lambda parsed: UseCase)
    monkeypatch.setattr(commands, "_store", lambda use_case: store)
    command = ["verify", report.case, "--defs", "."]
    assert main(command) == 1 and "has no evaluation report yet" in capsys.readouterr().err
    set_latest(store, report.case, "evaluation_report", report, "all")
    assert main(command) == 0
    assert capsys.readouterr().out.endswith(" numbers agree\n")
    forge(store, report, "evaluation.json", with_number("num_test_tokens"))
    assert main([*command, "--report", report.ref]) == 1
    assert capsys.readouterr().out.startswith("num_test_tokens: stored ")
    assert main([*command, "--report", report.metadata["checkpoint"]]) == 1
    assert (
        "this is a finetuned_checkpoint; give letters/evaluation_report/KEY/ATTEMPT"
        in capsys.readouterr().err
    )
