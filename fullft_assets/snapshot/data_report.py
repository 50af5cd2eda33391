"""What a person should know of the data before training: sizes, balance, lengths, excluded rows and the first
of their places, groups, what to do, one row as the model reads it.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fullft_assets.documents.names import restore
from fullft_assets.examples import QUARANTINED, ExamplesMetadata, reasons_of
from fullft_assets.examples.labels import NOT_NAMED, variants
from fullft_assets.markdown import escape_name, fenced, to_html
from fullft_assets.snapshot.all_rows import MOST_NAMED, BatchRows
from fullft_assets.snapshot.batches import red_gates
from fullft_assets.snapshot.metadata import SnapshotMetadata
from fullft_assets.snapshot.split import Frozen
from fullft_assets.store import CheckOutcome, Manifest

#: With the numbers before it, a line of a telephone.
_BAR = 32
_STYLE = (
    "body{max-width:60em;margin:2em auto;padding:0 1em;font:15px/1.5 system-ui,sans-serif;color:#1f2937}"
    "table{border-collapse:collapse}th,td{text-align:left;padding:.3em .8em;border-bottom:1px solid #e5e7eb}"
    "td:first-child{overflow-wrap:anywhere;min-width:8em}h1,p,li{overflow-wrap:break-word}"
    "pre{background:#f1f5f9;padding:1em;overflow-wrap:anywhere;white-space:pre-wrap}"
    "h2{margin-top:1.6em;font-size:19px}"
    # A row is a list, as on the page of an evaluation.
    "@media(max-width:600px){pre{padding:.5em;font-size:10px}thead{display:none}tr,td{display:block}"
    "tr{padding:.3em 0;border-bottom:1px solid #e5e7eb}td{padding:.1em 0;border:0;overflow-wrap:anywhere}"
    'td:first-child{font-weight:600}td[data-column]::before{content:attr(data-column)": ";color:#6b7280}}'
)


@dataclass(frozen=True)
class ExcludedRows:
    """Rows that were set aside for one reason, and the first of them as file:row."""

    reason: str
    num_rows: int
    places: list[str]


@dataclass(frozen=True)
class DataFacts:
    """What the report says beside the snapshot's own counts.

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

    @property
    def num_excluded(self) -> int:
        """How many valid rows the snapshot leaves out."""
        return sum(rows.num_rows for rows in self.left_out)


@dataclass(frozen=True)
class Example:
    """One training row: its text, what is trained on it in words, and the tokens of its first chunk."""

    text: str
    target: str
    tokens: list[str]


def target_of(row: Mapping[str, Any], text: str, has_messages: bool) -> str:
    """Say what is trained on a row of the snapshot's index and its text; in a conversation it is in
    `with_marks`.
    """
    if "label" in row:
        return row["label"]
    if "labels" in row:
        return ", ".join(row["labels"] or []) or "no label"
    if "spans" in row:
        return (
            ", ".join(
                f"{span['label']} [{span['start']}:{span['end']}] “{text[span['start'] : span['end']]}”"
                for span in row["spans"] or []
            )
            or "no span"
        )
    return "the tokens in ⟦ ⟧" if has_messages else "the text itself"


def with_marks(tokens: Sequence[str], marks: Sequence[int]) -> list[str]:
    """Return the tokens of a chunk with each run of trained ones in ⟦ ⟧, from a little before the first run.

    Args:
        tokens: as text.
        marks: aligned with them, 1 where one is trained.
    """
    return [
        f"{'⟦' if mark > before else ''}{token}{'⟧' if mark > after else ''}"
        for token, before, mark, after in zip(tokens, [0, *marks], marks, [*marks[1:], 0], strict=False)
        # Some tokens before the first trained one.
    ][max(0, [*marks, 1].index(1) - 40) :]


def length_metadata(num_tokens: Sequence[int] | np.ndarray, max_tokens: int) -> dict[str, Any]:
    """Return quantiles of the texts' lengths in tokens and how many texts are longer than a chunk."""
    lengths = np.asarray(num_tokens)
    return {
        "text_tokens": {
            **{f"p{q}": int(np.percentile(lengths, q)) for q in (10, 50, 90, 99)},
            "longest": int(lengths.max()),
        },
        "num_rows_over_max_tokens": int((lengths > max_tokens).sum()),
    }


def render(
    metadata: SnapshotMetadata,
    num_tokens: Sequence[int] | np.ndarray,
    *,
    max_tokens: int,
    max_chunks: int | None,
    facts: DataFacts,
    example: Example | None = None,
    case: str = "",
    source: str = "",
) -> str:
    """Render the data report as Markdown, with the time of today.

    Args:
        metadata: of the snapshot.
        num_tokens: length of each kept text.
        max_tokens: longest chunk.
        max_chunks: chunks kept of a text, or None.
        facts: what is known beside.
        example: one training row.
        case: the use case.
        source: where its documents are delivered.
    """
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"name": escape_name, "number": "{:,}".format, "fenced": fenced}
    template = environment.from_string(Path(__file__).with_name("data_report.md.j2").read_text("utf-8"))
    statistics = defaultdict(lambda: None, {(s.label, s.split): s for s in metadata.label_statistics})
    return template.render(
        metadata=metadata,
        facts=facts,
        example=example,
        case=case,
        source=source,
        written_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        num_rows={
            "train": metadata.num_train_rows,
            "validation": metadata.num_validation_rows,
            "test": metadata.num_test_rows,
        },
        spellings_of_a_label=variants(metadata.labels),
        statistics=statistics,
        histogram=_histogram(num_tokens),
        num_over=int((np.asarray(num_tokens) > max_tokens).sum()),
        num_texts=len(num_tokens),
        max_tokens=max_tokens,
        max_chunks=max_chunks,
    )


def to_page(report: str) -> str:
    """Return the report as a page of HTML that needs no other file; its heading and first paragraph are the
    title.
    """
    body = to_html(report, {})
    title = ", ".join(re.findall(r"<(?:h1|p)>([^<]*)", body)[:2])
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport"'
        f' content="width=device-width, initial-scale=1"><title>{title}</title><style>{_STYLE}</style>\n'
        f"{body}</html>\n"
    )


def _histogram(num_tokens: Sequence[int] | np.ndarray) -> list[str]:
    lengths = np.maximum(np.asarray(num_tokens), 1)
    edges = 2 ** np.arange(0, int(np.ceil(np.log2(lengths.max() + 1))) + 1)
    counts, _ = np.histogram(lengths, bins=[*edges, edges[-1] * 2])
    return [
        f"{low:>7,} - {2 * low - 1:<7,} {count:>7,} {'#' * round(_BAR * count / counts.max())}"
        for low, count in zip(edges, counts, strict=True)
        if count
    ]


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

    batches_metadata = [ExamplesMetadata.of(examples[name]) for name in folders]
    # The index has the text's hash for the group of a row without one.
    index = frozen.index.select(["group", "split"]).filter(
        pc.not_equal(frozen.index["group"], frozen.index["text_hash"])
    )
    groups = index.group_by(["group", "split"]).aggregate([([], "count_all")])
    # There may be millions of groups: only the largest become objects.
    largest = groups.take(pc.sort_indices(groups, [("count_all", "descending"), ("group", "ascending")])[:10])
    return DataFacts(
        num_rows=sum(metadata.num_rows for metadata in batches_metadata),
        num_valid=sum(metadata.num_valid for metadata in batches_metadata),
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
            (
                check.name,
                # The report may have names of files: it stays in the store.
                restore(
                    check.description, lambda: [path for batch in batches.values() for path in batch.files]
                ).replace(NOT_NAMED, "see Labels below"),
            )
            for check in _with_those_of_batches(
                checks, {name: [*examples[name].checks, *chunks[name].checks] for name in sorted(folders)}
            )
            if check.description
        ],
    )


def _with_those_of_batches(
    checks: Iterable[CheckOutcome], of_batches: Mapping[str, list[CheckOutcome]]
) -> list[CheckOutcome]:
    """Return the checks that are not green, one for each name: the snapshot's, else the first batch's."""
    red_checks = {check.name: check for check in checks if not check.passed}
    for name, outcomes in of_batches.items():
        for check in outcomes:
            if not check.passed and check.name not in red_checks:
                red_checks[check.name] = check.model_copy(
                    update={"description": f"batch {name}: {check.description}"}
                )
    return list(red_checks.values())


def _quarantined(folders: Iterable[Path]) -> list[ExcludedRows]:

    counts: Counter[str] = Counter()
    places: dict[str, list[str]] = {}
    for folder in folders:
        table = pq.read_table(folder / QUARANTINED, columns=["source", "row", "reasons"])
        for source, row, reasons in zip(
            table["source"].to_pylist(), table["row"].to_pylist(), reasons_of(table), strict=True
        ):
            for reason in reasons:
                counts[reason] += 1
                if counts[reason] <= MOST_NAMED:
                    places.setdefault(reason, []).append(f"{source}:{row}")
    return [ExcludedRows(reason, count, places[reason]) for reason, count in counts.most_common()]
