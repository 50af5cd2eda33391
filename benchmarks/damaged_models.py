"""Which gate stops a model that was damaged on purpose: `python -m benchmarks.damaged_models [--trials N]`, a
line of JSON each.

Champion and candidate are two trainings of one recipe with other seeds (see `release_gate`), and their real
predictions of licence rules are damaged: two labels swapped, one slice of lengths answered by guessing, also
where the model is better elsewhere so that its score is as good as before. A candidate that was not damaged
counts the false alarms. Test groups are drawn anew in each trial. What a language model forgets is measured
on SmolLM2 with the weights of one layer drawn anew, and with all weights rounded to bf16.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.release_gate import RESAMPLES, Trained, measure_parts, train
from fullft_assets.evaluation import CHAMPION, FINETUNED, Comparison
from fullft_assets.evaluation.base import Forgetting
from fullft_assets.evaluation.gates import ChampionRule
from fullft_assets.evaluation.verdict import verdict
from fullft_assets.settings import EvaluationSettings, ReleaseSettings
from fullft_assets.tasks.classification.assessment import ClassificationEvaluation, assess

NUM_RUNS = 12
#: Test groups of a draw.
NUM_GROUPS = 300
#: (set, a fifth of the training rows, test groups of a draw).
REAL = ("licence rules by kind", 400, NUM_GROUPS)
#: Labels that are swapped: their places by number of rows.
COMMON, RARE = (0, 1), (-2, -1)

Damage = Callable[[Trained, np.ndarray, np.random.Generator], np.ndarray]


def swapped(places: tuple[int, int]) -> Damage:
    """Return the damage that answers each of two labels with the other one."""

    def damage(trained: Trained, predicted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        order = np.argsort(
            -np.bincount(trained.test.labels, minlength=trained.test.num_labels), kind="stable"
        )
        names = np.arange(trained.test.num_labels)
        one, other = order[places[0]], order[places[1]]
        names[[one, other]] = other, one
        return names[predicted]

    return damage


def guesses(trained: Trained, predicted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return predictions that guess on the longest quarter of the texts, by the labels' shares."""
    guessed = rng.permutation(trained.test.labels)
    return np.where(quarters(trained) == 3, guessed, predicted)


def guesses_and_is_better_elsewhere(
    trained: Trained, predicted: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return predictions that guess on every third of those rows, with errors on the others fixed until the
    whole score is what it was.
    """
    test = trained.test
    found = np.where(rng.random(len(predicted)) < 1 / 3, guesses(trained, predicted, rng), predicted)
    everything = np.ones(test.num_labels, bool)
    aim = test.truth(predicted, everything)
    errors = rng.permutation(np.flatnonzero((found != test.labels) & (quarters(trained) != 3)))
    for rows in np.array_split(errors, 40):
        if test.truth(found, everything) >= aim:
            break
        found[rows] = test.labels[rows]
    return found


def forgets_a_rare_label(trained: Trained, predicted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return predictions that miss two thirds of what they knew of the label with about 15 groups a draw."""
    test = trained.test
    of_label = np.bincount(test.labels, minlength=test.num_labels) / len(np.unique(test.groups)) * NUM_GROUPS
    rare = int(np.argmin(np.abs(of_label - 15)))
    known = np.flatnonzero((test.labels == rare) & (predicted == rare))
    found = predicted.copy()
    found[rng.permutation(known)[: 2 * len(known) // 3]] = np.bincount(test.labels).argmax()
    return found


def quarters(trained: Trained) -> np.ndarray:
    """Return the quarter of the lengths that each text is in [n]."""
    return np.searchsorted(np.quantile(trained.lengths, [0.25, 0.5, 0.75]), trained.lengths)


DAMAGES: dict[str, Damage] = {
    "none": lambda trained, predicted, rng: predicted,
    "the two commonest labels swapped": swapped(COMMON),
    "the two rarest labels swapped": swapped(RARE),
    "two thirds of a rare label forgotten": forgets_a_rare_label,
    "guesses on the longest texts": guesses,
    "guesses on a third of the longest texts, better elsewhere": guesses_and_is_better_elsewhere,
}


def evaluate(
    trained: Trained, systems: dict[str, np.ndarray], rng: np.random.Generator, num_groups: int
) -> ClassificationEvaluation:
    """Evaluate predicted labels of all rows on a draw of groups, with its slices; `tfidf` is a baseline that
    is always wrong.
    """
    test = trained.test
    rows, groups = test.draw(rng, num_groups)
    one_hot, labels = np.eye(test.num_labels), test.labels[rows]
    probabilities = {name: one_hot[predicted[rows]] for name, predicted in systems.items()}
    probabilities["tfidf"] = one_hot[(labels + 1) % test.num_labels]
    slicing: dict[str, list[str | None]] = {
        "label": [None] * len(rows),
        "length": [f"quarter {part}" for part in quarters(trained)[rows]],
    }
    comparison = Comparison(
        EvaluationSettings(),
        "macro_f1",
        int(rng.integers(2**31)),
        "classification",
        slicing=slicing,
        resamples=RESAMPLES,
    )
    return assess(labels, probabilities, groups, [str(label) for label in range(test.num_labels)], comparison)


def stopped(
    trained: Trained, damage: Damage, trials: int, num_groups: int, rule: ChampionRule
) -> dict[str, Any]:
    """Return in which share of the trials each gate said no, and how many candidates were promoted."""
    said: Counter[str] = Counter()
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        ours, theirs = rng.permutation(len(trained.predicted))[:2]
        systems = {
            FINETUNED: damage(trained, trained.predicted[ours], rng),
            CHAMPION: trained.predicted[theirs],
        }
        found = evaluate(trained, systems, rng, num_groups)
        decision = verdict(found, ReleaseSettings(), rule)
        said.update(reason.gate for reason in decision.reasons if not reason.passed)
        said["promoted"] += decision.promote
    return {name: round(count / trials, 3) for name, count in sorted(said.items())}


def predictions(trials: int) -> Iterator[dict[str, Any]]:
    """Yield for each damage what each gate said, under both rules against the champion."""
    name, num_rows, num_groups = REAL
    trained = train(name, num_rows, NUM_RUNS)
    for title, damage in DAMAGES.items():
        rules: tuple[ChampionRule, ...] = ("non_inferiority", "superiority")
        for rule in rules:
            yield {
                "damage": title,
                "rule": rule,
                "groups": num_groups,
                **stopped(trained, damage, trials, num_groups, rule),
            }


def general(trials: int) -> Iterator[dict[str, Any]]:
    """Yield what the gate says of a language model before and after its general ability was destroyed; on so
    many texts.
    """
    import torch

    from fullft_assets.models.token_loss import score_documents

    model, chunks = _smollm2(trials)

    def loss() -> float:
        found = score_documents(model, chunks, None)
        return float(found.loss.sum() / found.num_tokens.sum())

    before = loss()
    kept = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    layers = model.config.num_hidden_layers
    for title, part in (
        ("none, rounded to bf16", ""),
        ("a layer drawn anew", f"layers.{layers // 2}."),
        ("the first layer drawn anew", "layers.0."),
    ):
        with torch.no_grad():
            torch.manual_seed(1)
            for name, weight in model.named_parameters():
                weight.copy_(kept[name])
                if not part:
                    weight.copy_(weight.to(torch.bfloat16))
                elif part in name and weight.dim() > 1:
                    weight.copy_(torch.randn_like(weight) * weight.std())
        after = loss()
        found = Forgetting(
            measure="loss", before=before, after=after, rise=after - before, num_trainings=1, num_unmeasured=0
        )
        budget = found.budget
        assert budget is not None, "of a loss there is one"
        yield {
            "damage": title,
            "before": round(before, 3),
            "after": round(after, 3),
            "forgetting_is_within_budget": found.rise <= budget,
        }


def _smollm2(count: int) -> tuple[Any, list[list[list[int]]]]:
    """Return SmolLM2-135M and the chunks, of 128 tokens, of documentation in Python's library."""
    import tempfile
    from itertools import islice
    from pathlib import Path

    from fullft_assets.base_model import resolve_base_model
    from fullft_assets.chunks import Tokenization
    from fullft_assets.demos import standard_library
    from fullft_assets.models.inference import load_causal
    from fullft_assets.settings import ChunksSettings

    with tempfile.TemporaryDirectory() as folder:
        base = resolve_base_model(str(standard_library.write_model(Path(folder) / "smollm2")), Path(folder))
        tokenization = Tokenization.load(
            base, ChunksSettings(max_tokens=128, stride=0, max_chunks=1), "language_modeling"
        )
        texts = [document["text"] for document in islice(standard_library.general(), min(count, 20))]
        return load_causal(base), tokenization.chunks(texts)


def main(arguments: Sequence[str]) -> Iterator[str]:
    """Yield a line of JSON a damage."""
    return measure_parts(
        arguments, {"predictions": predictions, "general": general}, trials=100, about=__doc__
    )


if __name__ == "__main__":
    for line in main(sys.argv[1:]):
        print(line, flush=True)
