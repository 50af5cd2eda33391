"""Live quality: late labels in any order, bounds that hold at every look, and a drop that the retraining
policy hears of.
"""

import json
import time
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from benchmarks.live_quality import simulate
from fullft_assets import documents, examples, monitoring, release, retraining
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.assets.production import _measure_live_quality
from fullft_assets.automation.decision import gather
from fullft_assets.cli.export import export
from fullft_assets.component import FullFineTune
from fullft_assets.monitoring import AtRelease, FarDocument, LiveMetadata, live
from fullft_assets.monitoring.predictions import PREDICTIONS, Document as Predicted, write_predictions
from fullft_assets.retraining.history import score_fell
from fullft_assets.store import Manifest, Store
from tests import manifests, project as projects
from tests.asset_runs import run_assets
from tests.checkpoint_metadata import checkpoint_metadata
from tests.machine import set_environment
from tests.test_data_report import metadata as snapshot_metadata

ERROR = 0.025
CASE = "letters"


class TestBounds:
    def test_they_enclose_the_share_and_tighten(self) -> None:
        widths = []
        for num in (10, 100, 1_000, 10_000):
            low, high = (
                live.lower_bound(8 * num // 10, num, ERROR),
                live.upper_bound(8 * num // 10, num, ERROR),
            )
            assert 0 <= low < 0.8 < high <= 1
            widths.append(high - low)
        assert widths == sorted(widths, reverse=True) and widths[-1] < 0.04

    def test_without_outcomes_and_with_right_ones_alone_nothing_is_excluded_above(self) -> None:
        assert (live.lower_bound(0, 0, ERROR), live.upper_bound(0, 0, ERROR)) == (0.0, 1.0)
        assert live.upper_bound(7, 7, ERROR) == 1.0 and live.lower_bound(0, 7, ERROR) == 0.0
        with pytest.raises(ValueError, match="8 of 7"):
            live.upper_bound(8, 7, ERROR)

    @pytest.mark.parametrize("share", [0.5, 0.85, 0.97])
    def test_a_year_of_looks_is_wrong_as_seldom_as_one(self, share: float) -> None:
        rng, num = np.random.default_rng(5), 5 * np.arange(1, 366)
        right = rng.binomial(5, share, (400, 365)).cumsum(axis=1)
        assert (live.log_evidence_below(right, num, share) >= -np.log(0.05)).any(axis=1).mean() <= 0.05

    def test_the_simulated_year_raises_few_false_alarms_and_finds_a_drop(self) -> None:
        assert simulate(100, 1_000, 0.0, 1).rate <= 0.05
        assert simulate(100, 1_000, 0.0, 2, candidates=5).rate <= 0.05
        found = simulate(100, 1_000, 0.1, 3)
        assert found.rate >= 0.95 and np.median(found.num_labels) < 500


def document(
    key: str,
    predicted: str = "a",
    *,
    id: str | None = None,
    label: str | None = None,
    is_chosen: bool = False,
    window: str = "w1",
) -> live.PredictedDocument:
    return live.PredictedDocument(key.encode(), id, predicted, label, is_chosen, window)


class TestCounts:
    def test_later_labels_count_before_those_that_came_along(self) -> None:
        seen = [
            document("1", id="d1", label="b"),
            document("2", id="d2", label="a"),
            document("3", label="b"),
            document("4", id="d4"),
        ]
        assert live.count({"d1": "a"}, iter(seen))[:3] == (4, 3, 2)

    def test_of_related_documents_the_first_counts_whichever_has_a_label(self) -> None:
        seen = [document("g", id="d1"), document("g", "b", id="d2"), document("g", id="d3")]
        assert live.count({"d2": "a", "d3": "a"}, iter(seen))[:3] == (1, 0, 0)
        assert live.count({"d1": "a", "d2": "a"}, iter(seen))[:3] == (1, 1, 1)

    def test_contradicting_labels_and_documents_chosen_for_labelling_are_no_measure(self) -> None:
        seen = [document("1", id="d1", label="a"), document("2", id="d2", is_chosen=True)]
        assert live.count({"d1": None, "d2": "a"}, iter(seen)) == (2, 0, 0, {"w1": (0, 0)})

    def test_each_window_has_its_own_counts_of_one_a_group(self) -> None:
        first = [document("g", label="a"), document("g", label="b"), document("h", label="b")]
        second = [document("g", label="a", window="w2"), document("i", window="w2")]
        assert live.count({}, iter([*first, *second])) == (3, 2, 1, {"w1": (2, 1), "w2": (1, 1)})
        many = live.count({}, (document("g", label="a", window=f"w{number:03d}") for number in range(120)))
        assert list(many.by_window) == [f"w{number:03d}" for number in range(20, 120)]
        assert many[:3] == (
            1,
            1,
            1,
        )


class TestJudge:
    def judge(self, num_right: int, num: int) -> LiveMetadata:
        return live.judge(live.Counts(1_000, num, num_right), "c", 3, AtRelease(0.9, 0.87), ERROR)

    def test_a_drop_counts_only_if_both_intervals_exclude_chance(self) -> None:
        likely, certain = self.judge(82, 100), self.judge(656, 800)
        assert likely.accuracy == certain.accuracy == 0.82
        assert likely.drop == 0 and live.check(likely).passed
        assert certain.drop == pytest.approx(0.08) and not live.check(certain).passed
        assert "accuracy 0.820" in live.check(certain).description

    def test_without_labels_nothing_is_said(self) -> None:
        none = self.judge(0, 0)
        assert none.accuracy is None and none.drop == 0
        assert live.check(none).description.startswith("none of 1,000 ")
        assert LiveMetadata.model_validate(none.as_dict()) == none


class Live:
    """A project with a champion and a window that it predicted, whose labels are delivered later."""

    def __init__(self, project: projects.Project, store: Store, system: str = "finetuned"):
        self.project, self.store = project, store
        project.configure(monitoring={"path": "data/letters/production"})
        about = {**checkpoint_metadata(), "system": system}
        stage = "finetuned_checkpoint" if system == "finetuned" else "baseline_model"
        self.checkpoint = manifests.write(store, CASE, stage, metadata=about)
        measured = {"accuracy": 0.9, "accuracy_low": 0.87, "accuracy_high": 0.92, "macro_f1": 0.9}
        about = manifests.evaluation(checkpoint=self.checkpoint.ref, measured=measured)
        self.evaluation = manifests.write(store, CASE, "evaluation_report", metadata=about)

    def promote(self, snapshot: Manifest) -> None:
        about = {"snapshot": snapshot.ref, "evaluation": self.evaluation.ref, "promoted_at": time.time()}
        manifests.promote(self.store, CASE, self.checkpoint.ref, **about)

    def point(self, asset: str, partition: str, made: Manifest) -> None:
        self.store.write_pointer(f"latest/{CASE}/{asset}/{partition}", {"ref": made.ref})

    def see(
        self,
        file: str,
        rows: list[dict[str, Any]],
        *,
        predicted: dict[str, str],
        fields: tuple[str, ...] = ("id", "text"),
    ) -> documents.Batch:
        """Deliver a window of production, with these fields of its rows, and let the champion predict it."""
        projects.write_rows(
            self.project.production / file, [{name: row[name] for name in fields} for row in rows]
        )
        use_case = self.project.use_case()
        [window] = documents.look(self.store, use_case, "window", now=time.time() + 60).cut
        seen = documents.keep(self.store, use_case, window.name, "window")
        inputs = {
            "production_documents": seen.content_digest,
            "finetuned_checkpoint": self.checkpoint.content_digest,
        }
        with self.store.create(CASE, "batch_predictions", window.name, version="1", seed=1) as draft:
            about = [
                Predicted(file, number, row["id"], row["text"])
                for number, row in enumerate(rows, start=1)
                if row["text"]
            ]
            write_predictions(
                draft.path / PREDICTIONS,
                about,
                [{"label": predicted[row["id"]]} for row in rows if row["text"]],
            )
            made = draft.commit(settings={}, inputs=inputs, metadata={})
        self.point("production_documents", window.name, seen)
        self.point("batch_predictions", window.name, made)
        return window

    def report_far(self, window: str, file: str, rows: list[int]) -> None:
        """Let the drift report of a window name rows of its file as far from the training data."""
        with self.store.create(CASE, "drift_report", window, version="1", seed=1) as draft:
            monitoring.write_far(
                draft.path / monitoring.FAR,
                [FarDocument(source=file, row=row, distance=2.0) for row in rows],
            )
            seen = self.store.read_pointer(f"latest/{CASE}/production_documents/{window}") or {}
            made = draft.commit(
                settings={}, inputs={}, metadata={**manifests.drift("confirmed"), "documents": seen["ref"]}
            )
        self.point("drift_report", window, made)

    def export(self, out: Path, **how: Any) -> int:
        how = {"format_name": "jsonl", "most": 300, "num_windows": 3, "at_random": True, **how}
        return export(self.project.use_case(), self.store, out, **how)

    def count(self) -> LiveMetadata:
        champion = release.read_champion(self.store, CASE)
        return LiveMetadata.of(
            _measure_live_quality(CaseGraph(self.project.use_case()), self.store, champion)
        )

    def label(self, file: str, rows: list[dict[str, Any]]) -> Manifest:
        """Deliver labelled rows as a batch of their own, and read it."""
        self.project.deliver(file, rows)
        use_case = self.project.use_case()
        [batch] = documents.look(self.store, use_case, now=time.time() + 60).cut
        labelled, _ = examples.validate(
            self.store, use_case, documents.keep(self.store, use_case, batch.name)
        )
        self.point("labeled_examples", batch.name, labelled)
        return labelled


@pytest.mark.parametrize("system", ["finetuned", "tfidf"])
def test_labels_of_later_deliveries_score_the_champion_on_production(
    project: projects.Project, system: str
) -> None:
    seen = Live(project, Store(str(project.home / "store")), system)
    # What the champion has learned from, which production sees again.
    rows = [{**row, "expression": row["id"]} for row in projects.licence_rows(180, skip=2_000)]
    seen.promote(snapshot_of(seen.store, seen.label("learned.jsonl", rows[:30])))
    wrong = {row["id"]: next(kind for kind in ("notice", "text") if kind != row["kind"]) for row in rows}
    for number in range(3):
        part = rows[60 * number : 60 * (number + 1)]
        predicted = {
            row["id"]: row["kind"] if index % 2 else wrong[row["id"]] for index, row in enumerate(part)
        }
        seen.see(f"w{number}.jsonl", part, predicted=predicted)
    unlabelled = seen.count()
    assert live.check(unlabelled).passed
    assert (unlabelled.num_windows, unlabelled.num_labelled, unlabelled.accuracy) == (3, 0, None)
    # The newer window is labelled before the older one; what was learned from never counts.
    seen.label("late-1.jsonl", rows[120:126])
    few = seen.count()
    assert live.check(few).passed and few.num_labelled == 6
    seen.label("late-2.jsonl", rows[30:120])
    many = seen.count()
    assert not live.check(many).passed
    assert many.num_labelled - 96 in range(-6, 1), "of equal texts one counts"
    assert many.drop == pytest.approx(0.9 - many.num_right / many.num_labelled)


class TestLabelAudit:
    """A random sample of production is exported, labelled, delivered, and counts."""

    @pytest.fixture
    def seen(self, project: projects.Project) -> Live:
        seen = Live(project, Store(str(project.home / "store")))
        rows = projects.licence_rows(130, skip=2_000)
        seen.promote(snapshot_of(seen.store, seen.label("learned.jsonl", rows[:10])))
        self.kinds = {row["id"]: row["kind"] for row in rows}
        # Related documents follow each other; of each group the first one counts.
        rows = [{**row, "expression": f"group {number // 2}"} for number, row in enumerate(rows)]
        rows[15]["text"] = ""
        self.first = {row["id"] for row in rows[10::2]}
        for number in range(3):
            part = rows[10 + 40 * number : 10 + 40 * (number + 1)]
            window = seen.see(
                f"w{number}.jsonl", part, predicted=self.kinds, fields=("id", "text", "expression")
            )
            seen.report_far(window.name, f"w{number}.jsonl", [1, 2, 3, 4])
        self.far = {rows[10 + 40 * number + row]["id"] for number in range(3) for row in range(4)}
        return seen

    def test_what_is_far_counts_unless_it_was_exported_as_far_before(
        self, seen: Live, tmp_path: Path
    ) -> None:
        """A new domain is far: without it, the accuracy would be that of the rest of production."""
        assert seen.export(tmp_path / "audit.jsonl") == 60
        rows = [
            json.loads(line) for line in (tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        assert {row["id"] for row in rows} == self.first
        seen.label("labelled.jsonl", [{**row, "kind": self.kinds[row["id"]]} for row in rows])
        assert seen.export(tmp_path / "far.jsonl", at_random=False) == 12
        assert seen.count().num_labelled == 60

    @pytest.mark.parametrize("chosen", ["label_studio", "ground_truth"])
    def test_what_is_exported_at_random_comes_back_and_counts(
        self, seen: Live, tmp_path: Path, chosen: str
    ) -> None:
        seen.export(tmp_path / "far.jsonl", at_random=False)
        rows = [
            json.loads(line) for line in (tmp_path / "far.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        assert {row["id"] for row in rows} == self.far
        seen.label("far.jsonl", [{**row, "kind": "text"} for row in rows])
        assert seen.count().num_labelled == 0
        out = tmp_path / "audit"
        assert seen.export(out, most=30, format_name=chosen) == 30
        text = out.read_text(encoding="utf-8")
        given: list[dict[str, Any]] = (
            [task["data"] for task in json.loads(text)]
            if chosen == "label_studio"
            else [json.loads(line) for line in text.splitlines()]
        )
        assert (
            set(given[0]) == {"id", "text", "expression", "fullft_window"}
            if chosen != "ground_truth"
            else {"source", "id", "expression", "fullft_window"}
        )
        labelled = [
            {**row, "text": row.get("text") or row["source"], "kind": self.kinds[row["id"]]} for row in given
        ]
        seen.label(
            "labelled.jsonl",
            [{**row, "kind": "text" if number < 12 else row["kind"]} for number, row in enumerate(labelled)],
        )
        found = seen.count()
        assert (found.num_documents, found.num_labelled) == (60, 30)
        assert found.num_right == 18 + sum(row["kind"] == "text" for row in labelled[:12])

    def test_it_is_drawn_by_the_seed_from_what_counts(self, seen: Live, tmp_path: Path) -> None:
        def drawn(**how: Any) -> list[str]:
            seen.export(tmp_path / "audit.jsonl", **how)
            return [
                json.loads(line)["id"]
                for line in (tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()
            ]

        seen.export(tmp_path / "far.jsonl", at_random=False)
        everything = drawn()
        assert set(everything) == self.first - self.far and len(everything) == 54
        assert drawn(most=10) == everything[:10] == drawn(most=10)
        newest = set(drawn(num_windows=1))
        assert len(newest) == 18 and newest < set(everything)
        assert len(newest & set(everything[:18])) < 18, "windows are not drawn one after the other"
        # What has a label is not asked for once more.
        rows = [
            json.loads(line) for line in (tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()
        ][:6]
        seen.label("some.jsonl", [{**row, "kind": "text"} for row in rows])
        assert set(drawn()) == set(everything) - {row["id"] for row in rows}
        seen.project.configure(seed=99, monitoring={"path": "data/letters/production"})
        assert set(other := drawn()) == set(drawn()) and other != [
            each for each in everything if each in other
        ]

    def test_a_label_of_a_row_without_an_id_is_not_that_of_the_same_row_of_another_file_of_that_name(
        self, seen: Live
    ) -> None:
        seen.see(
            "same.jsonl",
            [{"id": "x", "text": "A text without an id of its own."}],
            predicted={"x": "text"},
            fields=("text",),
        )
        before = seen.count()
        seen.label("same.jsonl", [{"text": "Another text.", "kind": "notice", "expression": "x"}])
        assert seen.count().num_labelled == before.num_labelled

    def test_after_a_drift_the_documents_that_are_asked_for_confirm_it(
        self, seen: Live, tmp_path: Path
    ) -> None:
        seen.project.configure(
            monitoring={"path": "data/letters/production"}, retraining={"min_new_examples_on_drift": 10}
        )
        graph = CaseGraph(seen.project.use_case())

        def decide() -> tuple[retraining.Decision, bool]:
            made = _measure_live_quality(graph, seen.store, release.read_champion(seen.store, CASE))
            seen.point("live_quality", "all", made)
            with dg.DagsterInstance.ephemeral() as instance:
                state, signals = gather(graph, instance, seen.store, {}, time.time())
            settings = graph.settings.retraining
            return retraining.decide(state, signals, settings), score_fell(signals, settings)

        def label(name: str, *, at_random: bool) -> None:
            seen.export(tmp_path / name, at_random=at_random)
            rows = [json.loads(line) for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]
            seen.label(
                name,
                [{**row, "kind": "text" if self.kinds[row["id"]] == "notice" else "notice"} for row in rows],
            )

        asked, _ = decide()
        assert asked.action == "request_labels" and "`fullft export CASE FILE --random`" in asked.instruction
        label("far.jsonl", at_random=False)
        again, fell = decide()
        assert (again.action, again.evidence, fell) == ("request_labels", "random_labels", False), (
            "far ones do not say how often it is right"
        )
        label("random.jsonl", at_random=True)
        confirmed, fell = decide()
        assert fell
        assert confirmed.action == "wait"
        assert confirmed.count_first


def snapshot_of(store: Store, learned: Manifest) -> Manifest:
    """Write a snapshot that was taken over one batch."""
    batch = {
        "examples": learned.ref,
        "chunks": "c",
        "examples_digest": learned.content_digest,
        "chunks_digest": "c",
    }
    about = snapshot_metadata(parts={learned.metadata["batch"]: batch}).as_dict()
    return manifests.write(store, CASE, "training_snapshot", metadata=about)


def test_without_a_champion_its_run_succeeds_and_its_check_is_green(
    project: projects.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, project.env())
    project.configure(monitoring={"path": "data/letters/production"})
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        result = run_assets(project.use_case(), instance, "live_quality")
    assert result.success
    assert [(check.check_name, check.passed) for check in result.get_asset_check_evaluations()] == [
        (monitoring.LIVE_CHECK.name, True)
    ]
    assert result.get_asset_materialization_events() == []


def test_what_came_for_it_is_measured_at_once(project: projects.Project) -> None:
    project.configure(monitoring={"path": "data/letters/production"})
    defs = FullFineTune(project.use_case()).build_defs()
    live_quality, labels = dg.AssetKey([CASE, "live_quality"]), dg.AssetKey([CASE, "labeled_examples"])
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(f"{CASE}/batch", ["b0", "b1", "b2"])
        cursor = None

        def is_due(came: dg.AssetMaterialization | None = None) -> bool:
            nonlocal cursor
            if came is not None:
                instance.report_runless_asset_event(came)
            result = dg.evaluate_automation_conditions(
                defs, instance, asset_selection=dg.AssetSelection.assets(live_quality), cursor=cursor
            )
            cursor = result.cursor
            return result.total_requested > 0

        champion = dg.AssetMaterialization(dg.AssetKey([CASE, "champion_model"]))
        assert not is_due()
        assert not is_due(dg.AssetMaterialization(labels, partition="b0")), "there is no champion"
        assert is_due(champion) and is_due(dg.AssetMaterialization(labels, partition="b1"))
        assert not is_due(), "it was asked for"
        assert not is_due(dg.AssetMaterialization(live_quality)) and is_due(champion)
        # The next labels come in the minute in which that is measured.
        instance.report_runless_asset_event(dg.AssetMaterialization(live_quality))
        assert is_due(dg.AssetMaterialization(labels, partition="b2"))
        assert not is_due(dg.AssetMaterialization(live_quality))
        assert not is_due(dg.AssetMaterialization(dg.AssetKey([CASE, "training_snapshot"])))
