"""What a use case trains: its task's recipe, on its snapshot."""

from __future__ import annotations

from pathlib import Path

from fullft_assets.base_model import ModelFolder, find_base_model, with_rights
from fullft_assets.chunks import Tokenization, tokenizer_digest
from fullft_assets.engine.recipe import Recipe
from fullft_assets.errors import DataError
from fullft_assets.jobs import Job
from fullft_assets.snapshot import general, label_names, load_split, load_training
from fullft_assets.store import Manifest, Store
from fullft_assets.tasks.classification.recipe import Classification
from fullft_assets.tasks.language.recipe import NextToken
from fullft_assets.tasks.multi_label.recipe import MultiLabel
from fullft_assets.tasks.token_classification.recipe import TokenLabels


def open_recipe(job: Job, store: Store, snapshot: Manifest, start: Manifest | None = None) -> Recipe:
    """Read what a job trains on.

    Args:
        job: with the settings of the use case.
        store: where the snapshot's parts live.
        snapshot: the `training_snapshot`.
        start: the checkpoint whose weights training begins with. Default: the base model's.

    Raises:
        DataError: there is nothing to learn, or the snapshot's tokens mean something else to the base model.
    """
    base_model = find_base_model(job.settings, Path(job.project_root))
    _require_its_tokenizer(store, snapshot, base_model, job)
    _require_general_text(snapshot, job)
    validation, added_tokens = load_split(store, snapshot, "validation"), job.settings.chunks.added_tokens
    begin = None if start is None else with_rights(store.folder(start) / "model", job.settings)
    measured = general.load(store, snapshot)
    if job.settings.examples.task in ("sft", "language_modeling"):
        return NextToken(base_model, load_training(store, snapshot), validation, added_tokens, measured, begin)
    labels, train = label_names(snapshot), load_split(store, snapshot, "train")
    if not labels:
        raise DataError("the snapshot's rows have no label at all; look at the field that examples.label names")
    if not job.settings.examples.has_one_label:
        if job.settings.examples.task == "token_classification":
            tokenization = Tokenization.load(base_model, job.settings.chunks, job.settings.examples.task)
            return TokenLabels(base_model, train, validation, labels, added_tokens, measured, begin, tokenization=tokenization)
        return MultiLabel(base_model, train, validation, labels, added_tokens, measured, begin)
    return Classification(base_model, train, validation, labels, added_tokens, measured, begin)


def _require_general_text(snapshot: Manifest, job: Job) -> None:
    chosen = job.settings.snapshot
    for name, wanted in (("general", chosen.general), ("replay", chosen.replay)):
        if wanted is not None and snapshot.metadata.get(name) is None:
            raise DataError(f"the snapshot was taken without snapshot.{name}, which the YAML names now; take the snapshot again")


def _require_its_tokenizer(store: Store, snapshot: Manifest, base_model: ModelFolder, job: Job) -> None:
    part = next(iter(snapshot.metadata["parts"].values()))
    made_with = store.load(part["chunks"]).inputs["tokenizer"]
    if made_with != tokenizer_digest(base_model, job.settings.chunks, job.settings.examples.task):
        raise DataError(
            "the snapshot's windows were made with another tokenizer than base_model's with chunks.added_tokens; tokenise the batches "
            f"again ({job.case}_retokenize) and take the snapshot again"
        )
