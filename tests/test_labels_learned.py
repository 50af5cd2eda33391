"""The real MiniLM learns real spans, and real labels of which a row has several, beyond what the baselines
know.
"""

from pathlib import Path
from typing import Any

import pytest

from tests import licence_labels
from tests.prepared import Prepared, prepare

SNAPSHOT = {"min_train_rows": 20, "test_share": 0.2, "validation_share": 0.2}


def learned(prepared: Prepared, folder: Path) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Scores on the validation rows: of the model after training, and of each baseline."""
    from fullft_assets.jobs.progress import Progress
    from fullft_assets.training.finetuning import fine_tune

    recipe, quiet = prepared.recipe, Progress(silent=True)
    baselines = dict(
        recipe.score_baselines(prepared.use_case.settings.baselines, folder, prepared.baseline_context)
    )
    fit = fine_tune(
        recipe,
        prepared.use_case.settings.training,
        17,
        folder / "work",
        quiet,
        evaluate_at=(),
        resumable=False,
    )
    return recipe.score(fit.model, quiet), baselines


@pytest.mark.slow
def test_spans(tmp_path: Path) -> None:
    examples: dict[str, Any] = {
        "task": "token_classification",
        "label": "spans",
        "labels": None,
        "group": "expression",
    }
    options = {
        "examples": examples,
        "snapshot": SNAPSHOT,
        "chunks": {"max_tokens": 64, "max_windows": None, "stride": 8},
        "training": {"epochs": 1, "batch_size": 16, "micro_batch_size": 16, "learning_rate": 5e-4},
    }
    prepared = prepare(tmp_path, delivered=licence_labels.spanned_rows(600), **options)
    found, baselines = learned(prepared, tmp_path)
    assert found["micro_f1"] > 0.15 + max(scores["micro_f1"] for scores in baselines.values())
    assert found["macro_f1"] > 0.15 + max(scores["macro_f1"] for scores in baselines.values())
    assert (
        baselines["token_probe"]["micro_f1"]
        > baselines["dictionary"]["micro_f1"]
        > baselines["no_spans"]["micro_f1"]
        == 0.0
    )
