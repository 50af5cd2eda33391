"""What of an artifact's metadata Dagster keeps: its event log is for ever, is backed up and is read by more
people than the store. The models of the metadata mark what it may not have: see `store.metadata.Private`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.chunks import AuditMetadata, ChunksMetadata
from fullft_assets.documents import RawMetadata
from fullft_assets.escaping import visible
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.examples import ExamplesMetadata
from fullft_assets.examples.labels import may_be_named
from fullft_assets.examples.validation import QuarantineMetadata
from fullft_assets.monitoring import DriftMetadata, LiveMetadata, PredictionsMetadata
from fullft_assets.planning import PilotMetadata, PlanMetadata
from fullft_assets.planning.metadata import BaselinesMetadata
from fullft_assets.release.metadata import ChampionMetadata
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store.metadata import Metadata, Private

#: The model of each asset's metadata; an asset that is not here is shown nowhere.
MODELS: dict[str, type[Metadata]] = {
    "raw_documents": RawMetadata,
    "production_documents": RawMetadata,
    "labeled_examples": ExamplesMetadata,
    "quarantined_examples": QuarantineMetadata,
    "tokenized_chunks": ChunksMetadata,
    "tokenizer_audit": AuditMetadata,
    "training_snapshot": SnapshotMetadata,
    "feasibility_plan": PlanMetadata,
    "cheaper_baselines": BaselinesMetadata,
    "pilot_run": PilotMetadata,
    "finetuned_checkpoint": CheckpointMetadata,
    "evaluation_report": EvaluationMetadata,
    "champion_model": ChampionMetadata,
    "batch_predictions": PredictionsMetadata,
    "drift_report": DriftMetadata,
    "live_quality": LiveMetadata,
}


def outside_the_store(model: type[Metadata], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata without what its model marks as private, and with what is shown in its place."""
    marks = {name: model.private(name, value) for name, value in metadata.items()}
    labels = {
        label
        for name, value in metadata.items()
        if marks[name] is Private.LABELS
        for label in _labels_in(value)
    }
    is_named = may_be_named(labels)
    shown: dict[str, Any] = {}
    for name, value in metadata.items():
        match marks[name]:
            case None:
                shown[name] = value
            case Private.FILES if value:
                shown.setdefault(f"num_{name}", len(value))
            case Private.BY_FILE:
                shown[name] = dict(Counter(value.values()))
            case Private.LABELS if is_named:
                shown[name] = _with_visible(value)
    if labels and not is_named:
        shown["num_labels"] = len(labels)
    return shown


def _labels_in(value: Any) -> Iterator[str]:
    """Yield the labels of a list of them or of statistics, or those that something is given by, also split by
    split.
    """
    if isinstance(value, list):
        yield from (each["label"] if isinstance(each, dict) else each for each in value)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from each if isinstance(each, dict) else (name,)


def _with_visible(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list):
        return [_with_visible(each) for each in value]
    if isinstance(value, dict):
        return {visible(name): _with_visible(each) for name, each in value.items()}
    return value
