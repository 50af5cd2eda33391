"""The model card: what a champion is for, how good it is, and what made it."""

from pathlib import PurePath
from typing import Any

import yaml

from fullft_assets.artifacts import (
    BASELINE_FILE,
    CHAMPION_MODEL,
    EVALUATION_FILE,
    EVALUATION_REPORT,
    FINETUNED_CHECKPOINT,
)
from fullft_assets.base_model import MODULES, resolve_base_model, stated_licence
from fullft_assets.checkpoint import lineage
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.errors import SettingsError
from fullft_assets.escaping import visible
from fullft_assets.evaluation import FINETUNED, Evaluation, read_evaluation, title
from fullft_assets.evaluation.verdict import ReleaseVerdict, read_verdict
from fullft_assets.release.champion import Champion
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store import Draft, Manifest, Outcome, Store
from fullft_assets.store.metadata import Metadata
from fullft_assets.task import TASKS


class ChampionMetadata(Metadata):
    """Metadata of a `champion_model`.

    Attributes:
        verdict: what the gates said.
        outcome: how the release ended; differs from the verdict where a person decided.
        model: folder of the model within the store.
    """

    checkpoint: str
    score: float
    verdict: str
    outcome: str
    model: str


VERSION = "7"
#: The name under which the Hugging Face hub and its libraries look for a model's card.
CARD = "README.md"


def write_card(
    store: Store, use_case: UseCase, report: Manifest, checkpoint: Manifest, *, outcome: str
) -> Manifest:
    """Return the `champion_model` artifact of a checkpoint: its model card (Mitchell et al. 2019), written
    now unless it exists.

    Args:
        outcome: how the release ended, as the pointer has it.
    """
    settings = use_case.settings
    evaluation = read_evaluation((store.folder(report) / EVALUATION_FILE).read_bytes())
    decision = read_verdict(store.folder(report))

    def write(draft: Draft) -> Outcome:
        card = _render_card(store, use_case, report, checkpoint, evaluation, decision, outcome)
        (draft.path / CARD).write_text(card, encoding="utf-8")
        metadata = ChampionMetadata(
            checkpoint=checkpoint.ref,
            score=evaluation.score.estimate,
            verdict=decision.sentence,
            outcome=outcome,
            model=f"{checkpoint.ref}/model",
        )
        return metadata.as_dict(), []

    return store.ensure(
        use_case.name,
        CHAMPION_MODEL,
        write,
        version=VERSION,
        settings={**settings.release.model_dump(), "license": settings.release.license, "outcome": outcome},
        inputs={
            FINETUNED_CHECKPOINT: checkpoint.content_digest,
            EVALUATION_REPORT: report.content_digest,
        },
        seed=settings.seed,
    )


def card_of(store: Store, case: str, champion: Champion) -> Manifest | None:
    """Return the newest `champion_model` artifact of a champion, or None where it is gone."""
    return next(
        (
            card
            for card in reversed(store.artifacts(case, CHAMPION_MODEL))
            if ChampionMetadata.of(card).checkpoint == champion.checkpoint
        ),
        None,
    )


def trained_weights(metadata: CheckpointMetadata) -> str:
    """Return the sentence that says what was trained."""
    if metadata.system != FINETUNED:
        return f"It is a baseline, not a full fine-tuning: {title(metadata.system)}."
    counts = f"{metadata.num_trained_parameters:,} of {metadata.num_parameters:,} parameters"
    if metadata.num_trained_parameters == metadata.num_parameters:
        return f"All weights were fine-tuned ({counts})."
    return f"Some weights were frozen, see `freeze_layers` below; all others were fine-tuned ({counts})."


def _base_licence(use_case: UseCase, reference: str) -> str | None:
    try:
        return stated_licence(resolve_base_model(reference, use_case.project_root))
    except SettingsError:  # the base model was removed since
        return None


def _render_card(
    store: Store,
    use_case: UseCase,
    report: Manifest,
    checkpoint: Manifest,
    evaluation: Evaluation,
    decision: ReleaseVerdict,
    outcome: str,
) -> str:
    from fullft_assets.report import render

    metadata = CheckpointMetadata.of(checkpoint)
    documents = use_case.settings.documents
    # The snapshot that the model was trained on; a later evaluation may use another one.
    snapshot = store.load(metadata.snapshot)
    counts = SnapshotMetadata.of(snapshot)
    lineage_rows = [
        ("Checkpoint", checkpoint.ref),
        *lineage.rows(checkpoint),
        ("Snapshot", snapshot.ref),
        ("Evaluation", report.ref),
        ("Base model weights (sha256)", metadata.base_model_weights),
        ("Settings digest", metadata.settings_digest),
        ("Seed", str(checkpoint.seed)),
    ]
    training = [
        *(
            (name, str(value))
            for name, value in checkpoint.settings["training"].items()
            if value not in (None, [], {})
        ),
        ("optimizer steps", f"{metadata.num_steps:,}"),
        ("precision used", metadata.precision),
        ("trained parameters", f"{metadata.num_trained_parameters:,}"),
    ]
    data = [
        ("train rows", f"{counts.num_train_rows:,}"),
        ("validation rows", f"{counts.num_validation_rows:,}"),
        ("test rows", f"{counts.num_test_rows:,}"),
        ("source", public_name(documents.path)),
        ("batches", f"{len(counts.parts):,}"),
    ]
    model = store.folder(checkpoint) / "model"
    is_pooled = (model / MODULES).is_file()
    is_model = not (model / BASELINE_FILE).is_file()
    card = render(
        "model_card.md.j2",
        evaluation,
        is_page=False,
        is_model=is_model,
        case=use_case.name,
        front_matter=front_matter(
            use_case, metadata.base_model, evaluation, is_pooled=is_pooled, is_model=is_model
        ),
        loading=loading_lines(evaluation.task, is_pooled=is_pooled)
        if is_model
        else f'from fullft_assets import champion\n\nprint(champion("{use_case.name}").predict(["a text"]))',
        lineage=lineage_rows,
        training=training,
        trained_weights=trained_weights(metadata),
        data=data,
        base_model=public_name(metadata.base_model),
        licences={
            "model": use_case.settings.release.license,
            "base": _base_licence(use_case, metadata.base_model),
            "data": documents.attribution,
        },
        decision=decision,
        outcome=outcome,
        limits=evaluation.limits,
    )
    # A right-to-left mark in a label would turn around what follows it.
    return "\n".join(visible(line) for line in card.split("\n"))


def loading_lines(task: str, *, is_pooled: bool) -> str:
    """Return the lines of Python that load a model without this package."""
    if is_pooled:
        return (
            "from sentence_transformers import SentenceTransformer\n\n"
            "# The logits [texts, labels], in the order of id2label in config.json.\n"
            'logits = SentenceTransformer(".").encode(["a text"])'
        )
    tag = TASKS.get(task).pipeline_tag or "text-generation"
    return f'from transformers import pipeline\n\nprint(pipeline("{tag}", model=".")("a text"))'


def front_matter(
    use_case: UseCase,
    base_model: str,
    evaluation: Evaluation,
    *,
    is_pooled: bool = False,
    is_model: bool = True,
) -> str:
    """Return the YAML that the Hugging Face hub reads at the beginning of a card."""
    task = TASKS.get(evaluation.task)
    library = "sentence-transformers" if is_pooled else "transformers"
    facts: dict[str, Any] = {
        "license": use_case.settings.release.license,
        "library_name": library if is_model else "fullft-assets",
        "pipeline_tag": task.pipeline_tag,
        # The path of a folder would read as a model of the hub, its name alone does not.
        "base_model": (
            base_model.partition("@")[0]
            if "@" in base_model or base_model.startswith("package:")
            else PurePath(base_model).name
        ),
        "base_model_relation": "finetune",
        # A local folder's path would read as the name of somebody's data set on the hub.
        "datasets": [path if "://" in (path := use_case.settings.documents.path) else use_case.name],
        "metrics": evaluation.metrics,
        "tags": [
            "full-fine-tuning" if evaluation.candidate == FINETUNED else evaluation.candidate,
            evaluation.task,
        ],
    }
    if task.pipeline_tag is not None:
        result = {
            "task": {"type": task.pipeline_tag},
            "dataset": {"type": use_case.name, "name": f"test rows of {use_case.name}"},
            "metrics": [
                {"type": name, "name": title(name), "value": round(values[evaluation.candidate].estimate, 4)}
                for name, values in evaluation.columns.items()
                if evaluation.candidate in values
            ],
        }
        facts["model-index"] = [{"name": use_case.name, "results": [result]}]
    stated_facts = {name: value for name, value in facts.items() if value is not None}
    return yaml.safe_dump(stated_facts, sort_keys=False, allow_unicode=True)


def public_name(reference: str) -> str:
    """Return a reference to a model or to data; of a path on this machine its last part alone, as a card goes
    where the model goes.
    """
    path = PurePath(reference)
    return path.name if path.is_absolute() or reference.startswith("~") else reference
