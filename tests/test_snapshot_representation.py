"""Representation: training shares against production's, and windows too small to tell."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from fullft_assets.component import FullFineTune
from fullft_assets.monitoring import SUMS, Sums, representation
from fullft_assets.resources import latest, open_store, set_latest
from fullft_assets.store import Manifest
from tests import manifests, project as projects
from tests.asset_runs import run_jobs
from tests.checkpoint_metadata import checkpoint_metadata


def draw(shares: np.ndarray, count: int, seed: int) -> dict[str, int]:
    counts = np.random.default_rng(seed).multinomial(count, shares)
    return {f"label-{i}": int(n) for i, n in enumerate(counts) if n}


class TestCompare:
    def test_same_shares_pass_and_say_so(self):
        outcome = representation.compare({"notice": 6_000, "tag": 4_000}, {"notice": 610, "tag": 390})
        assert outcome.passed and outcome.severity == "warn"
        assert outcome.name == "training_data_represents_production"
        assert outcome.metadata["label_difference"] == pytest.approx(0.01)

    def test_shifted_shares_warn_and_name_the_labels_that_differ_most(self):
        training = {"notice": 8_000, "text": 1_000, "tag": 500, "reference": 500}
        outcome = representation.compare(training, {"notice": 300, "text": 100, "tag": 550, "reference": 50})
        assert not outcome.passed
        assert "`notice` 80.0% in training, 30.0% in production" in outcome.description
        assert outcome.description.index("`notice`") < outcome.description.index("`tag`")
        assert "`reference`" not in outcome.description
        assert outcome.metadata["label_difference"] == pytest.approx(0.5)

    def test_labels_that_may_be_texts_are_not_named(self):
        sentence = "What a patient wrote in place of a label, in more than six words"
        outcome = representation.compare({"a": 500, "b": 500}, {sentence: 100, "b": 900})
        assert not outcome.passed and "shares are 0.50 apart" in outcome.description
        assert sentence not in f"{outcome.description} {outcome.metadata}"

    def test_below_100_documents_it_reports_insufficient_data(self):
        for few, many in ((99, 500), (500, 99)):
            outcome = representation.compare({"a": few}, {"b": many})
            assert outcome.passed and "insufficient data: 99" in outcome.description


class TestChance:
    @pytest.mark.parametrize("num_labels", [2, 20, 300])
    def test_small_windows_of_the_same_shares_do_not_alarm(self, num_labels):
        shares = np.random.default_rng(3).dirichlet(np.ones(num_labels))
        training = draw(shares, 20_000, 1)
        assert all(representation.compare(training, draw(shares, 100, seed)).passed for seed in range(100))

    def test_expected_distance_is_that_of_equal_distributions(self):
        shares = np.random.default_rng(3).dirichlet(np.ones(30))
        pairs = [(draw(shares, 4_000, seed), draw(shares, 150, 1_000 + seed)) for seed in range(200)]
        differences = [representation.difference(a, b) for a, b in pairs]
        assert np.mean([each.distance for each in differences]) == pytest.approx(
            np.mean([each.by_chance for each in differences]), rel=0.1
        )


CASE = "letters"
KEY = dg.AssetCheckKey(dg.AssetKey([CASE, "training_snapshot"]), representation.CHECK.name)


class Live:
    """A watched project on a real Dagster instance."""

    def __init__(self, instance: dg.DagsterInstance, project: projects.Project):
        self.instance, self.project = instance, project
        self.store = open_store(project.use_case(), instance)

    def run(self) -> None:
        job = dg.define_asset_job("chosen", dg.AssetSelection.checks(KEY))
        loaded = FullFineTune(self.project.use_case()).build_defs()
        defs = dg.Definitions.merge(loaded, dg.Definitions(executor=dg.in_process_executor, jobs=[job]))
        assert defs.resolve_job_def("chosen").execute_in_process(instance=self.instance).success

    def evaluation(self) -> dg.AssetCheckEvaluation:
        """Return the newest evaluation of the check as the instance keeps it."""
        (record,) = self.instance.event_log_storage.get_asset_check_execution_history(KEY, limit=1)
        return record.event.dagster_event.event_specific_data

    def train(self, key: str) -> Manifest:
        snapshot = latest(self.store, CASE, "training_snapshot")
        about = checkpoint_metadata(snapshot=snapshot.ref, labels=snapshot.metadata["labels"])
        model = manifests.write(self.store, CASE, "finetuned_checkpoint", key, about)
        set_latest(self.store, CASE, "finetuned_checkpoint", model)
        return model

    def report(self, window: str, model: Manifest, shares: dict[str, int]) -> None:
        """Write a window's drift report as if the model had predicted these labels."""
        names = latest(self.store, CASE, "training_snapshot").metadata["labels"]
        counts = np.array([shares.get(name, 0) for name in names])
        with self.store.create(CASE, "drift_report", window, version="1", seed=1) as draft:
            sums = Sums(int(counts.sum()), {"embeddings": np.zeros(2)}, np.zeros(4), counts, None)
            sums.save(draft.path / SUMS)
            inputs = {"finetuned_checkpoint": model.content_digest}
            report = draft.commit(settings={}, inputs=inputs, metadata={})
        set_latest(self.store, CASE, "drift_report", report, window)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    """A project whose snapshot is taken."""
    project = projects.create(tmp_path / "root", CASE, rows=400)
    project.configure(monitoring={"path": f"data/{CASE}/production"}, documents={"settle_seconds": 0})
    run_jobs(project, "ingest", "snapshot")
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        yield Live(instance, project)


def test_what_the_model_in_production_predicts_is_compared(live, monkeypatch):
    assert live.evaluation().passed and "insufficient data: 0" in live.evaluation().description
    counts = latest(live.store, CASE, "training_snapshot").metadata["label_counts"]["train"]
    model = live.train("k1")
    live.report("w1", model, counts)
    live.run()
    assert live.evaluation().passed and live.evaluation().metadata["num_windows"].value == 1
    live.report("w2", model, {"tag": 2_000})
    live.run()
    found = live.evaluation()
    assert not found.passed and found.severity == dg.AssetCheckSeverity.WARN
    assert "`tag`" in found.description and found.metadata["num_windows"].value == 2
    # The newest windows count, until there are enough documents.
    monkeypatch.setattr(representation, "ENOUGH_ROWS", 100)
    live.report("w3", model, counts)
    live.run()
    assert live.evaluation().passed
    # Predictions of another model do not count.
    live.train("k2")
    live.run()
    assert "insufficient data: 0" in live.evaluation().description


def test_check_is_in_the_jobs_that_make_either_side_new(tmp_path):
    project = projects.create(tmp_path, CASE, rows=5)
    project.configure(monitoring={"path": f"data/{CASE}/production"})
    defs = FullFineTune(project.use_case()).build_defs()
    jobs = {
        name: defs.resolve_job_def(f"{CASE}_{name}") for name in ("ingest", "model", "evaluate", "monitor")
    }
    having = {
        name
        for name, job in jobs.items()
        if any(node.name.endswith(representation.CHECK.name) for node in job.nodes)
    }
    assert having == {"model", "evaluate", "monitor"}
