"""Live quality: how often the champion was right about production documents whose label came later, against
its score at release.

Labels may be late and out of order, and somebody looks after each of them: the bounds hold at all looks at
once (see `log_evidence_below`).
"""

import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from fullft_assets.artifacts import (
    DOCUMENTS_FILE,
    EXAMPLES_FILE,
    FINETUNED_CHECKPOINT,
    LABELED_EXAMPLES,
    LIVE_QUALITY,
    PRODUCTION_DOCUMENTS,
)
from fullft_assets.monitoring.far import location_digest
from fullft_assets.monitoring.predictions import PREDICTIONS, read_labels
from fullft_assets.monitoring.related import own_ids
from fullft_assets.store import CheckOutcome, Draft, Manifest, Outcome, Store, digest
from fullft_assets.store.checks import CheckSpec
from fullft_assets.store.metadata import Metadata

#: Weight of the mixing distribution in observations: the bounds are tight from some dozens to some thousands
#: of outcomes.
_WEIGHT = 20.0


def log_evidence_below(num_right: Any, num: Any, share: Any) -> Any:
    """Return the logarithm of the evidence that the true share is below `share`, of counts of any shape.

    Args:
        num_right: outcomes that were right.
        num: all outcomes.
        share: strictly between 0 and 1.
    """
    from scipy.special import betainc, betaln, xlog1py, xlogy

    share = np.asarray(share, np.float64)
    right = np.asarray(num_right, np.float64)
    wrong = np.asarray(num, np.float64) - num_right
    alpha = _WEIGHT * share
    beta = _WEIGHT * (1 - share)
    with np.errstate(divide="ignore"):
        mixed = (
            betaln(alpha + right, beta + wrong)
            - betaln(alpha, beta)
            + np.log(betainc(alpha + right, beta + wrong, share))
            - np.log(betainc(alpha, beta, share))
        )
    return mixed - xlogy(right, share) - xlog1py(wrong, -share)


def upper_bound(num_right: int, num: int, error: float) -> float:
    """Return the upper bound of the true share that is wrong at any look with a chance of at most `error`; 1
    without outcomes.
    """
    from scipy.optimize import brentq

    if not 0 <= num_right <= num:
        raise ValueError(f"{num_right} of {num} is no share")
    limit = -np.log(error)
    highest = 1 - 1e-9
    lowest = max(num_right / num if num else 0.0, 1e-9)
    if lowest >= highest or log_evidence_below(num_right, num, highest) < limit:
        return 1.0
    root: Any = brentq(
        lambda share: float(log_evidence_below(num_right, num, share)) - limit, lowest, highest
    )
    return float(root)


def lower_bound(num_right: int, num: int, error: float) -> float:
    """Return the lower bound in the same sense; 0 without outcomes."""
    return 1.0 - upper_bound(num - num_right, num, error)


#: Raise this when the counts or their metadata change.
LIVE_VERSION = "4"
LIVE_CHECK = CheckSpec(
    "live_accuracy_holds", "Accuracy on production documents that got a label is not below that at release."
)
#: The metric of single documents: any order and number of labels measures it.
METRIC = "accuracy"
#: The newest windows of which single counts are kept: more than a drift can be told from.
_NUM_WINDOWS = 100


class LiveMetadata(Metadata):
    """Metadata of `live_quality`.

    Attributes:
        checkpoint: of the champion.
        num_windows: windows that it predicted.
        num_documents: their documents, one a group, or one a text where there is no group.
        num_labelled: those of them that have a label by now.
        num_right: those of them whose label is the predicted one.
        accuracy, accuracy_low, accuracy_high: the share of right ones, and bounds that hold at all looks.
        None: there is no label yet. release_accuracy, release_accuracy_low: at release, on the test rows,
        with the lower end of its interval.
        drop: release minus live accuracy where the intervals show that it fell, else 0.
        by_window: of the newest windows, the documents that have a label, one a group, and those of them that
            are right.
    """

    checkpoint: str
    num_windows: int
    num_documents: int
    num_labelled: int
    num_right: int
    accuracy: float | None = None
    accuracy_low: float
    accuracy_high: float
    release_accuracy: float
    release_accuracy_low: float
    drop: float
    by_window: dict[str, tuple[int, int]] = {}


class AtRelease(NamedTuple):
    """The champion's accuracy on the test rows of its release, and the lower end of its interval."""

    accuracy: float
    low: float


class Counts(NamedTuple):
    """What became of the documents that the champion predicted; see `LiveMetadata`."""

    num_documents: int
    num_labelled: int
    num_right: int
    by_window: dict[str, tuple[int, int]] = {}


def measure(
    store: Store,
    case: str,
    *,
    champion: Manifest,
    release: AtRelease,
    windows: Mapping[str, Manifest],
    predictions: Mapping[str, Manifest],
    examples: Mapping[str, Manifest],
    exported_digests: Mapping[str, Collection[str]],
    error: float,
    seed: int,
) -> Manifest:
    """Return the `live_quality` of a champion, an artifact of counts alone.

    Args:
        champion: its checkpoint; predictions of others do not count.
        release: what it is compared with.
        windows: `production_documents` by window; names sort by arrival.
        predictions: `batch_predictions` by window.
        examples: `labeled_examples` by batch, of the batches that the champion has not learned from.
        exported_digests: by window, digests of the documents that were exported for labelling because they
            are far from the training data (`exported_as_far`): their accuracy is not that of production.
        error: probability that each of the two bounds is wrong.
    """
    champion_predictions = predicted_by(champion, windows, predictions)

    def write(_: Draft) -> Outcome:
        counts = count(
            labels_by_id(store, examples),
            predicted_documents(store, case, windows, champion_predictions, exported_digests),
        )
        metadata = judge(counts, champion.ref, len(champion_predictions), release, error)
        return metadata.as_dict(), [check(metadata)]

    contents = [
        {name: manifest.content_digest for name, manifest in artifacts.items()}
        for artifacts in (champion_predictions, examples)
    ]
    inputs = {
        FINETUNED_CHECKPOINT: champion.content_digest,
        "predictions": digest(contents[0]),
        LABELED_EXAMPLES: digest(contents[1]),
        "chosen": digest(
            {
                name: sorted(digests)
                for name, digests in exported_digests.items()
                if name in champion_predictions
            }
        ),
    }
    return store.ensure(
        case,
        LIVE_QUALITY,
        write,
        version=LIVE_VERSION,
        settings={"release": list(release), "error": error},
        inputs=inputs,
        seed=seed,
    )


def predicted_by(
    champion: Manifest, windows: Mapping[str, Manifest], predictions: Mapping[str, Manifest]
) -> dict[str, Manifest]:
    """Return the `batch_predictions` that a champion made, by window in the order of arrival; for the
    arguments see `measure`.
    """
    return {
        name: manifest
        for name, manifest in sorted(predictions.items())
        if name in windows
        and manifest.inputs[FINETUNED_CHECKPOINT] == champion.content_digest
        and manifest.inputs[PRODUCTION_DOCUMENTS] == windows[name].content_digest
    }


class PredictedDocument(NamedTuple):
    """A production document with its prediction.

    Attributes:
        key: digest of its group, or of its text if it has no group. Of related documents the first one
            counts, labelled or not: which one counts must not depend on the labels.
        id: as it was delivered, or None. An id that is made up from file and row is not used: another
            document has it, too, where a feed uses a file's name again, or where labelled documents come in
            files of that name.
        label: as it was delivered with the document, or None.
        is_chosen: it was exported for labelling because it is far from the training data.
        window, location: its window, with file and row there.
    """

    key: bytes
    id: str | None
    predicted: str
    label: str | None
    is_chosen: bool = False
    window: str = ""
    location: tuple[str, int] = ("", 0)


def predicted_documents(
    store: Store,
    case: str,
    windows: Mapping[str, Manifest],
    champion_predictions: Mapping[str, Manifest],
    exported_digests: Mapping[str, Collection[str]],
) -> Iterator[PredictedDocument]:
    """Yield the documents with a prediction, oldest first. A document that was delivered again is yielded as
    it was delivered last: before, it may have been damaged.

    Args:
        champion_predictions: what `predicted_by` returns.
        windows, exported_digests: see `measure`.
    """
    last: dict[str, str] = {}
    for name in champion_predictions:
        table = pq.read_table(store.folder(windows[name]) / DOCUMENTS_FILE, columns=["id", "source", "row"])
        last.update(dict.fromkeys(filter(None, own_ids(table)), name))
    for name, predictions in champion_predictions.items():
        far_digests = exported_digests.get(name, ())
        for document in _documents(store, name, windows[name], predictions):
            if document.id is None or last.get(document.id, name) == name:
                yield document._replace(
                    is_chosen=bool(far_digests) and location_digest(case, document.location) in far_digests
                )


def first_of_each(documents: Iterable[PredictedDocument]) -> Iterator[PredictedDocument]:
    """Yield the first of related documents."""
    keys: set[bytes] = set()
    for document in documents:
        if document.key not in keys:
            keys.add(document.key)
            yield document


def count(labels: Mapping[str, str | None], documents: Iterator[PredictedDocument]) -> Counts:
    """Return how many documents there are, have a label, and were predicted right.

    Args:
        labels: by document id; they count before those that came with the documents. None: its labels
            contradict each other.
        documents: in the order of arrival.
    """
    outcomes: dict[bytes, bool | None] = {}
    by_window: dict[str, tuple[int, int]] = {}
    for window, of_window in itertools.groupby(documents, key=lambda document: document.window):
        window_outcomes = {document.key: _is_right(document, labels) for document in first_of_each(of_window)}
        by_window[window] = _num_labelled_and_right(window_outcomes.values())
        for key, is_right in window_outcomes.items():
            outcomes.setdefault(key, is_right)
    return Counts(
        len(outcomes),
        *_num_labelled_and_right(outcomes.values()),
        dict(list(by_window.items())[-_NUM_WINDOWS:]),
    )


def _is_right(document: PredictedDocument, labels: Mapping[str, str | None]) -> bool | None:
    """Return whether a document was predicted right; None if it has no label that counts."""
    label = document.label if document.id is None else labels.get(document.id, document.label)
    return None if label is None or document.is_chosen else label == document.predicted


def _num_labelled_and_right(outcomes: Collection[bool | None]) -> tuple[int, int]:
    return sum(is_right is not None for is_right in outcomes), sum(is_right is True for is_right in outcomes)


def labels_by_id(store: Store, examples: Mapping[str, Manifest]) -> dict[str, str | None]:
    """Return the label of each id, of the newest batch that has it; None where rows of that batch contradict
    each other.
    """
    labels: dict[str, str | None] = {}
    for _, batch in sorted(examples.items()):
        table = pq.read_table(store.folder(batch) / EXAMPLES_FILE, columns=["id", "label"])
        newest: dict[str, str | None] = {}
        for identifier, label in zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True):
            newest[identifier] = label if newest.get(identifier, label) == label else None
        labels |= newest
    return labels


def judge(
    counts: Counts, checkpoint: str, num_windows: int, release: AtRelease, error: float
) -> LiveMetadata:
    """Return the live accuracy, its bounds, and the drop that is certain given these bounds and the interval
    at release.
    """
    accuracy = counts.num_right / counts.num_labelled if counts.num_labelled else None
    high = upper_bound(counts.num_right, counts.num_labelled, error)
    return LiveMetadata(
        checkpoint=checkpoint,
        num_windows=num_windows,
        **counts._asdict(),
        accuracy=accuracy,
        accuracy_low=lower_bound(counts.num_right, counts.num_labelled, error),
        accuracy_high=high,
        release_accuracy=release.accuracy,
        release_accuracy_low=release.low,
        drop=release.accuracy - accuracy if accuracy is not None and high < release.low else 0.0,
    )


def check(metadata: LiveMetadata) -> CheckOutcome:
    """Return the check, a warning."""
    if metadata.accuracy is None:
        documents = f"{metadata.num_documents:,} documents in {metadata.num_windows:,} windows"
        description = f"none of {documents} has a label yet"
    else:
        description = (
            f"accuracy {metadata.accuracy:.3f} ({metadata.accuracy_low:.3f} to {metadata.accuracy_high:.3f}"
            f" at all looks) on {metadata.num_labelled:,} labelled documents of production; at release"
            f" {metadata.release_accuracy:.3f} (at least {metadata.release_accuracy_low:.3f})"
        )
    if metadata.drop > 0:
        description += ". Label more documents like those of today, and deliver them"
    return CheckOutcome(
        name=LIVE_CHECK.name, passed=metadata.drop <= 0, severity="warn", description=description
    )


def _documents(
    store: Store, name: str, window: Manifest, predictions: Manifest
) -> Iterator[PredictedDocument]:
    table = pq.read_table(
        store.folder(window) / DOCUMENTS_FILE, columns=["source", "row", "id", "text", "label", "group"]
    )
    predicted_labels = read_labels(store.folder(predictions) / PREDICTIONS)
    for row, own_id in zip(table.to_pylist(), own_ids(table), strict=True):
        if (location := (row["source"], row["row"])) in predicted_labels:
            group_or_text = (
                f"group {row['group']}"
                if row["group"]
                else f"text {' '.join(row['text'].split()).casefold()}"
            )
            key = hashlib.blake2b(group_or_text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            yield PredictedDocument(
                key, own_id, predicted_labels[location], row["label"], window=name, location=location
            )
