"""What training makes a model forget: scored before, on the way and at the end; the budget; the same after a
kill.
"""

import json
from typing import Any

import numpy as np
import pytest

from fullft_assets import report
from fullft_assets.errors import DivergenceError
from fullft_assets.evaluation.base import forgetting_of
from fullft_assets.models import precision
from fullft_assets.models.inference import embed, load_base, load_causal, load_classifier
from fullft_assets.models.token_loss import score_documents
from fullft_assets.snapshot import general
from fullft_assets.store import Manifest
from tests import small_language_model
from tests.machine import printed_by
from tests.prepared import Prepared, prepare, prepare_language_model, write_general
from tests.project import licence_rows
from tests.test_resume import Run, assert_same_as

GENERAL = {"general": {"path": "general", "max_tokens": 1_000}, "max_validation_rows": 4}
QUICK = {
    "epochs": 2,
    "batch_size": 4,
    "micro_batch_size": 2,
    "learning_rate": 2e-2,
    "precision": "fp32",
    "checkpoint_every_steps": 3,
}


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("language")
    small_language_model.write(
        root / "model", [*write_general(root / "general", 20), *(row["text"] for row in licence_rows(80))]
    )
    snapshot = {**GENERAL, "replay": {"path": "general", "share": 0.2}}
    return prepare_language_model(root, rows=80, base_model="model", snapshot=snapshot, training=QUICK)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("encoder")
    write_general(root / "general", 20)
    return prepare(
        root,
        tiny=True,
        snapshot={"general": {"path": "general", "max_tokens": 1_000}},
        training={"checkpoint_every_steps": 3, "learning_rate": 1e-3, "precision": "fp32"},
    )


def log_of(case: Prepared, made: Manifest) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (case.store.folder(made) / "logs" / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.mark.slow
class TestScores:
    def test_of_a_language_model_are_its_loss_on_general_text(self, language: Prepared) -> None:
        made = language.train("scored")
        measured = general.load(language.store, language.snapshot)
        folders = language.base_model, language.store.folder(made) / "model"
        models = [
            precision.score_alike(load_causal(folder), language.use_case.settings.training)
            for folder in folders
        ]
        before, after = (score_documents(model, measured.chunks, None).mean_loss() for model in models)
        found, lines = made.metadata, log_of(language, made)
        assert found["general_before"] == pytest.approx(before, rel=1e-5) and found[
            "general_loss"
        ] == pytest.approx(after, rel=1e-5)
        assert found["general_rise"] == pytest.approx(after - before, abs=1e-4)
        assert lines[0] == {"step": 0, "general_loss": found["general_before"]}
        assert all("general_loss" in line for line in lines if "validation_loss" in line)
        rows = dict(report.forgetting_rows(forgetting_of(made)))
        assert (
            rows["loss on general text, nats a token"] == f"{before:.4f} before training, {after:.4f} after"
        )
        assert rows["rise since the base model"] == f"{after - before:+.4f} over 1 training"

    def test_of_an_encoder_are_how_far_its_representations_moved(self, encoder: Prepared) -> None:
        made = encoder.train("scored")
        measured = general.load(encoder.store, encoder.snapshot)
        original = load_base(encoder.base_model)
        precision.set_scoring(original, "fp32")
        base = embed(original, measured.chunks)
        model = precision.score_alike(
            load_classifier(encoder.store.folder(made) / "model"), encoder.use_case.settings.training
        )
        tuned = embed(model, measured.chunks)
        cosine = (base * tuned).sum(1) / np.linalg.norm(base, axis=1) / np.linalg.norm(tuned, axis=1)
        assert made.metadata["general_before"] == pytest.approx(0, abs=1e-6)
        assert (
            made.metadata["general_distance"] == pytest.approx(1 - cosine.mean(), rel=1e-3)
            and 1 - cosine.mean() > 1e-3
        )
        assert "general_loss" not in made.metadata
        assert "not a loss" in report.forgetting_rows(forgetting_of(made))[0][0]


@pytest.mark.slow
class TestBudget:
    def test_spent_it_ends_training_with_the_best_within_it(self, encoder: Prepared) -> None:
        free = encoder.train("free", epochs=4)
        rises = {
            line["step"]: line["general_rise"] for line in log_of(encoder, free) if "general_rise" in line
        }
        steps = sorted(rises)
        # The first look, before the last, that is farther away than all before it.
        over = next(
            n
            for n in range(1, len(steps) - 1)
            if rises[steps[n]] > 1.01 * max(rises[step] for step in steps[:n])
        )
        budget = (max(rises[step] for step in steps[:over]) + rises[steps[over]]) / 2
        for keep_best in (False, True):
            made = encoder.train(
                f"bounded-{keep_best}", epochs=4, max_general_rise=budget, keep_best=keep_best
            )
            assert made.metadata["num_steps"] == steps[over] < free.metadata["num_steps"]
            chosen = made.metadata["model_of_step"]
            assert chosen in steps[:over]
            assert made.metadata["general_rise"] == rises[chosen] <= budget
            [incident] = made.metadata["incidents"]
            assert (incident["event"], incident["step"]) == ("early_stop", steps[over])
            assert f", max_general_rise is {budget:g}" in incident["reason"]
            assert forgetting_of(made).budget == budget

    def test_never_met_it_is_one_line(self, encoder: Prepared) -> None:
        line = (
            r"^no scored weights, up to step \d+, are within training\.max_general_rise \(1e-09\);"
            r" snapshot\.replay"
        )
        with pytest.raises(DivergenceError, match=line):
            encoder.train("never", max_general_rise=1e-9)


def kill_and_compare(case: Prepared, name: str, kills: int, changes: dict[str, Any]) -> Manifest:
    """Train straight and killed so often; both must come out the same. Return the manifest."""
    straight, killed = (Run(case, f"{kind}-{name}", training=changes) for kind in ("straight", "killed"))
    how = (straight.command[-1], killed.command[-1], kills, 11)
    printed_by("-m", "tests.killed_trainings", *how, env=case.project.env(), timeout=300)
    assert_same_as(straight, killed)
    for part in ("general_", "event", "alpha"):
        of_both = [
            [(line["step"], {k: v for k, v in line.items() if k.startswith(part)}) for line in run.log()]
            for run in (straight, killed)
        ]
        assert of_both[0] == of_both[1]
    return killed.manifest()
