"""Which system becomes champion: the choice among those that were judged, baselines as champions of every
kind, and what replaces them.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fullft_assets import release
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.evaluation import read_evaluation, title
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.evaluation.verdict import read_verdict
from fullft_assets.launch.workloads.evaluation import work
from fullft_assets.monitoring import DriftMetadata
from fullft_assets.planning import BaselinesMetadata
from fullft_assets.report.rendering import system_costs
from fullft_assets.resources.champion import load_champion
from fullft_assets.settings import ReleaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest, Store
from fullft_assets.task import BASELINES
from fullft_assets.tasks.classification.baselines import Tfidf
from fullft_assets.tasks.context import store_baseline
from tests import licence_labels, manifests, project as projects, small_language_model
from tests.checkpoint_metadata import checkpoint_metadata
from tests.prepared import QUIET, Prepared, prepare, prepare_language_model, write_general, write_tiny_model
from tests.test_evaluation_workload import Lab, small_model

FEW_GROUPS: dict[str, Any] = {"min_effective_groups": 2}


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
    assert release.candidates(fitted, ReleaseSettings(**settings), finetuned) == expected


SEVERAL = {"task": "multi_label", "label": "labels", "labels": ["notice", "permissive", "copyleft"]}
KINDS: dict[str, dict[str, Any]] = {
    "tfidf": {"rows": 160},
    "frozen_probe": {"rows": 160},
    "lora": {"rows": 160},
    "zero_shot": {"rows": 100},
    "few_shot": {"rows": 100},
    "dictionary": {"delivered": licence_labels.spanned_rows(120), "examples": licence_labels.SPANS},
    "token_probe": {"delivered": licence_labels.spanned_rows(120), "examples": licence_labels.SPANS},
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


@pytest.mark.heavy
@pytest.mark.usefixtures("fp32")
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
    about = {"snapshot": prepared.snapshot.ref}
    manifests.promote(store, case, stored.ref, **about)
    if kind == "frozen_probe":
        tfidf, _ = fitted(prepared, "tfidf")
        again = store_baseline(prepared.job("b"), store, prepared.snapshot, tfidf, "tfidf", QUIET)
        manifests.promote(store, case, again.ref, **about)
        assert "baseline.json" in {path.name for path in load_champion(store, case).path.iterdir()}
        release.rollback(store, case, reason="worse", by="test")
    answers = load_champion(store, case, prepared.use_case.settings).predict(texts)
    if prepared.use_case.settings.examples.task == "token_classification":
        spans = [[(span["start"], span["end"], span["label"]) for span in each["spans"]] for each in answers]
        assert spans == [[(s, e, prepared.labels[label]) for s, e, label in row] for row in expected]
    else:
        shares = [[each["probabilities"][label] for label in prepared.labels] for each in answers]
        np.testing.assert_allclose(shares, expected, atol=2e-5)
    if kind == "several":
        assert len({*answers[0]["thresholds"].values()}) > 1


@pytest.mark.heavy
@pytest.mark.parametrize("task", ["language_modeling", "sft"])
def test_lora_is_judged_and_writes_where_no_language_model_was_trained(tmp_path: Path, task: str) -> None:
    planning = {"baselines": ["base_model", "lora"]}
    write_general(tmp_path / "general", 20)
    prepared = prepare_language_model(
        tmp_path, task, rows=60, planning=planning, snapshot={"general": {"path": "general"}}
    )
    store, job = prepared.store, prepared.job("evaluation_report")
    with store.create(job.case, "cheaper_baselines", "b", version="1", seed=1) as draft:
        scored = dict(
            prepared.recipe.score_baselines(["base_model", "lora"], draft.path, prepared.baseline_context)
        )
        scores = {name: metrics["token_probability"] for name, metrics in scored.items()}
        metadata = manifests.baselines([], scores) | {"rises": {"lora": scored["lora"]["general_rise"]}}
        baselines = draft.commit(settings={}, inputs={}, metadata=metadata)
    about = manifests.pilot([{"rows": 50, "token_probability": 0.4}], best="base_model")
    pilot = manifests.write(store, job.case, "pilot_run", "p", about)
    stored = store_baseline(job, store, prepared.snapshot, baselines, "lora", QUIET)
    inputs = {"finetuned_checkpoint": stored, "cheaper_baselines": baselines, "pilot_run": pilot}
    refs = {**job.inputs, **{name: manifest.ref for name, manifest in inputs.items()}}
    work(job.model_copy(update={"inputs": refs}), store, QUIET)
    [report] = store.artifacts(job.case, "evaluation_report")
    evaluation = read_evaluation((store.folder(report) / "evaluation.json").read_bytes())
    assert (evaluation.candidate, evaluation.baselines) == ("lora", ["base_model"])
    # It is held to the budget as a fine-tuned model is, by what its own training lost.
    found = evaluation.forgetting
    base_loss = prepared.recipe.score_general(prepared.recipe.load_original(job.settings.training), QUIET)
    assert found.before == pytest.approx(base_loss["general_loss"], rel=1e-4)
    assert found.rise == pytest.approx(found.after - found.before) and found.rise != 0
    # Beside another candidate, too.
    costs = system_costs(
        {"cheaper_baselines": baselines, "training_snapshot": prepared.snapshot}, job.settings, {}, 1
    )
    assert [costs[name].forgot for name in scores] == [0.0, pytest.approx(found.rise, rel=1e-3)]
    manifests.promote(store, job.case, stored.ref, snapshot=prepared.snapshot.ref)
    assert load_champion(store, job.case, prepared.use_case.settings).predict(["The license"], 5)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A use case whose baselines scored 0.5 on the validation rows; TF-IDF is right on most test rows."""
    return Lab(tmp_path_factory.mktemp("mail"))


def judged(
    lab: Lab, key: str, score: float, champion: Manifest | None = None, **settings: Any
) -> tuple[Manifest, Manifest]:
    """Evaluate an untrained model with this validation score; return it and its report."""
    model = lab.checkpoint(key, small_model(lab.labels, [0, 1, 2]), validation_macro_f1=score)
    changed = ReleaseSettings(**{**FEW_GROUPS, **settings})
    return model, lab.evaluate(
        model, key, champion, lab.use_case.settings.model_copy(update={"release": changed})
    )


def publish(lab: Lab, model: Manifest, report: Manifest, **settings: Any) -> release.ReleaseOutcome:
    changed = lab.use_case.settings.model_copy(update={"release": ReleaseSettings(**FEW_GROUPS, **settings)})
    outcome, _ = release.publish(
        lab.store,
        replace(lab.use_case, settings=changed),
        report=report,
        checkpoint=model,
        snapshot=lab.snapshot,
        run_id="r",
    )
    return outcome


def pushing(lab: Lab) -> UseCase:
    settings = lab.use_case.settings
    changed = settings.release.model_copy(update={"push_to": str(lab.root / "pushed")})
    return replace(lab.use_case, settings=settings.model_copy(update={"release": changed}))


def test_where_the_model_fails_its_gates_the_best_baseline_ships(lab: Lab) -> None:
    model, report = judged(lab, "fails", 0.9)
    assert not read_verdict(lab.store.folder(report)).promote
    metadata = EvaluationMetadata.of(report)
    assert metadata.answer == "baseline" and metadata.ships is not None
    shipped = lab.store.load(metadata.ships)
    evaluation = read_evaluation((lab.store.folder(shipped) / "evaluation.json").read_bytes())
    assert evaluation.candidate == EvaluationMetadata.of(shipped).candidate == "tfidf"
    tested = read_evaluation((lab.store.folder(report) / "evaluation.json").read_bytes())
    assert evaluation.score.estimate == pytest.approx(tested.scores["macro_f1"]["tfidf"].estimate)
    assert evaluation.gains["macro_f1"]["finetuned"].low > 0

    outcome = publish(lab, model, report)
    champion = release.read_champion(lab.store, "mail")
    assert outcome.kind == "promoted" and champion is not None
    assert champion.checkpoint.startswith("mail/baseline_model/") and champion.evaluation == shipped.ref
    assert "TF-IDF" in outcome.sentence
    assert release.recorded_outcome(lab.store, "mail", model.ref) == replace(outcome, champion=None)
    [card] = lab.store.artifacts("mail", "champion_model")
    text = (lab.store.folder(card) / release.CARD).read_text()
    assert "library_name: fullft-assets" in text and 'champion("mail").predict' in text
    assert "logistic regression is chosen" in text
    pushed = release.push_champion(lab.store, pushing(lab))
    assert {path.name for path in Path(str(pushed)).iterdir()} >= {"README.md", "baseline.json", "tfidf.npz"}
    assert publish(lab, model, report).kind == "already_champion"
    assert release.judged_against(lab.store, "mail", model, lab.snapshot).champion is None
    newer = lab.snapshot.model_copy(update={"key": "newer"})
    assert release.judged_against(lab.store, "mail", model, newer).champion == champion.checkpoint


def test_a_baseline_that_ships_untrained_says_why(lab: Lab) -> None:
    words = lab.store.load(
        EvaluationMetadata.of(
            lab.store.load(str(EvaluationMetadata.of(judged(lab, "why", 0.9)[1]).ships))
        ).checkpoint
    )
    settings = lab.use_case.settings.model_copy(update={"release": ReleaseSettings(**FEW_GROUPS)})
    choices = [
        read_verdict(
            lab.store.folder(lab.evaluate(words, f"why {champion is None}", champion, settings))
        ).choice
        for champion in (None, words)
    ]
    assert re.match(
        r"The TF-IDF .+ is chosen: macro-F1 \d.+ on the test rows, against \d.+; nothing was fine-tuned;"
        r" making it took .+\.",
        choices[0],
    ), choices
    assert choices[1] == ""


def test_with_finetuned_alone_nothing_ships(lab: Lab) -> None:
    model, report = judged(lab, "alone", 0.9, candidates="finetuned")
    assert EvaluationMetadata.of(report).ships is None
    assert publish(lab, model, report, candidates="finetuned").kind == "kept"


def test_a_cheaper_system_within_its_worth_ships(lab: Lab) -> None:
    lenient = {"min_gain_over_baselines": -1}
    _, near = judged(lab, "near", 0.505, **lenient)
    verdict = read_verdict(lab.store.folder(near))
    assert (verdict.answer, EvaluationMetadata.of(near).candidate) == ("baseline", "finetuned")
    assert "more to serve" in verdict.choice and "release.worth" in verdict.choice
    _, better = judged(lab, "better", 0.52, **lenient)
    verdict = read_verdict(lab.store.folder(better))
    assert verdict.answer == "promote"
    assert re.match(
        r"The fully fine-tuned model is chosen: macro-F1 \d.+ on the test rows, against \d.+ of the TF-IDF"
        r" .+, the next choice by the validation rows; making it took .+, and that .+\.",
        verdict.choice,
    ), verdict.choice


def test_what_the_test_rows_refute_does_not_ship(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe is the best on the validation rows; on the test rows TF-IDF is, and a model that answers as
    TF-IDF does."""
    scores = {"majority": 0.5, "tfidf": 0.5, "frozen_probe": 0.6}
    for key, baselines, shipped in (("two", scores, "tfidf"), ("one", {"frozen_probe": 0.6}, None)):
        fitted_metadata = manifests.baselines(lab.labels, baselines)
        artifact = lab.artifact("cheaper_baselines", key, lab._fit_baselines, fitted_metadata)
        words = Tfidf.load(lab.store.folder(artifact), lab.context)
        monkeypatch.setattr(lab, "baselines", artifact)
        if shipped is not None:
            other = lab.store.load(str(EvaluationMetadata.of(judged(lab, key, 0.55)[1]).ships))
            assert EvaluationMetadata.of(other).candidate == shipped
            continue
        good = lab.artifact(
            "finetuned_checkpoint",
            key,
            lambda folder, words=words: words.export(folder / "model", lab.context),
            checkpoint_metadata(snapshot=lab.snapshot.ref, validation_macro_f1=0.55),
        )
        changed = lab.use_case.settings.model_copy(update={"release": ReleaseSettings(**FEW_GROUPS)})
        assert read_verdict(lab.store.folder(lab.evaluate(good, key, settings=changed))).answer == "promote"


def test_a_champion_that_is_a_baseline_stays_until_something_is_better(lab: Lab) -> None:
    lenient = {"min_gain_over_baselines": -1}
    shipped = lab.store.load(str(EvaluationMetadata.of(judged(lab, "first", 0.9)[1]).ships))
    tfidf = lab.store.load(EvaluationMetadata.of(shipped).checkpoint)
    # The probe would pass this bar, and is not asked once the model has failed it.
    _, worse = judged(lab, "worse", 0.9, tfidf, **{"min_gain_over_champion": -0.6, "worth": 1, **lenient})
    assert read_verdict(lab.store.folder(worse)).answer == "keep"
    assert EvaluationMetadata.of(worse).ships is None, "no second system is tried against the champion"
    _, accepted = judged(lab, "accepted", 0.9, tfidf, min_gain_over_champion=-1, **lenient)
    assert read_verdict(lab.store.folder(accepted)).answer == "promote"


@pytest.mark.slow
def test_what_is_not_trained_ends_with_a_champion(tmp_path: Path) -> None:
    """Real licence texts through the whole graph: the pilot refuses, and TF-IDF or the probe is in use."""
    write_tiny_model(tmp_path / "model")
    project = projects.create(
        tmp_path,
        base_model="model",
        release={"candidates": "any"},
        planning={"min_predicted_gain": 0.9},
        monitoring={"path": "data/letters/production", "min_window_rows": 20},
    )
    windows = [{"id": row["id"], "text": row["text"]} for row in projects.licence_rows(60, skip=400)]
    projects.write_rows(project.production / "window-1.jsonl", windows)
    printed = project.succeed("run", project.name)
    store = Store(str(project.home / "store"))
    champion = release.read_champion(store, project.name)
    assert champion is not None, printed
    system = CheckpointMetadata.of(store.load(champion.checkpoint)).system
    assert system in ("tfidf", "frozen_probe") and not store.refs(project.name, "finetuned_checkpoint")
    assert "%" in project.succeed("predict", project.name, "Licensed under the MIT license")
    [predictions] = store.artifacts(project.name, "batch_predictions")
    assert predictions.inputs["finetuned_checkpoint"] == store.load(champion.checkpoint).content_digest
    [drift] = store.artifacts(project.name, "drift_report")
    assert DriftMetadata.of(drift).num_rows >= 20
    page = (store.folder(store.load(champion.evaluation)) / "report.html").read_text()
    assert "Is it worth it?" in page and title(system) in page

    again = project.fullft("run", project.name)
    assert again.returncode == 0 and release.read_champion(store, project.name) == champion, again.stdout
    assert len(store.refs(project.name, "evaluation_report")) == 1
