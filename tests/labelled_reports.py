"""Reports on untrained models of tasks with labels, whose baselines are trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fullft_assets.chunks import save_tokenizer
from fullft_assets.evaluation import external
from fullft_assets.launch.workloads.evaluation import work
from fullft_assets.settings import UseCaseSettings
from fullft_assets.store import Manifest, Store
from tests import licence_labels, manifests
from tests.checkpoint_metadata import checkpoint_metadata
from tests.prepared import QUIET, Prepared, prepare

Bring = Callable[[Prepared], UseCaseSettings]


def several_labels(root: Path, bring: Bring | None = None) -> tuple[Store, Manifest]:
    """Return a report of the task multi_label; one row in eleven has no label."""
    rows = licence_labels.labelled_rows(240, known=set(licence_labels.LABELS))
    rows = [{**row, "labels": [] if number % 11 == 0 else row["labels"]} for number, row in enumerate(rows)]
    return labelled(root, licence_labels.SEVERAL_LABELS, rows, {"max_chunks": 1}, bring)


def spans(root: Path, bring: Bring | None = None) -> tuple[Store, Manifest]:
    return labelled(
        root,
        licence_labels.SPANS,
        licence_labels.spanned_rows(240),
        {"max_tokens": 32, "max_chunks": None, "stride": 4},
        bring,
    )


def labelled(
    root: Path,
    examples: dict[str, Any],
    rows: list[dict[str, Any]],
    chunks: dict[str, Any],
    bring: Bring | None = None,
) -> tuple[Store, Manifest]:
    """Return a report on an untrained model, whose baselines are trained.

    Args:
        bring: writes files of external systems, and returns the settings that name them.
    """
    prepared = prepare(
        root, tiny=True, delivered=rows, examples=examples, chunks=chunks, snapshot={"test_share": 0.3}
    )
    recipe, settings, store = prepared.recipe, prepared.use_case.settings, prepared.store

    def artifact(stage: str, fill: Callable[[Path], dict[str, Any]]) -> Manifest:
        with store.create("letters", stage, "k1", version="1", seed=17) as draft:
            return draft.commit(settings={"training": {"epochs": 1}}, inputs={}, metadata=fill(draft.path))

    def baselines(folder: Path) -> dict[str, Any]:
        scored = recipe.score_baselines(settings.baselines, folder, prepared.baseline_context)
        return manifests.baselines(recipe.labels, {name: 0.5 for name, _ in scored})

    def checkpoint(folder: Path) -> dict[str, Any]:
        model = recipe.load(settings.training)
        recipe.finish(model, QUIET)
        model.save_pretrained(folder / "model")
        save_tokenizer(prepared.base_model, [], folder / "model")
        return checkpoint_metadata(snapshot=prepared.snapshot.ref)

    inputs = {
        "training_snapshot": prepared.snapshot,
        "finetuned_checkpoint": artifact("finetuned_checkpoint", checkpoint),
        "cheaper_baselines": artifact("cheaper_baselines", baselines),
        "pilot_run": artifact(
            "pilot_run", lambda _: manifests.pilot([{"rows": 8, settings.primary_metric: 0.1}])
        ),
    }
    if bring is not None:
        settings = bring(prepared)
        inputs |= external.keep(store, "letters", settings, prepared.use_case.project_root)
    job = prepared.job("evaluation_report", "evaluated")
    job = job.model_copy(
        update={"inputs": {name: manifest.ref for name, manifest in inputs.items()}, "settings": settings}
    )
    work(job, store, QUIET)
    return store, store.find("letters", "evaluation_report", "evaluated")
