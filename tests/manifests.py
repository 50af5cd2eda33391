"""Artifacts that a test writes itself because making them takes minutes, and their metadata."""

from collections.abc import Mapping
from typing import Any

from fullft_assets import release
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.monitoring import DriftMetadata, Status
from fullft_assets.planning import BaselinesMetadata, PilotMetadata, PlanMetadata
from fullft_assets.store import Manifest, Store
from tests import project as projects


def write(
    store: Store,
    case: str,
    stage: str,
    key: str = "k1",
    metadata: Mapping[str, Any] | None = None,
    *,
    files: Mapping[str, str | bytes] | None = None,
    **parts: Any,
) -> Manifest:
    """Write an artifact with these files; `parts` are its settings, inputs and checks."""
    with store.create(case, stage, key, version="1", seed=17) as draft:
        projects.write_files(draft.path, files or {})
        return draft.commit(**{"settings": {}, "inputs": {}, "metadata": metadata or {}, **parts})


def promote(store: Store, case: str, checkpoint: str, **changes: Any) -> None:
    """Make the checkpoint with this ref the champion."""
    values = {"snapshot": "s", "evaluation": "e", "score": 0.9, "promoted_at": 1.0, "run_id": "r"}
    release.promote(store, case, release.Champion(checkpoint=checkpoint, **{**values, **changes}))


def plan(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "num_parameters": 1_000,
        "num_trained_parameters": 1_000,
        "num_rows": 100,
        "num_steps": 10,
        "num_tokens": 900,
        "num_padded_tokens": 1_000,
        "predicted_seconds": 36.0,
        "peak_memory_bytes": 2**30,
        "available_memory_bytes": 2**31,
        "device": "CPU x86_64",
        "precision": "fp32",
        "planned_hours": 0.01,
        "planned_usd": 0.0,
        "peak_memory_gib": 1.0,
        "state_memory_gib": 0.5,
        "stop_seconds": 4.0,
        "padding_share": 0.1,
    }
    return PlanMetadata(**{**values, **changes}).as_dict()


def baselines(labels: list[str], scores: dict[str, float]) -> dict[str, Any]:
    best = max(scores, key=scores.__getitem__)
    seconds, usd = dict.fromkeys(scores, 1.0), dict.fromkeys(scores, 0.0)
    return BaselinesMetadata(
        labels=labels, scores=scores, seconds=seconds, usd=usd, best=best, best_score=scores[best]
    ).as_dict()


def pilot(curve: list[dict[str, float]], *, best: str = "majority") -> dict[str, Any]:
    """Return the metadata of a `pilot_run` with this learning curve."""
    return PilotMetadata(
        learning_curve=curve,
        predicted=0.6,
        predicted_low=0.5,
        predicted_high=0.7,
        target_rows=1_000,
        best_baseline=best,
        best_baseline_score=0.4,
        seconds=10.0,
        num_tokens=1_000,
    ).as_dict()


def drift(status: Status, documents: str = "") -> dict[str, Any]:
    """Return the metadata of a `drift_report` with this verdict on a window's documents."""
    return DriftMetadata(
        window="",
        status=status,
        summary=status,
        table="",
        num_rows=300,
        num_delivered=300,
        num_unreadable=0,
        num_related_left_out=0,
        num_labelled=0,
        num_reference_windows=12,
        reference=[],
        recent=[],
        documents=documents,
        measured={},
    ).as_dict()


def evaluation(**given: Any) -> dict[str, Any]:
    """Return the metadata of an `evaluation_report`; what it measured are keys like the others."""
    values: dict[str, Any] = {
        "verdict": "Every gate passed.",
        "justification": "Full fine-tuning was worth it.",
        "answer": "promote",
        "promote": True,
        "justified": True,
        "primary_metric": "macro_f1",
        "metrics": ["macro_f1", "accuracy"],
        "num_test_rows": 100,
        "num_test_groups": 50,
        "effective_groups": 48.0,
        "num_test_rows_left_out": 0,
        "best_baseline": "tfidf",
        "gain_over_best_baseline": 0.1,
        "gain_over_best_baseline_low": 0.05,
        "gain_over_best_baseline_high": 0.15,
        "checkpoint": "letters/finetuned_checkpoint/k1",
    }
    return EvaluationMetadata.model_validate(values | given).as_dict()
