"""The model card: what a champion is for, how good it is, and what made it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fullft_assets.evaluation import Evaluation, read_evaluation
from fullft_assets.evaluation.verdict import ReleaseVerdict, read_verdict
from fullft_assets.release.metadata import ChampionMetadata
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store import Draft, Manifest, Outcome, Store
from fullft_assets.training import lineage
from fullft_assets.training.metadata import CheckpointMetadata

if TYPE_CHECKING:
    from fullft_assets.settings.use_case import UseCase

VERSION = "2"


def write_card(store: Store, use_case: UseCase, report: Manifest, checkpoint: Manifest) -> Manifest:
    """Return the `champion_model` artifact of a checkpoint: its model card (Mitchell et al. 2019), written now unless it exists."""
    folder = store.folder(report)
    evaluation, decision = read_evaluation((folder / "evaluation.json").read_bytes()), read_verdict(folder)

    def write(draft: Draft) -> Outcome:
        (draft.path / "model_card.md").write_text(_render_card(store, use_case, report, checkpoint, evaluation, decision), encoding="utf-8")
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


def _render_card(
    store: Store, use_case: UseCase, report: Manifest, checkpoint: Manifest, evaluation: Evaluation, decision: ReleaseVerdict
) -> str:
    from fullft_assets.report import render

    made = CheckpointMetadata.of(checkpoint)
    # The snapshot that the model was trained on; a later evaluation may use another one.
    learned = store.load(made.snapshot)
    taken = SnapshotMetadata.of(learned)
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
    counts = {"train rows": taken.num_train_rows, "validation rows": taken.num_validation_rows, "test rows": taken.num_test_rows}
    data = [(name, f"{count:,}") for name, count in counts.items()]
    data += [("source", use_case.settings.documents.path), ("batches", f"{len(taken.parts):,}")]
    return render(
        "model_card.md.j2",
        evaluation,
        is_page=False,
        case=use_case.name,
        lineage=made_by,
        training=training,
        data=data,
        base_model=made.base_model,
        decision=decision,
        attribution=use_case.settings.documents.attribution,
        limits=evaluation.limits,
    )
