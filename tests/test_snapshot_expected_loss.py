"""The rows over the cap of their group, predicted from a sample of the groups."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from benchmarks.frozen import freeze
from fullft_assets.checking.check import check_use_case
from fullft_assets.documents.batches import Batch
from fullft_assets.documents.reading import read_documents
from fullft_assets.documents.sources import Folder
from fullft_assets.examples import examine
from fullft_assets.settings import SnapshotSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot.expected_loss import rows_near_held_out, rows_over_cap
from fullft_assets.store.hashing import unit_hash
from tests import project as projects
from tests.test_check_findings import use_case

pytestmark = pytest.mark.quick

SETTINGS = SnapshotSettings()


@pytest.fixture(scope="module")
def groups() -> list[str]:
    """The licence expressions of 20,000 real rules: most are rare, a few have hundreds of rules."""
    return [row["expression"] for row in projects.licence_rows(20_000)]


def lost(groups: list[str], seed: int) -> int:
    """Count the rows over the cap one by one."""
    taken: dict[str, int] = {}
    for group in groups:
        if unit_hash(seed, "split", group) < SETTINGS.test_share + SETTINGS.validation_share:
            taken[group] = taken.get(group, 0) + 1
    return sum(max(0, size - SETTINGS.max_heldout_rows_per_group) for size in taken.values())


def test_of_all_rows_the_number_is_exact(groups: list[str]) -> None:
    for seed in range(5):
        assert rows_over_cap(groups, SETTINGS, seed) == lost(groups, seed) > 0


def test_of_a_sample_it_is_near(groups: list[str]) -> None:
    for seed in range(5):
        sample = random.Random(seed).sample(groups, 2_000)
        assert rows_over_cap(sample, SETTINGS, seed, len(groups)) == pytest.approx(
            lost(groups, seed), rel=0.2
        )


@pytest.mark.heavy
def test_what_the_check_says_is_near_what_the_snapshot_leaves_out(tmp_path: Path) -> None:
    """Rules of real licences by their licence: `fullft check` reads half of them, and the snapshot leaves out
    copies first.
    """
    case = use_case(tmp_path, projects.licence_rows(4_000))
    report, left_out = check_use_case(case), left_out_by_the_snapshot(case)
    said = re.search(r"about ([\d,]+) over snapshot\.max_heldout_rows_per_group", report)
    assert said is not None
    lost = left_out["held-out rows over the cap of their group"]
    assert lost > 200
    assert int(said[1].replace(",", "")) == pytest.approx(lost, rel=0.2)
    near = re.search(r"at least about ([\d,]+) near to a held-out row", report)
    assert near is not None
    assert 0.3 < int(near[1].replace(",", "")) / num_near(left_out) < 1.1, (
        "of half of the rows about half of the pairs are seen"
    )


@pytest.mark.heavy
def test_groups_that_are_held_out_for_the_sake_of_a_label_are_foreseen(tmp_path: Path) -> None:
    """Few groups and many labels: of the groups that lose rows to the cap most are held out because a label
    needs them.
    """
    rng = random.Random(3)
    kinds = [f"kind {n}" for n in range(40) for _ in range(max(6, 200 // (n + 1)))]
    rows = [
        {
            "id": str(n),
            "text": f"Row {n}: {rng.random()}",
            "kind": kind,
            "expression": f"g{rng.randrange(25)}",
        }
        for n, kind in enumerate(kinds)
    ]
    case = use_case(tmp_path, rows)
    lost = left_out_by_the_snapshot(case)["held-out rows over the cap of their group"]
    assert lost > 1.5 * rows_over_cap([row["expression"] for row in rows], SETTINGS, case.settings.seed), (
        "more than the hash alone costs"
    )
    assert f"about {lost:,} over snapshot.max_heldout_rows_per_group" in check_use_case(case)


def test_of_all_rows_those_near_to_held_out_ones_are_foreseen(tmp_path: Path) -> None:
    rows = projects.licence_rows(200)
    again = [
        {**row, "id": f"{row['id']} again", "text": f"{row['text']} Again."}
        for row in rows
        if len(row["text"]) > 200
    ]
    case = use_case(tmp_path, [*rows, *again], group=None)
    report, left_out = check_use_case(case), left_out_by_the_snapshot(case)
    assert num_near(left_out) > 10
    assert f", {num_near(left_out)} near to a held-out row, or with one's text inside the other's" in report
    assert rows_near_held_out([], [], SETTINGS, 1) == 0


def left_out_by_the_snapshot(case: UseCase) -> dict[str, int]:
    source, settings = Folder(case.project_root / "data"), case.settings
    table = read_documents(source, Batch("b", source.files()), settings.documents, settings.examples).table
    valid = examine(table, settings.examples, "b").valid
    return freeze({"b": valid}, {"b": {"a.jsonl": 1}}, settings.snapshot, settings.seed).metadata["left_out"]


def num_near(left_out: dict[str, int]) -> int:
    return sum(
        number
        for reason, number in left_out.items()
        if "rows near a" in reason or "rows that contain a" in reason
    )


def test_where_each_group_comes_once_nothing_is_lost() -> None:
    assert rows_over_cap([f"patient {n}" for n in range(1_000)], SETTINGS, 1, 1_000_000) == 0
    assert rows_over_cap([None] * 1_000, SETTINGS, 1, 1_000_000) == 0
    assert rows_over_cap([], SETTINGS, 1) == 0
