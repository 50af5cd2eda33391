"""The act `retokenize` of `<case>_by_hand`: after a change of tokenizer one run tokenises every batch that
needs it, and the snapshot goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from fullft_assets import chunks, documents, examples, snapshot
from fullft_assets.assets import ingestion as data_assets
from fullft_assets.component import FullFineTune
from fullft_assets.documents.aliases import alias
from fullft_assets.resources import latest, latest_by_partition, open_store, set_latest
from fullft_assets.store import Manifest, Store
from tests import project as projects
from tests import smollm2

pytestmark = pytest.mark.slow

CASE = "letters"
#: Each delivered file is a batch of its own.
DOCUMENTS = {"path": f"data/{CASE}/documents", "max_batch_files": 1, "settle_seconds": 0}
INGEST = ("raw_documents", "labeled_examples", "quarantined_examples", "tokenized_chunks")


class Data:
    """The data stages of a project with three batches, on a real instance."""

    def __init__(self, project: projects.Project, instance: dg.DagsterInstance):
        self.project, self.instance = project, instance

    @property
    def definitions(self) -> dg.Definitions:
        loaded = FullFineTune(self.project.use_case()).build_defs()
        return dg.Definitions.merge(loaded, dg.Definitions(executor=dg.in_process_executor))

    @property
    def store(self) -> Store:
        return open_store(self.project.use_case(), self.instance)

    def chunks(self) -> dict[str, Manifest]:
        return latest_by_partition(self.store, CASE, "tokenized_chunks")

    def due(self) -> list[str]:
        """Return the batches that the new-documents sensor asks runs for; their partitions are added."""
        definitions = self.definitions
        with dg.build_sensor_context(instance=self.instance, resources=definitions.resources) as context:
            found = definitions.resolve_sensor_def(f"{CASE}_new_documents")(context)
        if isinstance(found, dg.SkipReason):
            return []
        for request in found.dynamic_partitions_requests:
            self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        return [request.partition_key for request in found.run_requests]

    def ingest(self) -> list[str]:
        due = self.due()
        for batch in due:
            self.materialize(*INGEST, batch=batch)
        return due

    def materialize(self, *assets: str, batch: str | None = None) -> dg.ExecuteInProcessResult:
        job = self.definitions.resolve_implicit_global_asset_job_def()
        keys = [dg.AssetKey([CASE, asset]) for asset in assets]
        return job.execute_in_process(
            asset_selection=keys, partition_key=batch, instance=self.instance, raise_on_error=False
        )

    def retokenize(self) -> dg.ExecuteInProcessResult:
        job, act = (
            self.definitions.resolve_job_def(f"{CASE}_by_hand"),
            {"ops": {f"{CASE}__by_hand": {"config": {"act": "retokenize"}}}},
        )
        return job.execute_in_process(run_config=act, instance=self.instance, raise_on_error=False)

    def refusal(self) -> str:
        (failed,) = [
            event for event in self.materialize("training_snapshot").all_events if event.is_step_failure
        ]
        return failed.event_specific_data.user_failure_data.description

    def status(self, batch: str) -> StaleStatus:
        graph = self.definitions.resolve_asset_graph()
        resolver = CachingStaleStatusResolver(self.instance, graph, LoadingContextForTest(self.instance))
        return resolver.get_status(dg.AssetKey([CASE, "tokenized_chunks"]), batch)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> projects.Project:
    project = projects.create(tmp_path_factory.mktemp("retokenize"), CASE, rows=1)
    for number in range(3):
        project.deliver(f"delivery-{number + 1}.jsonl", projects.licence_rows(134, skip=134 * number))
    project.configure(documents=DOCUMENTS)
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        assert len(Data(project, instance).ingest()) == 3
    return project


@pytest.fixture
def data(ingested: projects.Project, tmp_path: Path) -> Iterator[Data]:
    """A copy of the ingested project, its instance included, to change at will."""
    shutil.copytree(ingested.root, tmp_path / "copy")
    project = projects.Project(tmp_path / "copy", CASE)
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        yield Data(project, instance)


def change_tokenizer(data: Data) -> None:
    data.project.configure(documents=DOCUMENTS, chunks={"added_tokens": ["sublicense"]})


def test_after_a_new_token_the_snapshot_refuses_one_run_tokenises_all_and_the_snapshot_goes_on(data: Data):
    assert data.materialize("training_snapshot").success
    before, snapshot = data.chunks(), latest(data.store, CASE, "training_snapshot")
    change_tokenizer(data)
    assert (
        data.refusal()
        == "3 of 3 batches were tokenised with another tokenizer than base_model's with chunks.added_tokens;"
        " launch letters_by_hand with act: retokenize"
    )
    assert {data.status(batch) for batch in before} == {StaleStatus.STALE}

    result = data.retokenize()
    assert result.success
    after = data.chunks()
    assert all(after[batch].ref != before[batch].ref for batch in before)
    assert {event.step_key for event in result.all_events if event.step_key} == {f"{CASE}__by_hand"}
    made = {
        event.partition: event.materialization for event in result.all_events if event.is_step_materialization
    }
    assert {batch: found.tags["dagster/data_version"] for batch, found in made.items()} == {
        batch: manifest.content_digest for batch, manifest in after.items()
    }
    assert all(made[batch].metadata["num_rows"].value == after[batch].metadata["num_rows"] for batch in made)
    checks = [
        event.asset_check_evaluation_data
        for event in result.all_events
        if event.event_type_value == "ASSET_CHECK_EVALUATION"
    ]
    assert (
        sorted(check.check_name for check in checks)
        == ["contents_hold_no_control_tokens"] * 3 + ["texts_are_kept_whole"] * 3
    )
    assert {data.status(batch) for batch in after} == {StaleStatus.FRESH}

    assert data.due() == [], "the sensor has nothing left to do"
    assert data.materialize("tokenizer_audit", "training_snapshot").success
    taken = latest(data.store, CASE, "training_snapshot")
    assert taken.content_digest != snapshot.content_digest
    parts = {name: part["chunks"] for name, part in taken.metadata["parts"].items()}
    assert parts == {batch: manifest.ref for batch, manifest in after.items()}


def test_a_later_edit_marks_what_it_made_as_stale(data: Data):
    change_tokenizer(data)
    assert data.retokenize().success
    data.project.configure(documents=DOCUMENTS, chunks={"added_tokens": ["sublicense"], "max_tokens": 48})
    assert {data.status(batch) for batch in data.chunks()} == {StaleStatus.STALE}


@pytest.mark.parametrize("dies_in", [pytest.param("tokenize", marks=pytest.mark.long), "set_latest"])
def test_a_run_that_was_cut_short_goes_on_where_it_was(
    data: Data, monkeypatch: pytest.MonkeyPatch, dies_in: str
):
    change_tokenizer(data)
    module = chunks if dies_in == "tokenize" else data_assets
    real, calls = getattr(module, dies_in), []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError("no space left")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, dies_in, dies)
        assert not data.retokenize().success
    result = data.retokenize()
    assert result.success
    assert len([event for event in result.all_events if event.is_step_materialization]) == 1
    assert data.due() == []
    again = data.retokenize()
    assert again.success and not [event for event in again.all_events if event.is_step_materialization]


def test_what_needs_more_than_tokenising_is_left_to_the_ingest_job(data: Data):
    """A batch that was never validated with today's rules, and one that was blocked."""
    data.project.deliver("bad.jsonl", [{"id": f"b{i}", "text": "", "kind": "notice"} for i in range(9)])
    (bad,) = data.ingest()
    change_tokenizer(data)
    assert data.retokenize().success
    assert bad not in data.chunks()
    assert data.materialize("training_snapshot").success
    data.project.configure(documents=DOCUMENTS, examples={"max_characters": 5_000})
    result = data.retokenize()
    assert result.success
    assert not [event for event in result.all_events if event.is_step_materialization]
    assert len(data.due()) == 4


def test_a_red_check_fails_the_run_after_every_batch_is_tokenised(tmp_path: Path):
    smollm2.write_tiny_model(tmp_path / "model")
    project = projects.create(tmp_path, CASE, rows=1)
    short = [said("user", "One?"), said("assistant", "Two.")]
    long = [said("user", "a long question " * 20), said("assistant", "Yes.")]
    long_too = [said("user", "another long question " * 20), said("assistant", "No.")]
    project.deliver(
        "delivery-1.jsonl",
        [{"id": i, "messages": m} for i, m in zip("abx", (short, long, long_too), strict=True)],
    )
    # One row for each split.
    rows = [
        {"id": id_, "messages": [*short, said("user", f"Three or {id_}?"), said("assistant", "Four.")]}
        for id_ in "cde"
    ]
    project.deliver("delivery-2.jsonl", rows)
    sections = {
        "documents": DOCUMENTS,
        "base_model": "model",
        "examples": {"task": "sft", "label": None, "labels": None, "group": None},
    }
    project.configure(**sections, chunks={"max_tokens": 64, "max_windows": None})
    with dg.DagsterInstance.local_temp(str(project.home)) as instance:
        data = Data(project, instance)
        use_case, store = project.use_case(), data.store
        for batch in data.due():
            raw = documents.keep(store, use_case, batch)
            valid, _ = examples.validate(store, use_case, raw)
            made = {
                "raw_documents": raw,
                "labeled_examples": valid,
                "tokenized_chunks": chunks.tokenize(store, use_case, valid),
            }
            for asset, manifest in made.items():
                set_latest(store, CASE, asset, manifest, batch)
        assert all(manifest.check("rows_have_trained_tokens").passed for manifest in data.chunks().values())
        project.configure(**sections, chunks={"max_tokens": 64, "max_windows": 1})
        result = data.retokenize()
        assert not result.success
        assert sorted(
            manifest.check("rows_have_trained_tokens").passed for manifest in data.chunks().values()
        ) == [False, True]
        red = [
            e.asset_check_evaluation_data
            for e in result.all_events
            if e.event_type_value == "ASSET_CHECK_EVALUATION"
        ]
        (check,) = [
            check for check in red if check.check_name == "rows_have_trained_tokens" and not check.passed
        ]
        places = ", ".join(f"{alias('delivery-1.jsonl')}:{row}" for row in (2, 3))
        assert check.description.startswith(
            f"2 of 3 rows have no trained token: {places}; the batch is held back. "
        )
        assert len([event for event in result.all_events if event.is_step_materialization]) == 2
        # The snapshot goes on without that batch.
        held_back = next(
            name
            for name, manifest in data.chunks().items()
            if not manifest.check("rows_have_trained_tokens").passed
        )
        labeled = latest_by_partition(store, CASE, "labeled_examples")
        taken = snapshot.take(store, project.use_case(), labeled, data.chunks())
        assert taken.metadata["batches_left_out"] == [held_back]
        assert sorted(snapshot.read_index(store, taken)["id"].to_pylist()) == ["c", "d", "e"]


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
