"""Representation: training shares against production's, and windows too small to tell."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fullft_assets import documents
from fullft_assets.component import FullFineTune
from fullft_assets.demos import licences
from fullft_assets.monitoring import SUMS, Sums, representation
from fullft_assets.monitoring.representation import Composition, compare, difference, of_tables
from fullft_assets.resources import ManifestIOManager, latest, open_store, set_latest
from fullft_assets.store import Manifest, Store
from tests import project as projects
from tests.checkpoint_metadata import checkpoint_metadata
from tests.test_data_report import metadata as snapshot_metadata

SPAN = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("label", pa.string())])


@pytest.fixture(scope="module")
def rules() -> pa.Table:
    rows = projects.licence_rows(6_000)
    return pa.table(
        {
            "text": [row["text"] for row in rows],
            "label": [row["kind"] for row in rows],
            "domain": [row["expression"].split("-")[0] for row in rows],
            "group": [row["expression"] for row in rows],
            "problem": pa.nulls(len(rows), pa.string()),
        }
    )


def counted(
    labels: dict[str, int], domains: dict[str, int] | None = None, *, independent: float | None = None
) -> Composition:
    num_rows = max(sum(labels.values()), sum((domains or {}).values()))
    return Composition(labels, domains or {}, num_rows, independent or num_rows)


def draw(shares: np.ndarray, count: int, seed: int) -> dict[str, int]:
    counts = np.random.default_rng(seed).multinomial(count, shares)
    return {f"label-{i}": int(n) for i, n in enumerate(counts) if n}


class TestComposition:
    def test_counts_are_those_of_the_rows(self, rules):
        found = of_tables([rules.slice(0, 2_500), rules.slice(2_500)])
        assert found.labels == Counter(rules["label"].to_pylist())
        assert found.domains == Counter(rules["domain"].to_pylist())
        assert found.num_rows == len(rules)

    def test_each_label_of_a_row_counts_once(self):
        several = pa.table({"text": ["a", "b", "c"], "labels": [["x", "y"], ["y"], None]})
        assert of_tables([several]).labels == {"x": 1, "y": 2}
        spans = [
            [{"start": 0, "end": 1, "label": "x"}, {"start": 2, "end": 3, "label": "x"}],
            [],
            [{"start": 0, "end": 1, "label": "y"}],
        ]
        assert of_tables(
            [pa.table({"text": ["a a", "b", "c"], "spans": pa.array(spans, pa.list_(SPAN))})]
        ).labels == {"x": 1, "y": 1}


class TestCompare:
    def test_same_shares_pass_and_say_so(self):
        outcome = compare(counted({"notice": 6_000, "tag": 4_000}), counted({"notice": 610, "tag": 390}))
        assert outcome.passed
        assert outcome.severity == "warn"
        assert outcome.name == "training_data_represents_production"
        assert outcome.metadata["label_difference"] == pytest.approx(0.01)

    def test_shifted_shares_warn_and_name_the_labels_that_differ_most(self):
        training = {"notice": 8_000, "text": 1_000, "tag": 500, "reference": 500}
        outcome = compare(
            counted(training), counted({"notice": 300, "text": 100, "tag": 550, "reference": 50})
        )
        assert not outcome.passed
        assert "`notice` 80.0% in training, 30.0% in production" in outcome.description
        assert outcome.description.index("`notice`") < outcome.description.index("`tag`")
        assert "`reference`" not in outcome.description
        assert "deliver more" in outcome.description
        assert outcome.metadata["label_difference"] == pytest.approx(0.5)

    @pytest.mark.parametrize("respect", ["label", "domain"])
    def test_names_that_may_be_texts_are_not_named(self, respect: str):
        sentence = "What a patient wrote in place of a label, in more than six words"
        names = {"label": {sentence: 100, "b": 900}, "domain": {"a": 900, sentence: 100}}
        usual = {"a": 500, "b": 500}
        training, production = (
            counted(usual, usual),
            counted(names[respect] if respect == "label" else usual, names[respect]),
        )
        outcome = compare(training, production)
        assert not outcome.passed
        assert (
            f"{respect} shares are 0.50 apart" in outcome.description
            and "not named, as there are more than 100" in outcome.description
        )
        assert sentence not in f"{outcome.description} {outcome.metadata}"

    def test_below_100_documents_it_reports_insufficient_data(self):
        for few, many in ((99, 500), (500, 99)):
            outcome = compare(counted({"a": few}), counted({"b": many}))
            assert outcome.passed
            assert "insufficient data: 99" in outcome.description

    def test_what_production_does_not_carry_is_not_compared(self):
        outcome = compare(counted({"a": 500, "b": 500}), counted({}, {"ward": 500}))
        assert outcome.passed
        assert "label shares are not compared" in outcome.description
        assert compare(counted({"a": 500}), counted({"b": 40}, {"ward": 500})).passed


class TestChance:
    @pytest.mark.parametrize("num_labels", [2, 20, 300])
    def test_small_windows_of_the_same_shares_do_not_alarm(self, num_labels):
        shares = np.random.default_rng(3).dirichlet(np.ones(num_labels))
        training = counted(draw(shares, 20_000, 1))
        alarms = sum(not compare(training, counted(draw(shares, 100, seed))).passed for seed in range(100))
        assert alarms == 0

    def test_expected_distance_is_that_of_equal_distributions(self):
        shares = np.random.default_rng(3).dirichlet(np.ones(30))
        pairs = [(draw(shares, 4_000, seed), draw(shares, 150, 1_000 + seed)) for seed in range(200)]
        found = [difference(a, b, 4_000, 150) for a, b in pairs]
        assert np.mean([one.distance for one in found]) == pytest.approx(
            np.mean([one.by_chance for one in found]), rel=0.1
        )

    def test_bursts_of_related_documents_leave_more_to_chance(self):
        training, labels = counted({"a": 5_000, "b": 5_000}), {"a": 80, "b": 40}
        single = compare(training, counted(labels)).metadata["label_difference_by_chance"]
        bursts = compare(training, counted(labels, independent=15)).metadata["label_difference_by_chance"]
        assert bursts > 2 * single


class TestArtifacts:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store(str(tmp_path / "store"))

    def write(self, store: Store, stage: str, file: str, table: pa.Table, **metadata: Any) -> Manifest:
        with store.create("rules", stage, f"k{len(table)}", version="1", seed=1) as draft:
            pq.write_table(table, draft.path / file)
            return draft.commit(settings={}, inputs={}, metadata=metadata)

    def test_training_rows_of_a_snapshot_against_windows(self, store, rules):
        examples = rules.drop_columns(["problem"]).append_column("row", pa.array(range(len(rules))))
        examples = examples.append_column("source", pa.array(["a.jsonl"] * len(rules)))
        delivered = self.write(store, "labeled_examples", "examples.parquet", examples)
        tables = {
            "index.parquet": pa.table({"split": ["train"] * 2_000 + ["test"] * 1_000}),
            "places.parquet": examples.slice(0, 3_000)
            .select(["source", "row"])
            .append_column("batch", pa.array(["b1"] * 3_000)),
        }
        with store.create("rules", "training_snapshot", "k1", version="1", seed=1) as draft:
            for name, table in tables.items():
                pq.write_table(table, draft.path / name)
            part = {
                "examples": delivered.ref,
                "chunks": "",
                "examples_digest": delivered.content_digest,
                "chunks_digest": "",
            }
            frozen = draft.commit(
                settings={}, inputs={}, metadata=snapshot_metadata(parts={"b1": part}).as_dict()
            )
        training = representation.of_snapshot(store, frozen)
        assert training.labels == Counter(rules["label"].to_pylist()[:2_000])
        tags = [kind == "tag" for kind in rules["label"].to_pylist()]
        windows = [
            self.write(store, "production_documents", "documents.parquet", part)
            for part in (rules.slice(3_000, 1_000), rules.filter(pa.array(tags)))
        ]
        usual = representation.of_production(store, windows[:1])
        assert compare(training, usual).passed
        odd = representation.of_production(store, windows[1:])
        assert set(odd.labels) == {"tag"}
        assert not compare(training, odd).passed
        assert representation.of_production(store, windows).num_rows == usual.num_rows + odd.num_rows


CASE = "letters"
KEY = dg.AssetCheckKey(dg.AssetKey([CASE, "training_snapshot"]), representation.CHECK.name)


class Live:
    """A watched project on a real Dagster instance."""

    def __init__(self, instance: dg.DagsterInstance, project: projects.Project):
        self.instance, self.project = instance, project
        self.store = open_store(project.use_case(), instance)

    def run(self, *assets: str, partition: str | None = None) -> None:
        """Materialise assets with their checks, or the check alone where none is named."""
        selection = (
            dg.AssetSelection.assets(*([CASE, name] for name in assets))
            if assets
            else dg.AssetSelection.checks(KEY)
        )
        job = dg.define_asset_job("chosen", selection)
        loaded = FullFineTune(self.project.use_case()).build_defs()
        defs = dg.Definitions.merge(loaded, dg.Definitions(executor=dg.in_process_executor, jobs=[job]))
        assert (
            defs.resolve_job_def("chosen")
            .execute_in_process(instance=self.instance, partition_key=partition)
            .success
        )

    def ingest(self, kind: str, *assets: str) -> list[str]:
        """Cut what was delivered and materialise assets for each batch or window."""
        use_case = self.project.use_case()
        cut = documents.cut_batches(
            self.store, CASE, documents.source_of(use_case, kind), use_case.settings.documents, kind
        )
        names = [batch.name for batch in cut]
        self.instance.add_dynamic_partitions(f"{CASE}/{kind}", names)
        for name in names:
            self.run(*assets, partition=name)
        return names

    def evaluation(self) -> dg.AssetCheckEvaluation:
        """Return the newest evaluation of the check as the instance keeps it."""
        (record,) = self.instance.event_log_storage.get_asset_check_execution_history(KEY, limit=1)
        return record.event.dagster_event.event_specific_data


class TestInDagster:
    @pytest.fixture(scope="class")
    def project(self, tmp_path_factory: pytest.TempPathFactory) -> projects.Project:
        project = projects.create(tmp_path_factory.mktemp("live") / "root", CASE, rows=400)
        project.configure(monitoring={"path": f"data/{CASE}/production"}, documents={"settle_seconds": 0})
        with dg.DagsterInstance.from_config(str(project.home)) as instance:
            live = Live(instance, project)
            live.ingest(
                "batch", "raw_documents", "labeled_examples", "quarantined_examples", "tokenized_chunks"
            )
            live.run("training_snapshot")
        return project

    @pytest.fixture
    def live(self, project: projects.Project, tmp_path: Path) -> Iterator[Live]:
        """A copy of the project, its instance included, to change at will."""
        shutil.copytree(project.root, tmp_path / "copy")
        copy = projects.Project(tmp_path / "copy", CASE)
        with dg.DagsterInstance.from_config(str(copy.home)) as instance:
            yield Live(instance, copy)

    def watch(self, live: Live, file: str, rows: list[dict[str, Any]]) -> str:
        projects.write_rows(live.project.production / file, rows)
        (window,) = live.ingest("window", "production_documents")
        return window

    def test_production_with_other_labels_warns(self, live):
        rows = [{**row, "id": f"p{n}"} for n, row in enumerate(projects.licence_rows(300, skip=500))]
        self.watch(live, "w1.jsonl", rows)
        live.run()
        assert live.evaluation().passed
        assert live.evaluation().metadata["num_production_rows"].value == 300
        self.watch(live, "w2.jsonl", [{**row, "kind": "tag", "id": f"{row['id']}-2"} for row in rows])
        live.run()
        found = live.evaluation()
        assert not found.passed and found.severity == dg.AssetCheckSeverity.WARN
        assert "`tag`" in found.description and "label and deliver more documents" in found.description
        assert found.metadata["num_windows"].value == 2
        # The snapshot itself is as good as it was: the check only warns.
        live.run("training_snapshot")

    def test_the_snapshot_of_its_run_is_judged_whatever_another_run_makes_meanwhile(self, live, monkeypatch):
        rows = [{**row, "id": f"p{n}"} for n, row in enumerate(projects.licence_rows(300, skip=500))]
        self.watch(live, "w1.jsonl", rows)
        newest = latest(live.store, CASE, "training_snapshot")
        save = ManifestIOManager.handle_output

        def overtaken(self: ManifestIOManager, context: dg.OutputContext, obj: Manifest) -> None:
            """Point at an artifact, and at once another run makes its own the newest."""
            save(self, context, obj)
            set_latest(live.store, CASE, "training_snapshot", newest)

        live.project.configure(
            seed=5, monitoring={"path": f"data/{CASE}/production"}, documents={"settle_seconds": 0}
        )
        monkeypatch.setattr(ManifestIOManager, "handle_output", overtaken)
        live.run("training_snapshot")
        (made,) = live.instance.fetch_materializations(KEY.asset_key, limit=1).records
        assert latest(live.store, CASE, "training_snapshot") == newest
        assert (
            live.evaluation().metadata["snapshot"].value
            == made.asset_materialization.metadata["artifact"].value
            != newest.ref
        )

    def test_the_newest_windows_count(self, live, monkeypatch):
        monkeypatch.setattr(representation, "ENOUGH_ROWS", 200)
        rows = [{**row, "id": f"p{n}"} for n, row in enumerate(projects.licence_rows(300, skip=500))]
        self.watch(live, "w1.jsonl", [{**row, "kind": "tag"} for row in rows])
        self.watch(live, "w2.jsonl", [{**row, "id": f"{row['id']}-2"} for row in rows])
        live.run()
        assert live.evaluation().passed
        assert live.evaluation().metadata["num_production_rows"].value == 300

    def test_predictions_of_the_model_in_production_are_used_as_labels(self, live):
        rows = [
            {"id": f"p{n}", "text": row["text"]} for n, row in enumerate(projects.licence_rows(300, skip=500))
        ]
        window = self.watch(live, "w1.jsonl", rows)
        live.run()
        assert "label shares are not compared" in live.evaluation().description
        model = self.checkpoint(live, "k1")
        set_latest(live.store, CASE, "finetuned_checkpoint", model)
        self.predict(live, window, model, licences.KINDS.index("tag"))
        live.run()
        found = live.evaluation()
        assert not found.passed
        assert found.description.startswith("predicted label shares are ")
        assert "100.0% in production" in found.description
        # Predictions of another model do not count.
        set_latest(live.store, CASE, "finetuned_checkpoint", self.checkpoint(live, "k2"))
        live.run()
        assert "label shares are not compared" in live.evaluation().description

    def checkpoint(self, live: Live, key: str) -> Manifest:
        snapshot = latest(live.store, CASE, "training_snapshot")
        with live.store.create(CASE, "finetuned_checkpoint", key, version="1", seed=1) as draft:
            return draft.commit(
                settings={},
                inputs={},
                metadata=checkpoint_metadata(snapshot=snapshot.ref, labels=snapshot.metadata["labels"]),
            )

    def predict(self, live: Live, window: str, model: Manifest, label: int) -> None:
        """Write a window's drift report as if the model had predicted `label` for every document."""
        names = latest(live.store, CASE, "training_snapshot").metadata["labels"]
        counts = 200 * np.eye(len(names), dtype=int)[names.index(licences.KINDS[label])]
        with live.store.create(CASE, "drift_report", "k1", version="1", seed=1) as draft:
            Sums(200, {"embeddings": np.zeros(2)}, np.zeros(4), counts, None).save(draft.path / SUMS)
            made = draft.commit(
                settings={}, inputs={"finetuned_checkpoint": model.content_digest}, metadata={}
            )
        set_latest(live.store, CASE, "drift_report", made, window)

    def test_check_is_in_the_jobs_that_make_either_side_new(self, project):
        defs = FullFineTune(project.use_case()).build_defs()
        jobs = {
            name: defs.resolve_job_def(f"{CASE}_{name}")
            for name in ("ingest", "model", "evaluate", "monitor")
        }
        having = {
            name
            for name, job in jobs.items()
            if any(node.name.endswith(representation.CHECK.name) for node in job.nodes)
        }
        assert having == {"model", "evaluate", "monitor"}
