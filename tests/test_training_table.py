"""The table of a language model's training rows: what it holds, what it takes, and who maps it."""

import gc
import subprocess
import sys
import tracemalloc
from itertools import chain
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fullft_assets.snapshot import Training, load_split, load_training, loading, packing, table_folder
from fullft_assets.snapshot.frozen_batches import FrozenRows
from fullft_assets.training.feed import Pieces
from tests.prepared import Prepared, conversations, prepare_language_model, take, write_general

#: Prints the file that a process maps, and what it reads there.
READ = """
import hashlib, json, sys
from fullft_assets.snapshot import load_training
from fullft_assets.store import Store
from fullft_assets.training.feed import Pieces
store = Store(sys.argv[1])
pieces = Pieces(load_training(store, store.load(sys.argv[2])))
digest = hashlib.sha256()
for number in range(len(pieces)):
    digest.update(pieces.ids(number).tobytes() + pieces.labels(number).tobytes())
maps = {tuple(line.split()[3:]) for line in open("/proc/self/maps") if "training_rows" in line}
print(json.dumps([digest.hexdigest(), sorted(maps)]))
"""


@pytest.fixture(scope="module", params=["language_modeling", "sft"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A snapshot of several batches, whose rows take turns in its index, with replayed documents."""
    root = tmp_path_factory.mktemp(request.param)
    write_general(root / "general", 60)
    project = prepare_language_model(
        root,
        request.param,
        rows=30,
        snapshot={"replay": {"path": "general", "share": 0.2}},
        chunks={"max_tokens": 256},
        documents={"max_batch_files": 1},
    ).project
    rows = [
        row
        | {"id": f"more-{row['id']}"}
        | ({} if request.param == "sft" else {"text": row["messages"][0]["content"]})
        for row in conversations(300)[30:]
    ]
    for number in range(2):
        project.deliver(f"delivery-{number + 2}.jsonl", rows[number::2])
    return take(project)


def test_each_piece_has_the_tokens_and_labels_that_the_plan_gives_it(case: Prepared) -> None:
    own = load_split(case.store, case.snapshot, "train")
    replayed = pq.read_table(
        case.store.folder(case.store.load(case.snapshot.metadata["replay"])) / "chunks.parquet"
    )
    chunks = list(chain(*own.chunks, *replayed["windows"].to_pylist()))
    marks = list(chain(*own.marks, *replayed["marks"].to_pylist())) if own.marks else None
    table = pq.read_table(case.store.folder(case.snapshot) / "packing.parquet")
    plan = packing.Packing.from_table(table, case.snapshot.metadata["packing_capacity"])
    in_memory = Pieces(Training(chunks, marks, plan, sum(map(len, own.chunks))))
    pieces = Pieces(load_training(case.store, case.snapshot))
    assert len(case.snapshot.metadata["parts"]) > 1 and len(pieces) == len(in_memory) > 100
    for number in range(len(pieces)):
        for read in (Pieces.ids, Pieces.labels, Pieces.replayed):
            assert np.array_equal(read(pieces, number), read(in_memory, number))
    assert pieces.num_predicted.tolist() == in_memory.num_predicted.tolist()
    assert pieces.largest_id == in_memory.largest_id


def test_a_token_takes_few_bytes_of_the_disk_and_hardly_any_of_a_process(case: Prepared) -> None:
    load_training(case.store, case.snapshot)  # imports
    held = -pa.total_allocated_bytes()
    tracemalloc.start()
    pieces = Pieces(load_training(case.store, case.snapshot))
    assert pieces.num_predicted.any()
    gc.collect()
    held += tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes()
    tracemalloc.stop()
    (file,) = table_folder(case.store, case.use_case.name).glob("*.arrow")
    assert held + file.stat().st_size <= 5 * pieces.plan.num_tokens


@pytest.mark.parametrize(("largest", "kind"), [(65_535, pa.uint16()), (65_536, pa.int32())])
def test_ids_are_of_the_smallest_type_that_holds_them(
    tmp_path: Path, largest: int, kind: pa.DataType
) -> None:
    lists = pa.list_(pa.list_(pa.int32()))
    chunks = pa.table({"windows": pa.array([[[1, 2]], [[3], [largest]]], lists), "marks": pa.nulls(2, lists)})
    pq.write_table(chunks, tmp_path / "chunks.parquet")
    snapshot = Mock(case="case", content_digest="digest")
    rows = FrozenRows(
        pa.table({"batch": ["a", "a"], "position": [1, 0]}), {}, {"a": tmp_path / "chunks.parquet"}
    )
    table = loading._map(loading.Store(str(tmp_path)), snapshot, rows, None)
    assert table["ids"].combine_chunks() == pa.array([[1, 2], [3], [largest]], pa.list_(kind))
    assert (table["row"].to_pylist(), table["marks"].null_count) == ([1, 0, 0], 3)


def test_processes_map_one_whole_file_whatever_others_left(
    case: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_training(case.store, case.snapshot).chunks
    folder = table_folder(case.store, case.use_case.name)
    (file,) = folder.glob("*.arrow")
    content = file.read_bytes()
    for length in (0, 100, len(content) // 2):
        file.unlink()
        file.write_bytes(content[:length])
        assert load_training(case.store, case.snapshot).chunks == whole and file.read_bytes() == content
    file.unlink()
    (folder / "another-snapshot.arrow.1f").write_bytes(b"")
    monkeypatch.setattr(loading, "sync", Mock(side_effect=OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        load_training(case.store, case.snapshot)
    assert [path.name for path in folder.iterdir()] == [".lock"], "the rest takes no room"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", READ, case.store.url, case.snapshot.ref], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    first, second = (process.communicate(timeout=120)[0] for process in started)
    assert first == second and str(file) in first
