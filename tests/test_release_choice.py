"""Which system becomes champion: the choice among those that were judged, baselines as champions of every
kind, and what replaces them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fullft_assets import release
from fullft_assets.jobs.progress import Progress
from fullft_assets.planning import BaselinesMetadata
from fullft_assets.release.choice import candidates
from fullft_assets.resources.champion import load_champion
from fullft_assets.settings import ReleaseSettings
from fullft_assets.store import Manifest
from fullft_assets.task import BASELINES
from fullft_assets.tasks.stored import store_baseline
from tests import licence_labels, manifests, small_language_model
from tests import project as projects
from tests.prepared import Prepared, prepare

QUIET = Progress(silent=True)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("finetuned", "settings", "expected"),
    [
        (0.90, {}, ["finetuned", "frozen_probe", "tfidf", "few_shot"]),
        (0.81, {}, ["frozen_probe", "finetuned", "tfidf", "few_shot"]),
        (0.90, {"worth": 0.11}, ["tfidf", "finetuned", "frozen_probe", "few_shot"]),
        (0.90, {"candidates": "finetuned"}, ["finetuned"]),
        (None, {}, ["frozen_probe", "tfidf", "few_shot"]),
        (None, {"candidates": "finetuned"}, []),
    ],
)
def test_the_best_is_chosen_and_a_cheaper_one_within_its_worth(
    finetuned: float | None, settings: dict[str, Any], expected: list[str]
) -> None:
    scores = {"majority": 0.95, "few_shot": 0.7, "tfidf": 0.8, "frozen_probe": 0.84}
    fitted = BaselinesMetadata.model_validate(manifests.baselines(["a", "b"], scores))
    assert candidates(fitted, ReleaseSettings(**settings), finetuned) == expected


SPANS = {"task": "token_classification", "label": "spans", "labels": None, "group": "expression"}
SEVERAL = {"task": "multi_label", "label": "labels", "labels": ["notice", "permissive", "copyleft"]}
KINDS: dict[str, dict[str, Any]] = {
    "tfidf": {"rows": 160},
    "frozen_probe": {"rows": 160},
    "lora": {"rows": 160},
    "zero_shot": {"rows": 100},
    "few_shot": {"rows": 100},
    "dictionary": {"delivered": licence_labels.spanned_rows(120), "examples": SPANS},
    "token_probe": {"delivered": licence_labels.spanned_rows(120), "examples": SPANS},
    "several": {
        "delivered": licence_labels.labelled_rows(160, known=set(SEVERAL["labels"])),
        "examples": {**SEVERAL, "group": "expression"},
    },
}


def prepared_for(kind: str, root: Path) -> Prepared:
    if kind.endswith("shot"):
        small_language_model.write(root / "model", [row["text"] for row in projects.licence_rows(100)])
        return prepare(root, base_model="model", **KINDS[kind])
    return prepare(root, tiny=True, **KINDS[kind])


def fitted(prepared: Prepared, name: str) -> tuple[Manifest, Any]:
    """Return a `cheaper_baselines` with this one, and what it predicts of the validation rows."""
    context = prepared.baseline_context
    job = prepared.job("cheaper_baselines")
    with prepared.store.create(job.case, job.stage, "b", version="1", seed=1) as draft:
        [(_, metrics)] = prepared.recipe.score_baselines([name], draft.path, context)
        scores = {name: metrics[prepared.use_case.settings.primary_metric]}
        baselines = draft.commit(
            settings={},
            inputs={"training_snapshot": prepared.snapshot.content_digest},
            metadata=manifests.baselines(prepared.labels, scores),
        )
    loaded = BASELINES.get(name).load(prepared.store.folder(baselines), context)
    return baselines, loaded.predict(prepared.split("validation"))


def crown(prepared: Prepared, model: Manifest) -> None:
    champion = release.Champion(
        checkpoint=model.ref,
        snapshot=prepared.snapshot.ref,
        evaluation="e",
        score=0.9,
        promoted_at=1.0,
        run_id="r",
    )
    release.promote(prepared.store, prepared.use_case.name, champion)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_baseline_of_each_kind_predicts_as_champion(tmp_path: Path, kind: str) -> None:
    prepared, name = prepared_for(kind, tmp_path), "tfidf" if kind == "several" else kind
    store, case = prepared.store, prepared.use_case.name
    baselines, expected = fitted(prepared, name)
    stored = store_baseline(prepared.job("b"), store, prepared.snapshot, baselines, name, QUIET)
    files = {Path(file).suffix for file in stored.files}
    assert files <= {".json", ".npz", ".safetensors", ".txt", ".jinja", ""}, "nothing is pickled"
    texts = prepared.split("validation").texts
    assert not any(
        text in path.read_text(errors="ignore")
        for path in store.folder(stored).rglob("*.json")
        for text in texts
        if len(text) > 40
    )
    crown(prepared, stored)
    champion = load_champion(store, case, prepared.use_case.settings)
    answers = champion.predict(texts)
    if prepared.use_case.settings.examples.task == "token_classification":
        spans = [[(span["start"], span["end"], span["label"]) for span in each["spans"]] for each in answers]
        assert spans == [[(s, e, prepared.labels[label]) for s, e, label in row] for row in expected]
    else:
        shares = [[each["probabilities"][label] for label in prepared.labels] for each in answers]
        np.testing.assert_allclose(shares, expected, atol=2e-5)
    if kind == "several":
        assert len({*answers[0]["thresholds"].values()}) > 1
