"""Which batches are due: new ones, interrupted ones, and all of them after an edit of what shapes them."""

from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest

from fullft_assets import automation, chunks, documents, examples, snapshot
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.chunks import ingestion
from fullft_assets.documents.names import alias
from fullft_assets.errors import DataError
from fullft_assets.resources import latest_by_partition, open_store
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot import batches
from fullft_assets.store import Manifest
from tests import project as projects


class Data:
    """The data stages of a project on an instance of its own, without runs."""

    def __init__(self, project: projects.Project):
        self.project = project
        self.instance = dg.DagsterInstance.local_temp(str(project.home))

    @property
    def use_case(self) -> UseCase:
        return self.project.use_case()

    @property
    def store(self):
        return open_store(self.use_case, self.instance)

    def due(self) -> list[str]:
        """Return what the sensor asks a run for: (run key, batch)."""
        graph = CaseGraph(self.use_case)
        sensor = next(s for s in automation.build_sensors(graph) if s.name.endswith("_new_documents"))
        result = sensor(dg.build_sensor_context(instance=self.instance, resources=graph.resources()))
        return (
            []
            if isinstance(result, dg.SkipReason)
            else [(r.run_key, r.partition_key) for r in result.run_requests]
        )

    def read(self, batch: str) -> Manifest:
        """Do what the first asset of the ingest job does."""
        raw = documents.keep(self.store, self.use_case, batch)
        self.store.write_pointer(f"latest/letters/raw_documents/{batch}", {"ref": raw.ref})
        return raw

    def ingest(self, batch: str, *, until: str = "chunks"):
        """Do what a run of the ingest job does, as its assets do it."""
        valid, _ = examples.validate(self.store, self.use_case, self.read(batch))
        if until == "examples":
            return valid, None
        cut = chunks.tokenize(self.store, self.use_case, valid)
        ingestion.mark_done(self.store, self.use_case, batch)
        return valid, cut


@pytest.fixture
def data(project: projects.Project) -> Data:
    return Data(project)


def test_an_edit_of_what_shapes_the_batches_makes_them_due_again(data: Data):
    [(key, batch)] = data.due()
    data.ingest(batch)
    assert data.due() == []
    data.project.configure(training={"epochs": 2})
    assert data.due() == [], "training does not shape a batch"
    several = {"task": "multi_label"}
    keys = set()
    for more in ({}, {"label_separator": ";"}):
        data.project.configure(examples=several | more)
        keys |= set(data.due())
    assert len(keys) == 2
    data.project.configure(chunks={"max_tokens": 48})
    [(again, same)] = data.due()
    assert same == batch
    assert again != key, "Dagster remembers a run key for ever"
    data.ingest(batch)
    assert data.due() == []
    data.project.configure()
    assert data.due() == [], "what was made with these settings is still there"


def test_a_batch_interrupted_between_examples_and_chunks_is_due(data: Data):
    [(_, batch)] = data.due()
    valid, _ = data.ingest(batch, until="examples")
    assert [name for _, name in data.due()] == [batch]
    with pytest.raises(
        DataError,
        match=f"batch {batch}: .* not tokenised, ",
    ):
        snapshot.take(data.store, data.use_case, {batch: valid}, {})


def test_the_snapshot_refuses_batches_of_other_settings(data: Data):
    [(_, batch)] = data.due()
    valid, cut = data.ingest(batch)
    data.project.configure(chunks={"max_tokens": 48})
    with pytest.raises(DataError, match="tokenized_chunks were made with"):
        snapshot.take(data.store, data.use_case, {batch: valid}, {batch: cut})
    data.project.configure(examples={"max_quarantined_share": 0.6})
    with pytest.raises(DataError, match="labeled_examples were made with"):
        snapshot.take(data.store, data.use_case, {batch: valid}, {batch: cut})


def test_files_taken_away_after_their_delivery_can_be_ingested_again(data: Data):
    [(_, batch)] = data.due()
    data.ingest(batch)
    (data.project.documents / "delivery-1.jsonl").unlink()
    data.project.deliver("delivery-2.jsonl", projects.licence_rows(5, skip=1_000))
    data.project.configure(chunks={"max_tokens": 48})
    assert batch in [name for _, name in data.due()]
    valid, _ = data.ingest(batch)
    assert valid.metadata["num_valid"] == 400


@pytest.mark.parametrize("max_batch_files", [1, 2], ids=["alone", "with another file"])
def test_a_file_delivered_again_without_a_row_withdraws_its_rows(
    tmp_path: Path, max_batch_files: int
) -> None:
    data = Data(projects.create(tmp_path, documents={"max_batch_files": max_batch_files}))
    data.project.deliver("withdrawn.jsonl", projects.licence_rows(27, skip=1_000))
    made = {name: data.ingest(name) for _, name in data.due()}
    taken = snapshot.take(
        data.store, data.use_case, *({name: each[n] for name, each in made.items()} for n in (0, 1))
    )
    assert "withdrawn.jsonl" in taken_sources(data, taken)
    data.project.deliver("withdrawn.jsonl", [])
    data.project.deliver("delivery-3.jsonl", projects.licence_rows(30, skip=1_100))
    made |= {name: data.ingest(name) for _, name in data.due()}
    assert len(made) == (4 if max_batch_files == 1 else 2) and all(
        valid.check("quarantined_share_is_bounded").passed for valid, _ in made.values()
    )
    taken = snapshot.take(
        data.store, data.use_case, *({name: each[n] for name, each in made.items()} for n in (0, 1))
    )
    assert taken.metadata["batches_left_out"] == []
    assert taken_sources(data, taken) == {
        "delivery-1.jsonl",
        "delivery-3.jsonl",
    }


def taken_sources(data: Data, taken: Manifest) -> set[str]:
    return set(pq.read_table(data.store.folder(taken) / "places.parquet")["source"].to_pylist())


class TestArchivedFiles:
    """Files are read, then taken away; later the YAML asks for other things."""

    @pytest.fixture
    def archived(self, tmp_path: Path) -> tuple[Data, str, str]:
        """Two batches that were read, of which the first one's file is gone."""
        data = Data(projects.create(tmp_path, rows=40))
        self.change(data, group=None)
        data.project.deliver("delivery-2.jsonl", projects.licence_rows(300, skip=400))
        first, second = (name for _, name in data.due())
        assert data.read(first).metadata["num_rows"] == 40
        data.read(second)
        (data.project.documents / "delivery-1.jsonl").unlink()
        return data, first, second

    def change(self, data: Data, documents: dict[str, object] | None = None, **examples_: object) -> None:
        data.project.configure(
            examples=examples_,
            documents={"max_batch_files": 1, **(documents or {})},
            snapshot={"min_rows_per_label": 1},
        )

    def test_what_they_did_not_hold_leaves_their_batch_out_and_is_reported(
        self, archived: tuple[Data, str, str]
    ) -> None:
        data, first, second = archived
        before = latest_by_partition(data.store, "letters", "raw_documents")[first]
        self.change(data, group="expression")
        assert {first, second} == {name for _, name in data.due()}
        raw = data.read(first)
        assert (
            f"{alias('delivery-1.jsonl')}: taken away since it was read with another examples.group"
            in raw.check("files_are_readable").description
        )
        assert (raw.metadata["num_rows"], raw.metadata["files"], raw.metadata["taken_away"]) == (
            0,
            {},
            ["delivery-1.jsonl"],
        )
        empty, _ = data.ingest(first, until="examples")
        assert not empty.check("quarantined_share_is_bounded").passed, (
            "its gate holds it back, and no other batch"
        )
        valid, cut = data.ingest(second)
        taken = snapshot.take(data.store, data.use_case, {first: empty, second: valid}, {second: cut})
        assert taken.metadata["batches_left_out"] == [first]
        check = taken.check("archived_files_count")
        assert (check.passed, check.metadata) == (False, {"num_files_left_out": 1, "num_batches": 1})
        assert (
            f"1 files (such as {alias('delivery-1.jsonl')}) of 1 batches ({first}) are excluded"
            in check.description
        )
        # Delivered again under its name, it is no loss.
        named = valid.model_copy(update={"metadata": {**valid.metadata, "files": {"delivery-1.jsonl": 1}}})
        assert batches.archive_check({first: empty, second: valid}, {second: named}).passed
        # Changed back, all is as it was, whatever was tried in between.
        self.change(data, group="kind_of_group")
        assert data.read(first).metadata["num_rows"] == 0
        self.change(data, group=None)
        assert data.read(first).ref == before.ref

    def test_what_they_held_is_used_on(
        self, archived: tuple[Data, str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data, first, _ = archived
        held = latest_by_partition(data.store, "letters", "raw_documents")[first]
        self.change(data, {"encoding": "utf-8"}, group=None, max_quarantined_share=0.8)
        again = data.read(first)
        assert again.metadata["num_rows"] == 40 and again.key != held.key
        monkeypatch.setattr(documents, "VERSION", "later")
        assert data.read(first).metadata["num_rows"] == 40, "an upgrade does not lose what is archived"

    def test_a_column_that_is_no_longer_wanted_is_emptied(self, archived: tuple[Data, str, str]) -> None:
        data, _, second = archived
        self.change(data, group="expression")
        assert data.read(second).metadata["num_rows"] == 300
        (data.project.documents / "delivery-2.jsonl").unlink()
        projects.write_rows(data.project.documents / "delivery-3.jsonl", projects.licence_rows(5))
        self.change(data, group=None, domain=None, max_quarantined_share=0.9)
        rows = pq.read_table(data.store.folder(data.read(second)) / "documents.parquet")
        assert (len(rows), rows["group"].null_count) == (300, 300)
