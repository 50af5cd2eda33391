"""The act `retokenize` of `<case>_by_hand`: after a change of tokenizer one run tokenises every batch that
needs it, and the snapshot goes on.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from fullft_assets import chunks
from fullft_assets.assets import ingestion as data_assets
from fullft_assets.component import FullFineTune
from fullft_assets.resources import latest, latest_by_partition, open_store
from fullft_assets.store import Manifest, Store
from tests import project as projects
from tests.asset_runs import run_assets

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
        return run_assets(self.project.use_case(), self.instance, *assets, partition=batch)

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
    data.project.configure(documents=DOCUMENTS, examples={"max_quarantined_share": 0.6})
    result = data.retokenize()
    assert result.success
    assert not [event for event in result.all_events if event.is_step_materialization]
    assert len(data.due()) == 4
