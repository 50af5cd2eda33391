"""What the champion predicts of a window of production documents: a line of JSON for each document with a
text.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullft_assets.artifacts import BATCH_PREDICTIONS
from fullft_assets.settings import UseCaseSettings
from fullft_assets.store import Manifest, artifact_key
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
    """

    checkpoint: str
    num_rows: int
    num_without_text: int
    estimated_accuracy: float | None = None
    rows_per_second: float | None = None
    characters_per_second: float | None = None


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
        "chunks": settings.chunks.shaping(),
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
        for document, prediction in zip(documents, predictions, strict=True):
            about = {"source": document.source, "row": document.row, "id": document.id}
            file.write(json.dumps(about | dict(prediction), ensure_ascii=False) + "\n")


def read_labels(path: Path) -> dict[tuple[str, int], str]:
    """Return the predicted label of each document of a predictions file, by the document's file and row. It
    is empty where the task predicts something else.
    """
    with path.open(encoding="utf-8") as lines:
        return {(line["source"], line["row"]): line.get("label", "") for line in map(json.loads, lines)}
