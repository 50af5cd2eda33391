"""The model card: what a champion is for, how good it is, and what made it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fullft_assets.evaluation import Evaluation, read_evaluation
from fullft_assets.evaluation.verdict import ReleaseVerdict, read_verdict
from fullft_assets.release.metadata import ChampionMetadata
from fullft_assets.store import Draft, Manifest, Outcome, Store
from fullft_assets.training import lineage
from fullft_assets.training.metadata import CheckpointMetadata

if TYPE_CHECKING:
    from fullft_assets.settings.use_case import UseCase

VERSION = "2"


def model_card(
    case: str,
    evaluation: Evaluation,
    *,
    lineage: Sequence[tuple[str, str]],
    training: Sequence[tuple[str, str]],
    data: Sequence[tuple[str, str]],
    base_model: str,
    decision: ReleaseVerdict,
    attribution: str = "",
    intended_use: str = "",
    limits: Sequence[str] = (),
) -> str:
    """Render the model card (Markdown; Mitchell et al. 2019).

    Args:
        case: the use case.
        evaluation: the metrics.
        lineage: what made the model: name, value.
        training: how it was trained: setting, value.
        data: what it was trained and tested on: name, value.
        base_model: the pretrained model.
        decision: the verdict of the gates.
        attribution: the data's source, licence and attribution, if known.
        intended_use: what the model is for. Default: the task's own text.
        limits: further known limits, beside those that the evaluation found.
    """
    from fullft_assets.report import render

    return render(
        "model_card.md.j2",
        evaluation,
        is_page=False,
        case=case,
        lineage=lineage,
        training=training,
        data=data,
        base_model=base_model,
        decision=decision,
        attribution=attribution,
        intended_use=intended_use,
        limits=[*evaluation.limits, *limits],
    )


def write_card(store: Store, use_case: UseCase, report: Manifest, checkpoint: Manifest) -> Manifest:
    """Return the `champion_model` artifact of a checkpoint: its model card, written now unless it exists."""
    folder = store.folder(report)
    evaluation = read_evaluation((folder / "evaluation.json").read_bytes())
    decision = read_verdict(folder)
    made = CheckpointMetadata.of(checkpoint)
    # The snapshot that the model was trained on; a later evaluation may use another one.
    learned = store.load(made.snapshot)
    made_by = [
        ("Checkpoint", checkpoint.ref),
        *lineage.rows(checkpoint),
        ("Snapshot", learned.ref),
        ("Evaluation", report.ref),
        ("Base model weights (sha256)", made.base_model_weights),
        ("Settings digest", made.settings_digest),
        ("Seed", str(checkpoint.seed)),
    ]
    training = [(name, str(value)) for name, value in checkpoint.settings["training"].items() if value not in (None, [], {})]
    training += [("precision used", made.precision), ("trained parameters", f"{made.num_trained_parameters:,}")]
    counts = learned.metadata
    data = [(f"{split} rows", f"{counts[f'num_{split}_rows']:,}") for split in ("train", "validation", "test")]
    data += [("source", use_case.settings.documents.path), ("batches", f"{len(counts['parts']):,}")]

    def write(draft: Draft) -> Outcome:
        card = model_card(
            use_case.name,
            evaluation,
            lineage=made_by,
            training=training,
            data=data,
            base_model=made.base_model,
            decision=decision,
            attribution=use_case.settings.documents.attribution,
        )
        (draft.path / "model_card.md").write_text(card, encoding="utf-8")
        metadata = ChampionMetadata(
            checkpoint=checkpoint.ref, score=evaluation.score.estimate, verdict=decision.sentence, model=f"{checkpoint.ref}/model"
        )
        return metadata.as_dict(), []

    return store.ensure(
        use_case.name,
        "champion_model",
        write,
        version=VERSION,
        settings=use_case.settings.release.model_dump(),
        inputs={"finetuned_checkpoint": checkpoint.content_digest, "evaluation_report": report.content_digest},
        seed=use_case.settings.seed,
    )
