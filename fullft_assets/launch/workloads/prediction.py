"""batch_predictions: production_documents, finetuned_checkpoint -> what the model predicts of each document.

Run by a launcher or by hand: `python -m fullft_assets.launch.workloads.prediction --job URI`.
"""

import time
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from fullft_assets.artifacts import DOCUMENTS_FILE, FINETUNED_CHECKPOINT, PRODUCTION_DOCUMENTS
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.job import Job
from fullft_assets.launch.entry import run_workload
from fullft_assets.monitoring.predictions import (
    PREDICTIONS,
    PREDICTIONS_VERSION,
    Document,
    PredictionsMetadata,
    predictions_key,
    write_predictions,
)
from fullft_assets.progress import Progress
from fullft_assets.store import Store
from fullft_assets.task import task_of
from fullft_assets.tasks.baseline import open_model

#: Documents whose tokens are in memory at the same time: those of licences took 13 times as much as their
#: texts.
BLOCK_DOCUMENTS = 10_000


def work(job: Job, store: Store, progress: Progress) -> None:
    """Write the predictions of one window."""
    import pyarrow.parquet as pq

    inputs = job.load_inputs(store)
    table = pq.read_table(
        store.folder(inputs[PRODUCTION_DOCUMENTS]) / DOCUMENTS_FILE,
        columns=["source", "row", "id", "text"],
    ).to_pylist()
    documents = [Document(**row) for row in table if row["text"] and row["text"].strip()]
    progress.say(f"{len(documents):,} documents with a text, of {len(table):,}")
    checkpoint = inputs[FINETUNED_CHECKPOINT]
    model = open_model(store, checkpoint, job.settings, progress)
    labels = CheckpointMetadata.of(checkpoint).labels

    probabilities: list[float] = []

    def predictions() -> Iterator[dict[str, Any]]:
        task = task_of(job.settings.examples)
        max_new_tokens = job.settings.monitoring.max_new_tokens
        for first in range(0, len(documents), BLOCK_DOCUMENTS):
            texts = [document.text for document in documents[first : first + BLOCK_DOCUMENTS]]
            for num_done, prediction in enumerate(
                task.predict(model, job.settings, labels, texts, max_new_tokens), start=first + 1
            ):
                progress.raise_if_stopped()
                progress.step(num_done, len(documents))
                if "probability" in prediction:
                    probabilities.append(prediction["probability"])
                yield prediction

    with store.create(
        job.case, job.stage, job.key, version=PREDICTIONS_VERSION, seed=job.settings.seed
    ) as draft:
        began = time.perf_counter()
        write_predictions(draft.path / PREDICTIONS, documents, predictions())
        seconds = time.perf_counter() - began
        draft.commit(
            settings=predictions_key(job.settings),
            inputs={
                PRODUCTION_DOCUMENTS: inputs[PRODUCTION_DOCUMENTS].content_digest,
                FINETUNED_CHECKPOINT: checkpoint.content_digest,
            },
            metadata=PredictionsMetadata(
                checkpoint=checkpoint.ref,
                num_rows=len(documents),
                num_without_text=len(table) - len(documents),
                estimated_accuracy=fmean(probabilities) if probabilities else None,
                rows_per_second=len(documents) / seconds if documents else None,
                characters_per_second=sum(len(document.text) for document in documents) / seconds
                if documents
                else None,
            ).as_dict(),
        )


if __name__ == "__main__":
    run_workload(work)
