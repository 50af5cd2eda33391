"""Representation: does the training data have the labels that production has?

The distance is the total variation of the shares. Two samples of one distribution have a distance too, and a
large one if a window is small or there are many labels; so the distance expected from equal distributions is
subtracted first.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fullft_assets.artifacts import FINETUNED_CHECKPOINT
from fullft_assets.escaping import quoted, visible
from fullft_assets.examples.labels import NOT_NAMED, may_be_named
from fullft_assets.monitoring.features import Sums
from fullft_assets.monitoring.history import SUMS
from fullft_assets.snapshot.metadata import SnapshotMetadata
from fullft_assets.store import CheckOutcome, Manifest, Store
from fullft_assets.store.checks import CheckSpec

CHECK = CheckSpec(
    "training_data_represents_production",
    "Labels are as frequent in the training rows as in what the model predicts of production.",
)
#: With fewer documents on a side the shares are not compared.
MIN_ROWS = 100
#: The newest windows count, until they have so many documents: production of a year ago is no measure of
#: today.
ENOUGH_ROWS = 10_000
#: Total variation distance of label shares beyond chance above which the check warns.
MAX_DIFFERENCE = 0.2
#: Number of shares named in the description, those that differ most.
_NUM_NAMED = 3


class Difference(NamedTuple):
    """Distance between the shares of two sets of labels.

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
    reports: Mapping[str, Manifest],
    model: Manifest | None,
    labels: Sequence[str],
) -> CheckOutcome:
    """Return the check on a snapshot: its training rows against the newest windows, see `compare`.

    Args:
        reports: `drift_report` by window; names sort by age.
        model: the checkpoint in production; predictions of other checkpoints do not count.
        labels: in the order of its outputs.
    """
    # A window with insufficient data was not read by the model, and has no sums.
    reports_of_model = (
        report
        for _, report in sorted(reports.items(), reverse=True)
        if model is not None
        and SUMS in report.files
        and report.inputs[FINETUNED_CHECKPOINT] == model.content_digest
    )
    label_counts = Counter[str]()
    num_windows = 0
    for report in reports_of_model:
        label_counts.update(
            dict(zip(labels, Sums.load(store.folder(report) / SUMS).counts.tolist(), strict=True))
        )
        num_windows += 1
        if label_counts.total() >= ENOUGH_ROWS:
            break
    outcome = compare(SnapshotMetadata.of(snapshot).label_counts["train"], label_counts)
    return outcome.model_copy(update={"metadata": {**outcome.metadata, "num_windows": num_windows}})


def compare(training: Mapping[str, int], production: Mapping[str, int]) -> CheckOutcome:
    """Return the check `training_data_represents_production`, a warning, of documents by label.

    It is red if label shares differ, beyond chance, by more than is allowed. With fewer than 100 documents on
    a side it reports `insufficient data` and is green.
    """
    sizes = {"training": sum(training.values()), "production": sum(production.values())}
    metadata: dict[str, Any] = {f"num_{side}_rows": count for side, count in sizes.items()}
    if min(sizes.values()) < MIN_ROWS:
        side = min(sizes, key=sizes.__getitem__)
        return CheckOutcome(
            name=CHECK.name,
            passed=True,
            severity="warn",
            description=f"insufficient data: {sizes[side]:,} {side} documents of the {MIN_ROWS} needed",
            metadata=metadata,
        )
    apart = difference(training, production)
    metadata |= {"label_difference": apart.distance, "label_difference_by_chance": apart.by_chance}
    if may_be_named(apart.shares):
        metadata["label_shares"] = [
            {"label": visible(name), "training": before, "production": now}
            for name, (before, now) in list(apart.shares.items())[:20]
        ]
    is_same = apart.distance - apart.by_chance <= MAX_DIFFERENCE
    description = _in_words(apart)
    if not is_same:
        description += (
            f"; warns above {MAX_DIFFERENCE:g} beyond chance; label and deliver more documents like"
            " production's"
        )
    return CheckOutcome(
        name=CHECK.name, passed=is_same, severity="warn", description=description, metadata=metadata
    )


def difference(training: Mapping[str, int], production: Mapping[str, int]) -> Difference:
    """Return the difference between two sets of counts, neither of which may be empty.

    The distance expected by chance is that of two samples of the pooled shares, each share's difference taken
    as normal. The distance of samples is at most the true distance plus that, on average (triangle
    inequality), so a difference within the limit is red only by chance.
    """
    names = sorted({*training, *production})
    counts = np.array([[side.get(name, 0) for name in names] for side in (training, production)], np.float64)
    sizes = counts.sum(axis=1)
    shares = counts / sizes[:, None]
    pooled = np.average(shares, axis=0, weights=sizes)
    by_chance = float(np.sqrt(2 / np.pi * (pooled * (1 - pooled) * (1 / sizes).sum())).sum() / 2)
    order = np.argsort(-np.abs(shares[0] - shares[1]), kind="stable")
    ranked = {names[i]: (float(shares[0, i]), float(shares[1, i])) for i in order}
    return Difference(float(np.abs(shares[0] - shares[1]).sum() / 2), by_chance, ranked)


def _in_words(difference: Difference) -> str:
    apart = (
        f"predicted label shares are {difference.distance:.2f} apart ({difference.by_chance:.2f} by chance)"
    )
    if not may_be_named(difference.shares):
        return f"{apart}; the labels are {NOT_NAMED}"
    changes = [
        f"{quoted(name)} {in_training:.1%} in training, {in_production:.1%} in production"
        for name, (in_training, in_production) in list(difference.shares.items())[:_NUM_NAMED]
        if in_training != in_production
    ]
    return f"{apart}: {'; '.join(changes)}" if changes else apart
