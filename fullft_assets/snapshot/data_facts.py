"""What the data report says beside the snapshot's own counts: what was set aside and where, groups,
encodings, languages, what to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fullft_assets.documents.aliases import restore
from fullft_assets.examples import QUARANTINED, ExamplesMetadata
from fullft_assets.examples.labels import NOT_NAMED
from fullft_assets.examples.texts import identify_languages
from fullft_assets.snapshot.all_rows import MOST_NAMED, BatchRows
from fullft_assets.snapshot.batches import red_gates
from fullft_assets.snapshot.locations import Locations
from fullft_assets.snapshot.split import Frozen
from fullft_assets.store import CheckOutcome, Manifest

if TYPE_CHECKING:
    import pyarrow as pa

_LARGEST_GROUPS = 10
#: Texts whose language is identified: so many of each of so many batches.
_TEXTS_A_BATCH, _BATCHES = 50, 10


@dataclass(frozen=True)
class ExcludedRows:
    """Rows that were set aside for one reason, and the first of them as file:row."""

    reason: str
    num_rows: int
    places: list[str]


@dataclass(frozen=True)
class Group:
    """A group of the snapshot: its name, its split, its rows."""

    name: str
    split: str
    num_rows: int


@dataclass(frozen=True)
class DataFacts:
    """See the module.

    Attributes:
        num_rows, num_valid: rows that were read in the batches of the snapshot, and those that the rules let
        pass.
        quarantined: rows that a rule set aside; a row may have several reasons.
        left_out: valid rows that the snapshot leaves out.
        num_groups: groups of the snapshot, rows without one not counted.
        num_ungrouped: its rows without a group.
        largest_groups: the groups with the most rows.
        encodings: files by encoding.
        languages: sampled texts by language.
        held_back: names of the red checks of each batch that is excluded.
        to_do: (name of a check that is not green, what to do).
    """

    num_rows: int = 0
    num_valid: int = 0
    quarantined: list[ExcludedRows] = field(default_factory=list)
    left_out: list[ExcludedRows] = field(default_factory=list)
    num_groups: int = 0
    num_ungrouped: int = 0
    largest_groups: list[Group] = field(default_factory=list)
    encodings: dict[str, int] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)
    held_back: dict[str, list[str]] = field(default_factory=dict)
    to_do: list[tuple[str, str]] = field(default_factory=list)


def gather(
    examples: Mapping[str, Manifest],
    chunks: Mapping[str, Manifest],
    folders: Mapping[str, Path],
    frozen: Frozen,
    rows: Locations,
    batches: Mapping[str, BatchRows],
    checks: Iterable[CheckOutcome],
) -> DataFacts:
    """Return the facts.

    Args:
        examples: `labeled_examples` of all batches, by name.
        chunks: `tokenized_chunks` of those that have them.
        folders: those of the batches that the snapshot is taken over.
        frozen: the snapshot's rows.
        rows: where they are.
        batches: as they were read for it.
        checks: of the snapshot.
    """
    import pyarrow.compute as pc

    used = {name: ExamplesMetadata.of(examples[name]) for name in folders}
    groups = _groups(frozen.index)
    return DataFacts(
        num_rows=sum(about.num_rows for about in used.values()),
        num_valid=sum(about.num_valid for about in used.values()),
        quarantined=_quarantined(folders.values()),
        left_out=[
            ExcludedRows(reason, count, frozen.places_left_out.get(reason, []))
            for reason, count in sorted(frozen.metadata["left_out"].items(), key=lambda item: -item[1])
        ],
        num_groups=len(groups),
        num_ungrouped=len(frozen.index) - (pc.sum(groups["count_all"]).as_py() or 0),
        largest_groups=_largest(groups),
        encodings=dict(sum((Counter(about.encodings) for about in used.values()), Counter()).most_common()),
        languages=_languages(rows, batches),
        held_back={
            name: [gate.name for gate in red] for name, red in sorted(red_gates(examples, chunks).items())
        },
        to_do=[
            (check.name, _with_names(check.description, batches))
            for check in _with_those_of_batches(
                checks, {name: [*examples[name].checks, *chunks[name].checks] for name in sorted(folders)}
            )
            if check.description
        ],
    )


def _with_names(description: str, batches: Mapping[str, BatchRows]) -> str:
    """Return what a check says as the page may say it, which stays in the store: files have their names, and
    the page lists the labels.
    """
    named = restore(description, lambda: [path for batch in batches.values() for path in batch.files])
    return named.replace(NOT_NAMED, "see Labels below")


def _with_those_of_batches(
    checks: Iterable[CheckOutcome], of_batches: Mapping[str, list[CheckOutcome]]
) -> list[CheckOutcome]:
    """Return the checks that are not green: the snapshot's, then of each of the batches' the first."""
    red = [check for check in checks if not check.passed]
    known = {check.name for check in red}
    for name, outcomes in of_batches.items():
        for check in outcomes:
            if not check.passed and check.name not in known:
                known.add(check.name)
                red.append(check.model_copy(update={"description": f"batch {name}: {check.description}"}))
    return red


def _quarantined(folders: Iterable[Path]) -> list[ExcludedRows]:
    import pyarrow.parquet as pq

    counts: Counter[str] = Counter()
    places: dict[str, list[str]] = {}
    for folder in folders:
        table = pq.read_table(folder / QUARANTINED, columns=["source", "row", "reasons"])
        for source, row, reasons in zip(
            *(table[name].to_pylist() for name in table.column_names), strict=True
        ):
            for reason in reasons.split("; "):
                counts[reason] += 1
                if len(named := places.setdefault(reason, [])) < MOST_NAMED:
                    named.append(f"{source}:{row}")
    return [ExcludedRows(reason, count, places[reason]) for reason, count in counts.most_common()]


def _groups(index: pa.Table) -> pa.Table:
    """Return group, split and number of rows of each group; the index has the text's hash for the group of a
    row without one.
    """
    import pyarrow.compute as pc

    grouped = index.filter(pc.not_equal(index["group"], index["text_hash"])).select(["group", "split"])
    return grouped.group_by(["group", "split"]).aggregate([([], "count_all")])


def _largest(groups: pa.Table) -> list[Group]:
    """Return the largest groups, the largest first. There may be millions of groups: only these become
    objects.
    """
    import pyarrow.compute as pc

    order = pc.sort_indices(groups, [("count_all", "descending"), ("group", "ascending")])[:_LARGEST_GROUPS]
    return [Group(row["group"], row["split"], row["count_all"]) for row in groups.take(order).to_pylist()]


def _languages(rows: Locations, batches: Mapping[str, BatchRows]) -> dict[str, int]:
    """Return the languages of some texts: the first ones of some batches, so that little is read."""
    import pyarrow as pa

    languages: Counter[str] = Counter()
    by_batch = rows.by_batch()
    for name, numbers in by_batch[:: max(1, -(-len(by_batch) // _BATCHES))]:
        positions = np.sort(rows.position[numbers])[:_TEXTS_A_BATCH]
        texts = pa.array(batches[name].texts(positions).to_pylist(), pa.string())
        languages.update(identify_languages(texts).tolist())
    return dict(languages.most_common())
