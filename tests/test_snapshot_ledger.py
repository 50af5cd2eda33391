"""The memory of one snapshot for the next: kept in the snapshots alone, whoever else takes one, and whatever
is lost or erased.
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from fullft_assets import erasure, snapshot
from fullft_assets.errors import StoreError
from fullft_assets.snapshot.all_rows import TEST, VALIDATION
from fullft_assets.snapshot.ledger import FILE, Ledger, read_history, read_ledger
from fullft_assets.store import Manifest
from fullft_assets.store.hashing import unit_hash
from tests.test_erasure_batches import CASE, Batches
from tests.test_snapshot_labels import groups_hashed_to, rows_of_groups

SEED = 7
SECTIONS = {
    "examples": {"label": "label", "group": "group", "labels": None, "max_quarantined_share": 1.0},
    "snapshot": {"min_train_rows": 1},
}


class Growing(Batches):
    """A use case whose deliveries are rows of groups and labels."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, **SECTIONS, seed=SEED)
        self.num_rows = 0

    def add(self, groups: dict[str, tuple[str, int]]) -> None:
        """Deliver rows of these groups, given the label and the number of rows of each, as a batch."""
        rows = rows_of_groups(groups, start=self.num_rows)
        self.num_rows += len(rows)
        self.deliver(f"delivery-{self.num_rows}.jsonl", rows)

    def take_without(self, *batches: str) -> Manifest:
        """Take the snapshot that somebody takes who does not see these batches."""
        made = self.made
        self.made = {name: parts for name, parts in made.items() if name not in batches}
        try:
            return self.take()
        finally:
            self.made = made

    def ledger(self, taken: Manifest) -> Ledger:
        return read_ledger(self.store, self.store.load(taken.ref))[0]

    def splits(self, taken: Manifest) -> dict[str, str]:
        index = snapshot.read_index(self.store, taken)
        return dict(zip(index["group"].to_pylist(), index["split"].to_pylist(), strict=True))


COMMON = {f"common {n}": ("ab"[n % 2], 2) for n in range(60)}


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    found = Growing(tmp_path)
    found.add(COMMON)
    return found


def test_a_snapshot_that_is_taken_again_is_found_again(growing: Growing) -> None:
    first = growing.take()
    assert growing.take().ref == first.ref and "ledger" not in first.inputs
    growing.add(dict.fromkeys(groups_hashed_to("train", 3, SEED), ("rare", 5)))
    second = growing.take()
    assert growing.take().ref == second.ref != first.ref
    assert second.inputs["ledger"] == growing.ledger(first).digest


def test_an_older_state_does_not_train_on_what_was_held_out_since(growing: Growing) -> None:
    rare = dict.fromkeys(groups_hashed_to("train", 2, SEED), ("rare", 5))
    first_group, second_group = sorted(rare, key=lambda group: unit_hash(SEED, "split", group))
    growing.add({first_group: rare[first_group]})
    before = growing.take()
    growing.add({second_group: rare[second_group]})
    after = growing.take()
    assert (growing.splits(before)[first_group], growing.splits(after)[first_group]) == ("train", "test")
    again = growing.take_without(max(growing.made))
    assert "rare" not in again.metadata["labels"], "its only group there was tested on"
    assert growing.take_without(max(growing.made)).ref == again.ref
    assert growing.take().content_digest == after.content_digest


def test_two_snapshots_taken_side_by_side_are_both_remembered(growing: Growing) -> None:
    first, second, third, fourth = groups_hashed_to("train", 4, SEED)
    base = growing.take()
    growing.add({first: ("p", 5), second: ("p", 5)})
    one = max(growing.made)
    growing.add({third: ("q", 5), fourth: ("q", 5)})
    left, right = growing.take_without(max(growing.made)), growing.take_without(one)
    # As if neither had known of the other.
    for made in (left, right):
        growing.ledger(made).write(Path(growing.store.url, made.ref, FILE), [base.key])
        content = Path(growing.store.url, made.ref, FILE).read_bytes()
        manifest = Path(growing.store.url, made.ref, "manifest.json")
        entry = made.files[FILE].model_copy(
            update={"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        )
        manifest.write_text(made.model_copy(update={"files": {**made.files, FILE: entry}}).model_dump_json())
    history = read_history(growing.store, CASE, SEED)
    assert {made.key for made in history.newest} == {left.key, right.key}
    assert history.ledger.digest == Ledger.join([growing.ledger(left), growing.ledger(right)]).digest
    assert growing.take().inputs["ledger"] == history.ledger.digest


@pytest.mark.parametrize("lost", ["the file", "a byte of the file", "the snapshot"])
def test_what_a_lost_ledger_held_out_never_trains(growing: Growing, lost: str) -> None:
    growing.add(dict.fromkeys(groups_hashed_to("train", 3, SEED), ("rare", 5)))
    growing.take()
    growing.add({"common 900": ("a", 2)})
    newest = growing.take()
    expected = read_history(growing.store, CASE, SEED).ledger
    path = Path(growing.store.url, newest.ref)
    if lost != "the snapshot":
        content = (path / FILE).read_bytes()
        (path / FILE).unlink()
        if lost == "a byte of the file":
            (path / FILE).write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
        growing.add({"common 901": ("b", 2)})
        with pytest.raises(StoreError, match="is lost or damaged"):
            growing.take()
        return
    shutil.rmtree(path)
    assert read_history(growing.store, CASE, SEED).ledger.digest == expected.digest
    growing.add({"common 901": ("b", 2)})
    assert growing.take().metadata["num_groups_moved"] == 2


def test_another_seed_neither_reads_it_nor_is_read(growing: Growing) -> None:
    first = growing.take()
    growing.project.configure(**SECTIONS, seed=SEED + 1)
    assert "ledger" not in growing.take().inputs
    assert read_history(growing.store, CASE, SEED).newest == [first]


def test_an_erased_group_stays_held_out(growing: Growing) -> None:
    held_out = [group for group, split in growing.splits(growing.take()).items() if split == "test"]
    places = np.array([unit_hash(SEED, "split", group) for group in held_out])
    growing.add({"common 900": ("a", 2)})
    growing.take()
    erasure.erase(growing.store, CASE, held_out[:1], by="group")
    for made in growing.store.artifacts(CASE, "training_snapshot"):
        assert growing.ledger(made).look_up(places).tolist() == [0] * len(places)
        assert held_out[0] not in growing.splits(made)
    assert read_history(growing.store, CASE, SEED).ledger.look_up(places).tolist() == [0] * len(places)


def test_of_two_entries_of_a_group_the_split_that_goes_first_counts() -> None:
    entries = [Ledger.of(np.array([0.5]), np.array([split], np.int8)) for split in (TEST, VALIDATION)]
    for ledgers in (entries, entries[::-1]):
        assert Ledger.join(ledgers).look_up(np.array([0.5])).tolist() == [TEST]
