"""What the champion predicts of a window of production documents: a line of JSON for each document with a
text; or what it answered by the log of the user (`monitoring.log`).

Of a log only what the champion answered counts: a row of another model, or of nobody knows which, has no
prediction. The two kinds are never mixed: they differ in the settings of their artifacts, and each consumer
asks for one of them.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq

from fullft_assets.artifacts import (
    BATCH_PREDICTIONS,
    DOCUMENTS_FILE,
    FINETUNED_CHECKPOINT,
    PRODUCTION_DOCUMENTS,
)
from fullft_assets.documents.reading import LOGGED
from fullft_assets.settings import LogSettings, UseCaseSettings
from fullft_assets.store import CheckOutcome, Draft, Manifest, Outcome, Store, artifact_key
from fullft_assets.store.checks import CheckSpec
from fullft_assets.store.metadata import Metadata

#: Raise this when the lines or their metadata change.
PREDICTIONS_VERSION = "2"
#: A line for each document: `source`, `row` and `id` as its window has them, then what the task predicts, as
#: in `fullft predict --file`.
PREDICTIONS = "predictions.jsonl"


class PredictionsMetadata(Metadata):
    """Metadata of `batch_predictions`.

    Attributes:
        checkpoint: the artifact with the model that predicted.
        num_without_text: documents of the window that have no text, and no prediction.
        estimated_accuracy: of a classifier, the mean probability of the predicted labels: its accuracy if the
            probabilities are right. An estimate, on which nothing acts: where documents change, models stay
            too certain.
        rows_per_second, characters_per_second: from the first text to the last, without loading the model.
        left_out: of predictions from a log: documents with a text that have none, by the reason.
        num_without_score: of predictions from a log: those that the estimate leaves out.
    """

    checkpoint: str
    num_rows: int
    num_without_text: int
    estimated_accuracy: float | None = None
    rows_per_second: float | None = None
    characters_per_second: float | None = None
    left_out: dict[str, int] | None = None
    num_without_score: int | None = None


@dataclass(frozen=True)
class Document:
    """A production document with a text: its place in the window's files, and its id."""

    source: str
    row: int
    id: str | None
    text: str


def predictions_key(settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings that determine what a model predicts of a document."""
    return {
        "chunks": settings.chunks.model_dump(include={"max_tokens", "stride", "max_windows"}),
        "max_new_tokens": settings.monitoring.max_new_tokens,
    }


def predictions_artifact_key(settings: UseCaseSettings, inputs: Mapping[str, Manifest]) -> str:
    """Return the key of what a model predicts of a window.

    Args:
        settings: of the use case.
        inputs: `production_documents` and `finetuned_checkpoint`.
    """
    digests = {name: manifest.content_digest for name, manifest in inputs.items()}
    return artifact_key(
        BATCH_PREDICTIONS, PREDICTIONS_VERSION, predictions_key(settings), digests, settings.seed
    )


def write_predictions(
    path: Path, documents: Iterable[Document], predictions: Iterable[Mapping[str, Any]]
) -> None:
    """Write a line for each document; both must have equal lengths."""
    with path.open("w", encoding="utf-8") as file:
        for document, predicted in zip(documents, predictions, strict=True):
            about = {"source": document.source, "row": document.row, "id": document.id}
            file.write(json.dumps(about | dict(predicted), ensure_ascii=False) + "\n")


LOG_CHECK = CheckSpec(
    "log_has_the_champions_predictions", "Most documents have a prediction of the champion in the log."
)
#: With a smaller share of them a field is misnamed, or another model answers.
_LEAST_SHARE = 0.5
#: A time since 1970 beyond this is in milli-, micro- or nanoseconds: as seconds it would be in the year 5138.
_MOST_SECONDS = 1e11


def log_key(settings: UseCaseSettings) -> dict[str, Any] | None:
    """Return what tells predictions from a log apart from others, among the settings of their artifact; None:
    the champion predicts.
    """
    log = settings.monitoring.log
    return None if log is None else log.model_dump()


def read_log(
    store: Store,
    case: str,
    *,
    log: LogSettings,
    documents: Manifest,
    champion: Manifest,
    since: float,
    labels: Sequence[str],
    seed: int,
) -> Manifest:
    """Return the `batch_predictions` of a window as the log has them: a line for each document that the
    champion answered.

    Args:
        documents: the window's `production_documents`.
        champion: its checkpoint.
        since: when it came into use, in seconds since 1970.
        labels: of the champion. In whatever case the log has them, if that is no other label's.
    """
    ours = _answered_by(champion, log, since)
    alike = Counter(label.casefold() for label in labels)
    exact, folded = set(labels), {label.casefold(): label for label in labels if alike[label.casefold()] == 1}

    def write(draft: Draft) -> Outcome:

        columns = ["source", "row", "id", "text", *LOGGED]
        table = pq.read_table(store.folder(documents) / DOCUMENTS_FILE, columns=columns).to_pylist()
        rows = [row for row in table if row["text"] and row["text"].strip()]
        left_out: Counter[str] = Counter()
        answers: list[tuple[Document, dict[str, Any]]] = []
        for row in rows:
            predicted = (row["predicted"] or "").strip()
            label = predicted if predicted in exact else folded.get(predicted.casefold())
            if not predicted:
                left_out["no prediction"] += 1
            elif not ours(row):
                left_out["not known to be the champion's"] += 1
            elif label is None:
                left_out["none of the champion's labels"] += 1
            else:
                document = Document(row["source"], row["row"], row["id"], row["text"])
                score = _score(row["score"])
                answers.append(
                    (document, {"label": label, **({} if score is None else {"probability": score})})
                )
        write_predictions(
            draft.path / PREDICTIONS, (document for document, _ in answers), (answer for _, answer in answers)
        )
        scores = [answer["probability"] for _, answer in answers if "probability" in answer]
        metadata = PredictionsMetadata(
            checkpoint=champion.ref,
            num_rows=len(answers),
            num_without_text=len(table) - len(rows),
            estimated_accuracy=fmean(scores) if scores else None,
            left_out=dict(left_out),
            num_without_score=len(answers) - len(scores) if log.score is not None else None,
        )
        return metadata.as_dict(), [_check(len(answers), len(rows), left_out)]

    # Of the same champion, only the time at which it came into use may be another one.
    settings = {"log": log.model_dump(), **({} if log.time is None else {"since": since})}
    inputs = {
        PRODUCTION_DOCUMENTS: documents.content_digest,
        FINETUNED_CHECKPOINT: champion.content_digest,
    }
    return store.ensure(
        case,
        BATCH_PREDICTIONS,
        write,
        version=PREDICTIONS_VERSION,
        settings=settings,
        inputs=inputs,
        seed=seed,
    )


def read_labels(path: Path) -> dict[tuple[str, int], str]:
    """Return the predicted label of each document of a predictions file, by the document's file and row."""
    with path.open(encoding="utf-8") as lines:
        return {(line["source"], line["row"]): line["label"] for line in map(json.loads, lines)}


def _answered_by(champion: Manifest, log: LogSettings, since: float) -> Callable[[Mapping[str, Any]], bool]:
    if log.model is not None:
        return lambda row: champion.key in (row["predicted_by"] or "")
    return lambda row: (at := _seconds(row["predicted_at"])) is not None and at >= since


def _seconds(value: str | None) -> float | None:
    text = (value or "").strip()
    # Eight digits are a day: as seconds they would be in 1970.
    for read in (_iso_time, float) if len(text) == 8 else (float, _iso_time):
        with suppress(ValueError, OverflowError):
            seconds = read(text)
            while _MOST_SECONDS < seconds < math.inf:
                seconds /= 1000
            return seconds if math.isfinite(seconds) else None
    return None


def _iso_time(text: str) -> float:
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


def _score(value: str | None) -> float | None:
    try:
        score = float(value or "")
    except ValueError:
        return None
    return score if 0 <= score <= 1 else None


def _check(num_found: int, num_rows: int, left_out: Mapping[str, int]) -> CheckOutcome:
    """Return the check, a warning. It says how many rows, and never what they have: a misnamed field may hold
    anything.
    """
    description = f"{num_found:,} of {num_rows:,} documents have a prediction of the champion in the log"
    reasons = ", ".join(f"{count:,} {why}" for why, count in sorted(left_out.items()))
    description += f"; of the others {reasons}" if reasons else ""
    passed = num_found >= _LEAST_SHARE * num_rows
    if not passed:
        description += ". Only those are used; compare monitoring.log with the fields that rows have"
    return CheckOutcome(name=LOG_CHECK.name, passed=passed, severity="warn", description=description)
