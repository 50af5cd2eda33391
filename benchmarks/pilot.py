"""What the pilot promises against what full trainings reach: `python -m benchmarks.pilot`, a table in
Markdown.

`benchmarks/data/pilot_curves.jsonl` has real trainings of MiniLM on public sets: the pilot and the whole
training, the head as the rows of each fit it, and TF-IDF (a dictionary for spans); `--measure SET ...` adds
some, minutes of a core each. Counted are how often the 90% interval covers the score of the full training and
how wide it is; the verdict against the best baseline, and whether it came true; how often a training is
refused that is better, or worse, than a baseline by so much, also where the pilot failed or learned nothing;
and what share of the rows it takes. The drawn curves take off behind the pilot's rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fullft_assets.planning.pilot import Point, PredictedScore, pilot_check, pilot_rows, predict_score
from fullft_assets.settings import PlanningSettings

CURVES = Path(__file__).with_name("data") / "pilot_curves.jsonl"
SETS = ("sections", "functions", "diagnoses", "tags", "reviews", "entities")
#: Of these SmolLM2-135M learns the texts.
LANGUAGE_SETS = ("sections", "diagnoses", "functions", "expressions", "mails", "reviews")
BATCH_SIZE, NUM_ROWS, NUM_DRAWN = 32, 3_000, 40
#: Packed rows that a language model learns, and texts that fill as many.
_NUM_PACKED_ROWS, _NUM_TEXTS = 640, 4_000
#: True gains over a baseline, in the metric's units.
GAINS = (0.02, -0.05, -0.1, -0.2)


@dataclass(frozen=True)
class Curve:
    """A pilot and the training that it predicts, scored on validation rows.

    Attributes:
        pilot: `rows`, `start` and `score` of its training, and `baseline`, the better one of the head and of
            TF-IDF (a dictionary) on its rows.
        start: score of the head that all rows fit.
        baseline: score of TF-IDF or of a dictionary on all rows.
        floor: score of the weakest baseline.
    """

    name: str
    pilot: dict[str, float]
    num_rows: int
    num_validation_rows: int
    start: float
    baseline: float
    outcome: float
    floor: float = 0.0
    is_language: bool = False

    @property
    def prediction(self) -> PredictedScore:
        """What the pilot predicts."""
        point = Point.model_validate(self.pilot)
        return predict_score(
            point,
            max(self.start, self.baseline),
            self.num_rows,
            self.num_validation_rows,
            in_nats=self.is_language,
        )

    def verdict(self, baseline: float) -> str:
        """Return go, no-go or open against a baseline that scores so much."""
        baselines = {"weakest": self.floor, "best": baseline}
        return str(pilot_check(self.prediction, baselines, PlanningSettings()).metadata["verdict"])

    @property
    def failed(self) -> Curve:
        """The curve whose pilot learned nothing and lost its start."""
        return replace(self, pilot={**self.pilot, "score": self.floor})

    @property
    def flat(self) -> Curve:
        """The curve whose pilot learned nothing yet."""
        return replace(self, pilot={**self.pilot, "score": self.pilot["start"]})


def late_curve(seed: int) -> Curve:
    """Return a drawn curve that stays at its floor for all of the pilot's rows and then rises."""
    rng = np.random.default_rng([11, seed])
    outcome = rng.uniform(0.5, 0.9)
    rows = pilot_rows(3_200, PlanningSettings().pilot_share, BATCH_SIZE)
    score = max(0.0, 0.1 + rng.normal(0, 0.01))
    pilot = {"rows": rows, "start": 0.1, "score": score, "baseline": 0.1}
    return Curve("drawn, late", pilot, 3_200, 800, 0.1, 0.1, outcome, floor=0.1)


def _fit(recipe: Any, settings: Any, bench: Any) -> Any:
    from fullft_assets.training.finetuning import fine_tune

    with tempfile.TemporaryDirectory() as folder:
        return fine_tune(
            recipe,
            settings.training,
            settings.seed,
            Path(folder),
            bench.progress,
            evaluate_at=[],
            resumable=False,
        )


def measured_curve(name: str, root: Path, first: int) -> Curve:
    """Train on a pilot's rows and on all rows, beginning with this one of the set's training rows."""
    from benchmarks import public_sets, recipes
    from fullft_assets.tasks.context import baseline_context

    cut = {"max_tokens": 48, "max_chunks": 1}
    rows = {"max_train_rows": 2 * NUM_ROWS, "max_validation_rows": 1_000}
    if not (root / ".home").exists():
        public_sets.measure(name, root, rows=20_000, snapshot=rows, chunks=cut)
    bench = recipes.Bench(name, root)
    metric = bench.job.settings.primary_metric
    positions = range(first, min(first + NUM_ROWS, bench.whole.num_rows))
    whole = replace(bench.whole, train=bench.whole.train.select(positions))
    settings = bench.job.settings.with_epochs(whole.num_rows)
    names = [name for name in settings.baselines if name not in ("majority", "label_shares", "no_spans")]
    share = settings.planning.pilot_share
    scores: list[dict[str, Any]] = []
    for count in (pilot_rows(whole.num_rows, share, BATCH_SIZE), whole.num_rows):
        recipe = whole.first(count)
        context = baseline_context(bench.job, bench.store, bench.frozen, bench.progress)
        with tempfile.TemporaryDirectory() as folder:
            fitted = dict(recipe.score_baselines(names, Path(folder), context))
        fit = _fit(recipe, settings, bench)
        other, start = (fitted[name][metric] for name in names)
        score = fit.scores[f"validation_{metric}"]
        scores.append({"rows": count, "start": start, "other": other, "score": score})
    full = scores[1]
    pilot = {key: scores[0][key] for key in ("rows", "start", "score")}
    pilot["baseline"] = max(scores[0]["start"], scores[0]["other"])
    num_validation_rows = len(bench.whole.validation)
    return Curve(
        name, pilot, whole.num_rows, num_validation_rows, full["start"], full["other"], full["score"]
    )


def language_curve(name: str, root: Path) -> Curve:
    """Train SmolLM2-135M on the texts of a pilot's rows and on those of all rows."""
    from benchmarks import public_sets, recipes
    from fullft_assets.demos import standard_library

    if not (root / ".home").exists():
        outcome = public_sets.measure(
            name,
            root,
            model=standard_library.write_model(public_sets.REPOSITORY / "build" / "public-sets" / "smollm2"),
            rows=6_000,
            snapshot={"max_train_rows": _NUM_TEXTS, "max_validation_rows": 150},
            chunks={"max_tokens": 48, "max_chunks": 1},
            examples={"task": "language_modeling", "label": None},
        )
        if outcome.returncode:
            raise SystemExit("\n".join(outcome.last_lines))
    bench = recipes.Bench(name, root)
    settings = bench.job.settings
    num_rows = min(_NUM_PACKED_ROWS, bench.whole.num_rows)
    scores, nats = [], []
    for count in (pilot_rows(num_rows, settings.planning.pilot_share, BATCH_SIZE), num_rows):
        recipe = bench.whole.first(count)
        base = recipe.predict(recipe.load(settings.training), recipe.validation, bench.progress)
        fit = _fit(recipe, settings, bench)
        tuned = recipe.predict(fit.model, recipe.validation, bench.progress)
        gains = (base.loss - tuned.loss) / base.num_tokens.mean()
        nats.append((float(gains.mean()), float(gains.std() / len(gains) ** 0.5)))
        start = base.token_probability()
        scores.append({"rows": count, "start": start, "score": tuned.token_probability()})
    print(name, "gain in nats, standard error:", nats, file=sys.stderr, flush=True)
    pilot = scores[0] | {"baseline": scores[0]["start"]}
    return Curve(
        name,
        pilot,
        num_rows,
        len(bench.whole.validation.chunks),
        scores[1]["start"],
        0.0,
        scores[1]["score"],
        is_language=True,
    )


def _row(name: str, curves: Sequence[Curve]) -> str:
    predictions = [curve.prediction for curve in curves]
    covered = [
        prediction.low <= curve.outcome <= prediction.high
        for prediction, curve in zip(predictions, curves, strict=True)
    ]
    best = [max(curve.start, curve.baseline) for curve in curves]
    verdicts = [curve.verdict(score) for curve, score in zip(curves, best, strict=True)]
    came_true = [
        (curve.outcome > score) == (verdict == "go")
        for curve, score, verdict in zip(curves, best, verdicts, strict=True)
        if verdict != "open"
    ]
    counts = " / ".join(str(verdicts.count(verdict)) for verdict in ("go", "open", "no-go"))
    refused = [
        np.mean([curve.verdict(curve.outcome - gain) == "no-go" for curve in curves]) for gain in GAINS
    ]
    lost = [
        np.mean([curve.verdict(outcome - GAINS[0]) == "no-go" for curve, outcome in pilots])
        for pilots in (
            [(curve.failed, curve.outcome) for curve in curves],
            [(curve.flat, curve.outcome) for curve in curves],
        )
    ]
    cost = np.mean([curve.pilot["rows"] / curve.num_rows for curve in curves])
    cells = [
        f"{np.mean(covered):.2f}",
        f"{np.mean([prediction.high - prediction.low for prediction in predictions]):.2f}",
        counts,
        f"{sum(came_true)} of {len(came_true)}",
        *(f"{share:.2f}" for share in [*refused, *lost, cost]),
    ]
    return f"| {' | '.join([f'{name}, {len(curves)}', *cells])} |"


def main(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the table, or of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs="*", default=[], choices=[*SETS, *LANGUAGE_SETS], metavar="SET")
    parser.add_argument("--language", action="store_true", help="SmolLM2-135M learns the sets' texts")
    parser.add_argument("--projects", type=Path, help="folder in which projects are kept between runs")
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fullft-pilot-") as scratch:
        for first in (0,) if parsed.language else (0, NUM_ROWS):
            for name in parsed.measure:
                root = (parsed.projects or Path(scratch)) / f"{name}-{parsed.language}"
                root.mkdir(parents=True, exist_ok=True)
                curve = language_curve(name, root) if parsed.language else measured_curve(name, root, first)
                with CURVES.open("a") as file:
                    yield json.dumps(asdict(curve))
                    print(json.dumps(asdict(curve)), file=file)
    if parsed.measure:
        return
    every = [Curve(**json.loads(line)) for line in CURVES.read_text().splitlines()]
    curves = [curve for curve in every if not curve.is_language]
    yield (
        "| set, curves | covered | mean width | go / open / no-go | came true | +2 points refused | -5 | -10"
        " | -20 | +2 refused, pilot failed | pilot flat | rows |"
    )
    yield "|---|--:|--:|---|---|--:|--:|--:|--:|--:|--:|--:|"
    for name in dict.fromkeys(curve.name for curve in curves):
        yield _row(name, [curve for curve in curves if curve.name == name])
    yield _row("all", curves)
    yield _row("language models", [curve for curve in every if curve.is_language])
    yield _row("drawn, late", [late_curve(seed) for seed in range(NUM_DRAWN)])


if __name__ == "__main__":
    for line in main(sys.argv[1:]):
        print(line, flush=True)
