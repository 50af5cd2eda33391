"""Representation: does the training data have the labels and domains that production has?

The distance is the total variation of the shares. Two samples of one distribution have a distance too, and a
large one if a window is small or there are many labels; so the distance expected from equal distributions is
subtracted first.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fullft_assets.artifacts import DOCUMENTS_FILE, FINETUNED_CHECKPOINT
from fullft_assets.documents import RawMetadata
from fullft_assets.escaping import quoted, visible
from fullft_assets.examples.labels import NOT_NAMED, may_be_named
from fullft_assets.monitoring.features import Sums
from fullft_assets.monitoring.history import SUMS
from fullft_assets.snapshot.frozen_batches import find_rows
from fullft_assets.snapshot.locations import by_batch, read_index
from fullft_assets.store import CheckOutcome, Manifest, Store
from fullft_assets.store.checks import CheckSpec

CHECK = CheckSpec(
    "training_data_represents_production",
    "Labels and domains are as frequent in the training rows as in production.",
)
#: With fewer documents on a side the shares are not compared.
MIN_ROWS = 100
#: The newest windows count, until they have so many documents: production of a year ago is no measure of
#: today.
ENOUGH_ROWS = 10_000
#: Total variation distance of label or domain shares beyond chance above which the check warns.
MAX_DIFFERENCE = 0.2
#: Number of shares named in the description, those that differ most.
_NUM_NAMED = 3
_COLUMNS = ("label", "labels", "spans", "domain", "group", "text", "problem")


@dataclass(frozen=True)
class Composition:
    """Composition of a set of documents.

    Attributes:
        labels: documents by label (a document with several labels, or spans, counts once for each label).
        domains: documents by domain.
        num_independent: equivalent number of independent documents (Kish's effective sample size over the
            groups: related documents that arrive in bursts carry less information than their number).
        labels_are_predicted: `labels` are predictions of a model for documents that are independent of each
            other.
    """

    labels: Mapping[str, int]
    domains: Mapping[str, int]
    num_rows: int
    num_independent: float
    labels_are_predicted: bool = False


class Difference(NamedTuple):
    """Distance between the shares of two compositions in one respect.

    Attributes:
        distance: total variation distance of the shares, 0 (alike) to 1 (nothing in common).
        by_chance: the distance to be expected from samples of these sizes if production were like the
            training data.
        shares: name -> share in training, share in production; those that differ most come first.
    """

    distance: float
    by_chance: float
    shares: dict[str, tuple[float, float]]


def judge(
    store: Store,
    snapshot: Manifest,
    windows: Mapping[str, Manifest],
    reports: Mapping[str, Manifest],
    model: Manifest | None,
    labels: Sequence[str],
) -> CheckOutcome:
    """Return the check on a snapshot: its training rows against the newest production documents, see
    `compare`.

    Production's labels are those of its documents; if none has a label, those that the model predicted.

    Args:
        windows: `production_documents` by window; names sort by age.
        model: the checkpoint in production; predictions of other checkpoints do not count.
        labels: in the order of its outputs.
    """
    newest: dict[str, Manifest] = {}
    for name in sorted(windows, reverse=True):
        if sum(RawMetadata.of(window).num_rows for window in newest.values()) >= ENOUGH_ROWS:
            break
        newest[name] = windows[name]
    if not newest:
        return _outcome([], ["no production documents yet"], {"num_production_rows": 0})
    read_windows = [reports[name] for name in newest if name in reports]
    predicted = predictions(store, read_windows, model, labels) if model is not None else {}
    outcome = compare(of_snapshot(store, snapshot), of_production(store, list(newest.values()), predicted))
    return outcome.model_copy(update={"metadata": {**outcome.metadata, "num_windows": len(newest)}})


def predictions(
    store: Store, reports: Iterable[Manifest], model: Manifest, labels: Sequence[str]
) -> Counter[str]:
    """Return documents by the label that a model predicted, over the drift reports that it made."""
    counts: Counter[str] = Counter()
    for report in reports:
        # A window with insufficient data was not read by the model.
        if report.inputs[FINETUNED_CHECKPOINT] == model.content_digest and SUMS in report.files:
            predicted = Sums.load(store.folder(report) / SUMS).counts.tolist()
            counts.update({label: count for label, count in zip(labels, predicted, strict=True) if count})
    return counts


def of_snapshot(store: Store, snapshot: Manifest) -> Composition:
    """Return the composition of a snapshot's training rows; general documents for replay do not count."""

    index = read_index(store, snapshot)
    rows = find_rows(store, snapshot, index.filter(pc.equal(index["split"], "train")), with_chunks=False)
    positions = rows.places["position"].to_numpy()
    return of_tables(
        _read(rows.examples[batch]).take(pa.array(positions[numbers]))
        for batch, numbers in by_batch(rows.places)
    )


def of_production(
    store: Store, windows: Sequence[Manifest], predicted: Mapping[str, int] | None = None
) -> Composition:
    """Return the composition of production documents.

    Args:
        predicted: independent documents by predicted label; used if no document has a label.
    """
    composition = of_tables(_read(store.folder(window) / DOCUMENTS_FILE) for window in windows)
    if composition.labels or not predicted:
        return composition
    return replace(composition, labels=dict(predicted), labels_are_predicted=True)


def _read(path: Path) -> pa.Table:

    known = set(pq.read_schema(path).names)
    return pq.read_table(path, columns=[name for name in _COLUMNS if name in known])


def of_tables(tables: Iterable[pa.Table]) -> Composition:
    """Return the composition of tables with `text` and any of `label`, `labels`, `spans`, `domain`, `group`
    and `problem`.

    Malformed rows and rows without a text do not count.
    """
    labels: Counter[str] = Counter()
    domains: Counter[str] = Counter()
    groups: Counter[str] = Counter()
    num_rows = 0
    for table in tables:
        table = table.filter(table["text"].is_valid())
        if "problem" in table.column_names:
            table = table.filter(table["problem"].is_null())
        num_rows += len(table)
        labels.update(_label_counts(table))
        domains.update(_value_counts(table, "domain"))
        groups.update(_value_counts(table, "group"))
    alone = num_rows - groups.total()
    squares = alone + sum(count * count for count in groups.values())
    independent = num_rows**2 / squares if num_rows else 0.0
    return Composition(dict(labels), dict(domains), num_rows, independent)


def compare(training: Composition, production: Composition) -> CheckOutcome:
    """Return the check `training_data_represents_production`, a warning.

    It is red if label or domain shares differ, beyond chance, by more than is allowed. With fewer than 100
    documents on a side it reports `insufficient data` and is green; what production does not have (most often
    labels) is not compared, and reported.
    """
    metadata: dict[str, Any] = {
        "num_training_rows": training.num_rows,
        "num_production_rows": production.num_rows,
    }
    for side, count in (("training", training.num_rows), ("production", production.num_rows)):
        if count < MIN_ROWS:
            text = f"insufficient data: {count:,} {side} documents of the {MIN_ROWS} needed"
            return _outcome([], [text], metadata)
    red, green = [], []
    for respect, in_training, in_production in (
        ("label", training.labels, production.labels),
        ("domain", training.domains, production.domains),
    ):
        if min(sum(in_training.values()), sum(in_production.values())) < MIN_ROWS:
            green.append(f"{respect} shares are not compared: too few documents have a {respect}")
            continue
        is_predicted = respect == "label" and production.labels_are_predicted
        num_in_production = sum(in_production.values()) if is_predicted else _size(in_production, production)
        apart = difference(in_training, in_production, _size(in_training, training), num_in_production)
        metadata |= {
            f"{respect}_difference": apart.distance,
            f"{respect}_difference_by_chance": apart.by_chance,
        }
        if may_be_named(apart.shares):
            shares = [
                {respect: visible(name), "training": a, "production": b}
                for name, (a, b) in apart.shares.items()
            ]
            metadata[f"{respect}_shares"] = shares[:20]
        text = _in_words(f"predicted {respect}" if is_predicted else respect, apart)
        (red if apart.distance - apart.by_chance > MAX_DIFFERENCE else green).append(text)
    if red:
        red.append(
            f"warns above {MAX_DIFFERENCE:g} beyond chance; label and deliver more documents like production's"
        )
    return _outcome(red, green, metadata)


def difference(
    training: Mapping[str, int],
    production: Mapping[str, int],
    num_training: float,
    num_production: float,
) -> Difference:
    """Return the difference between two sets of counts.

    The distance expected by chance is that of two samples of the pooled shares, each share's difference taken
    as normal. The distance of samples is at most the true distance plus that, on average (triangle
    inequality), so a difference within the limit is red only by chance.

    Args:
        training, production: counts by name; neither may be empty.
        num_training, num_production: independent documents behind the counts.
    """
    names = sorted({*training, *production})
    counts = np.array([[side.get(name, 0) for name in names] for side in (training, production)], np.float64)
    shares = counts / counts.sum(axis=1, keepdims=True)
    sizes = [max(1, round(num_training)), max(1, round(num_production))]
    pooled = np.average(shares, axis=0, weights=sizes)
    variances = pooled * (1 - pooled) * (1 / sizes[0] + 1 / sizes[1])
    by_chance = float(np.sqrt(2 / np.pi * variances).sum() / 2)
    order = np.argsort(-np.abs(shares[0] - shares[1]), kind="stable")
    ranked = {names[i]: (float(shares[0, i]), float(shares[1, i])) for i in order}
    return Difference(float(np.abs(shares[0] - shares[1]).sum() / 2), by_chance, ranked)


def _in_words(respect: str, difference: Difference) -> str:
    apart = f"{respect} shares are {difference.distance:.2f} apart ({difference.by_chance:.2f} by chance)"
    if not may_be_named(difference.shares):
        return f"{apart}; the {respect}s are {NOT_NAMED}"
    named = [
        f"{quoted(name)} {in_training:.1%} in training, {in_production:.1%} in production"
        for name, (in_training, in_production) in list(difference.shares.items())[:_NUM_NAMED]
        if in_training != in_production
    ]
    return f"{apart}: {'; '.join(named)}" if named else apart


def _size(counts: Mapping[str, int], side: Composition) -> float:
    # Several labels of one document are not independent either.
    return min(sum(counts.values()), side.num_rows) * side.num_independent / side.num_rows


def _outcome(red: list[str], green: list[str], metadata: dict[str, Any]) -> CheckOutcome:
    description = "; ".join(red or green)
    return CheckOutcome(
        name=CHECK.name, passed=not red, severity="warn", description=description, metadata=metadata
    )


def _label_counts(table: pa.Table) -> dict[str, int]:

    counts = Counter(_value_counts(table, "label"))
    for name in ("labels", "spans"):
        if name in table.column_names and pa.types.is_list(table.schema.field(name).type):
            column = table[name].combine_chunks()
            values = column.flatten()
            values = values.field("label") if name == "spans" else values
            pairs = pa.table({"row": column.value_parent_indices(), "label": values})
            counts.update(_value_counts(pairs.group_by(["row", "label"]).aggregate([]), "label"))
    return dict(counts)


def _value_counts(table: pa.Table, name: str) -> dict[str, int]:

    if name not in table.column_names or pa.types.is_null(table.schema.field(name).type):
        return {}
    counts = table[name].value_counts()
    pairs = zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)
    return {value: count for value, count in pairs if value not in (None, "")}
