"""What the data report says beside the snapshot's own counts: what was set aside and where, groups, what to
do.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from fullft_assets.documents.aliases import restore
from fullft_assets.examples import QUARANTINED, ExamplesMetadata
from fullft_assets.examples.labels import NOT_NAMED
from fullft_assets.snapshot.all_rows import MOST_NAMED, BatchRows
from fullft_assets.snapshot.batches import red_gates
from fullft_assets.snapshot.split import Frozen
from fullft_assets.store import CheckOutcome, Manifest

_LARGEST_GROUPS = 10


@dataclass(frozen=True)
class ExcludedRows:
    """Rows that were set aside for one reason, and the first of them as file:row."""

    reason: str
    num_rows: int
    places: list[str]


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
        largest_groups: name, split and rows of the groups with the most rows.
        held_back: names of the red checks of each batch that is excluded.
        to_do: (name of a check that is not green, what to do).
    """

    num_rows: int = 0
    num_valid: int = 0
    quarantined: list[ExcludedRows] = field(default_factory=list)
    left_out: list[ExcludedRows] = field(default_factory=list)
    num_groups: int = 0
    num_ungrouped: int = 0
    largest_groups: list[tuple[str, str, int]] = field(default_factory=list)
    held_back: dict[str, list[str]] = field(default_factory=dict)
    to_do: list[tuple[str, str]] = field(default_factory=list)


def gather(
    examples: Mapping[str, Manifest],
    chunks: Mapping[str, Manifest],
    folders: Mapping[str, Path],
    frozen: Frozen,
    batches: Mapping[str, BatchRows],
    checks: Iterable[CheckOutcome],
) -> DataFacts:
    """Return the facts.

    Args:
        examples: `labeled_examples` of all batches, by name.
        chunks: `tokenized_chunks` of those that have them.
        folders: those of the batches that the snapshot is taken over.
        frozen: the snapshot's rows.
        batches: as they were read for it.
        checks: of the snapshot.
    """

    used = [ExamplesMetadata.of(examples[name]) for name in folders]
    # The index has the text's hash for the group of a row without one.
    index = frozen.index.filter(pc.not_equal(frozen.index["group"], frozen.index["text_hash"]))
    groups = index.group_by(["group", "split"]).aggregate([([], "count_all")])
    # There may be millions of groups: only the largest become objects.
    largest = groups.take(
        pc.sort_indices(groups, [("count_all", "descending"), ("group", "ascending")])[:_LARGEST_GROUPS]
    )
    return DataFacts(
        num_rows=sum(about.num_rows for about in used),
        num_valid=sum(about.num_valid for about in used),
        quarantined=_quarantined(folders.values()),
        left_out=[
            ExcludedRows(reason, count, frozen.places_left_out.get(reason, []))
            for reason, count in sorted(frozen.metadata["left_out"].items(), key=lambda item: -item[1])
        ],
        num_groups=len(groups),
        num_ungrouped=len(frozen.index) - len(index),
        largest_groups=[(row["group"], row["split"], row["count_all"]) for row in largest.to_pylist()],
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
