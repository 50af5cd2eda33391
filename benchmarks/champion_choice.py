"""How often the right system becomes champion: `python -m benchmarks.champion_choice [--trials N]`, a line of
JSON each.

Four systems predict the held-out rows of two public sets: TF-IDF with logistic regression, a logistic
regression on 100 frozen dimensions (the probe), and two trainings of a small neural network, the champion and
the candidate. Errors are fixed, or made, at random until all four have the same macro-F1, or one of them is
better by 1, 2 or 5 points. Validation rows (two thirds as many) and test rows are drawn from them, and the
choice of the evaluation workload is made: it says which system becomes champion, if any.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import numpy as np

from benchmarks.release_gate import (
    DECIDED,
    NUM_TEST_ROWS,
    Trained,
    changed,
    evaluate,
    features,
    measure_parts,
    train,
)
from fullft_assets.evaluation import CHAMPION, FINETUNED
from fullft_assets.evaluation.base import assumed_seed_noise
from fullft_assets.evaluation.verdict import verdict
from fullft_assets.launch.workloads import evaluation as workload
from fullft_assets.settings import ReleaseSettings

BASELINES = ("tfidf", "frozen_probe")
#: Title -> the system that is better, and by how much.
CASES: dict[str, tuple[str, float]] = {
    "all are equal": (FINETUNED, 0.0),
    "the fine-tuned model is better by 1 point": (FINETUNED, 0.01),
    "by 2 points": (FINETUNED, 0.02),
    "by 5 points": (FINETUNED, 0.05),
    "the probe is better by 2 points": ("frozen_probe", 0.02),
    "the probe by 5 points": ("frozen_probe", 0.05),
}


@dataclass
class Context:
    """What the choice reads of an evaluation's context."""

    inputs: dict[str, Any]
    job: Any = field(default_factory=lambda: SimpleNamespace(settings=SETTINGS))
    outputs: dict[str, Any] = field(default_factory=dict)
    store: Any = None
    progress: Any = None


SETTINGS = SimpleNamespace(release=ReleaseSettings(), primary_metric="macro_f1")
SNAPSHOT = SimpleNamespace(ref="snapshot", content_digest="digest")


def predictions(name: str, num_test_rows: int) -> dict[str, np.ndarray]:
    """Return the labels that the two baselines predict of the held-out rows."""
    from sklearn.linear_model import LogisticRegression, SGDClassifier

    split = features(name, num_test_rows, DECIDED[name])
    words = SGDClassifier(loss="log_loss", random_state=0).fit(split.train_texts, split.labels)
    probe = LogisticRegression(C=10.0, max_iter=200).fit(split.train_rows, split.labels)
    return {
        "tfidf": np.asarray(words.predict(split.test_texts)),
        "frozen_probe": np.asarray(probe.predict(split.test_rows)),
    }


def chosen(
    trained: Trained, systems: dict[str, np.ndarray], rng: np.random.Generator, has_champion: bool
) -> str:
    """Return the system that becomes champion in one draw of validation and test rows, or `none`."""
    test, seed = trained.test, int(rng.integers(2**31))
    rows, groups = trained.draw(rng)
    measurable = test.measurable(rows, groups)
    is_validated = np.isin(test.groups, rng.choice(np.unique(test.groups), trained.num_drawn * 2 // 3))
    validation = replace(test, labels=test.labels[is_validated], groups=test.groups[is_validated])
    validated = {name: validation.truth(labels[is_validated], measurable) for name, labels in systems.items()}

    def judged(name: str, context: Context) -> workload.Judged:
        compared = {name: systems[name]} | {
            each: labels for each, labels in systems.items() if has_champion or each != CHAMPION
        }
        evaluation = evaluate(
            test, rows, groups, compared, seed, [each for each in BASELINES if each != name]
        )
        noise = assumed_seed_noise(evaluation, trained.num_train_rows)
        decision = verdict(evaluation, SETTINGS.release, "superiority", noise)
        unread: Any = None
        return workload.Judged(cast(Any, context), unread, evaluation, decision, unread, {})

    about = SimpleNamespace(
        facts={"validation_macro_f1": validated[FINETUNED]}, system=FINETUNED, snapshot=SNAPSHOT.ref
    )
    baselines = SimpleNamespace(
        inputs={"training_snapshot": SNAPSHOT.content_digest},
        scores={name: validated[name] for name in BASELINES},
    )
    context = Context(
        {
            "training_snapshot": SNAPSHOT,
            "cheaper_baselines": baselines,
            "finetuned_checkpoint": SimpleNamespace(ref=FINETUNED),
        }
    )
    with patch.multiple(
        workload,
        store_baseline=lambda job, store, snapshot, baselines, name, progress: SimpleNamespace(ref=name),
        CheckpointMetadata=SimpleNamespace(of=lambda manifest: about),
        BaselinesMetadata=SimpleNamespace(of=lambda manifest: manifest),
        _judge=lambda context, test: judged(context.inputs["finetuned_checkpoint"].ref, context),
        _choice=lambda judged, finetuned, num_left_out: (judged.evaluation.candidate, None),
    ):
        finetuned = judged(FINETUNED, context)
        name, _ = workload._choose(finetuned, cast(Any, None), 0)
    return name or (FINETUNED if finetuned.decision.promote else "none")


def choices(trials: int) -> Iterator[dict[str, Any]]:
    """Yield, for each set, size and case, which system becomes champion how often."""
    for name, num_rows in product(DECIDED, NUM_TEST_ROWS):
        trained = train(name, num_rows, is_grouped=DECIDED[name])
        baselines = predictions(name, num_rows)
        everything = np.ones(trained.test.num_labels, bool)
        for (title, (better, gain)), has_champion in product(CASES.items(), (True, False)):
            if not has_champion and gain and better != FINETUNED:
                continue
            rng = np.random.default_rng([6, num_rows])
            ships: dict[str, int] = dict.fromkeys([FINETUNED, *BASELINES, "none"], 0)
            num_trials = trials if num_rows < NUM_TEST_ROWS[-1] else trials // 2
            for _ in range(num_trials):
                one, other = rng.choice(len(trained.predicted), 2, replace=False)
                systems = {FINETUNED: trained.predicted[one], **baselines, CHAMPION: trained.predicted[other]}
                level = float(np.median([trained.test.truth(each, everything) for each in systems.values()]))
                for system, labels in systems.items():
                    aim = level + (gain if system == better else 0.0)
                    difference = aim - trained.test.truth(labels, everything)
                    if abs(difference) > 1e-3:
                        systems[system] = changed(trained.test, labels, difference, rng, everything)
                ships[chosen(trained, systems, rng, has_champion)] += 1
            yield {
                "set": name,
                "test rows": num_rows,
                "case": title,
                "has champion": has_champion,
                "trials": num_trials,
                **{system: round(count / num_trials, 3) for system, count in ships.items()},
            }


def main(arguments: Sequence[str]) -> Iterator[str]:
    """Yield a line of JSON a cell."""
    return measure_parts(arguments, {"choices": choices}, trials=100, about=__doc__)


if __name__ == "__main__":
    for line in main(sys.argv[1:]):
        print(line, flush=True)
