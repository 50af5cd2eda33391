"""Which judged system is to become champion: chosen on the validation rows, and confirmed on the test rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fullft_assets.artifacts import BASELINE_MODEL
from fullft_assets.checkpoint import plan_settings
from fullft_assets.evaluation import FINETUNED, Evaluation, title
from fullft_assets.planning import BaselinesMetadata
from fullft_assets.settings import ReleaseSettings, UseCaseSettings
from fullft_assets.store import Manifest, artifact_key
from fullft_assets.task import BASELINES

#: Of what a `baseline_model` is written from.
VERSION = "1"
#: A prediction costs a pass of the base model: more than TF-IDF (0) and a smaller model (1), and less than a
#: prompt (3), which is a longer pass for each label, and a service (4).
_RANK_OF_FINETUNED = 2


def candidates(
    baselines: BaselinesMetadata, settings: ReleaseSettings, finetuned_score: float | None
) -> list[str]:
    """Return the systems that may become champion, the first choice first: of those within `release.worth` of
    the best the one that is cheapest to serve, then the others by their scores on the validation rows.

    Args:
        finetuned_score: of the fine-tuned model; None: there is none.
    """
    ranks = {name: BASELINES.get(name).serving_rank for name in baselines.scores}
    scores = {name: baselines.scores[name] for name, rank in ranks.items() if rank is not None}
    if settings.candidates == "finetuned":
        scores = {}
    if finetuned_score is not None:
        scores[FINETUNED], ranks[FINETUNED] = finetuned_score, _RANK_OF_FINETUNED
    enough = max(scores.values(), default=0.0) - settings.worth

    def place(name: str) -> tuple[bool, int | None, float]:
        is_near = scores[name] >= enough
        return not is_near, ranks[name] if is_near else 0, -scores[name]

    return sorted(scores, key=place)


def stored_settings(name: str, settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings of a `baseline_model`: what a later one of the same recipe shares."""
    trains = BASELINES.get(name).trainings(settings) > 0
    return {"training": {"baseline": name, **(plan_settings(settings) if trains else {})}}


def stored_key(name: str, inputs: Mapping[str, Manifest], settings: UseCaseSettings) -> str:
    """Return the key of a `baseline_model`.

    Args:
        inputs: `training_snapshot` and `cheaper_baselines`.
    """
    digests = {each: manifest.content_digest for each, manifest in inputs.items()}
    return artifact_key(BASELINE_MODEL, VERSION, stored_settings(name, settings), digests, settings.seed)


def choice_sentence(evaluation: Evaluation, *, is_rival_good: bool, worth: float, made: str) -> str:
    """Return why a baseline becomes champion.

    Args:
        evaluation: of the baseline.
        is_rival_good: the fine-tuned model passed its gates.
        made: what making both took, in words.
    """
    metric, name = evaluation.primary_metric, evaluation.candidate
    scores = evaluation.scores[metric]
    why = (
        f"which costs more to serve and was not better by {worth:g} (release.worth) on the validation rows"
        if is_rival_good
        else "which did not pass its gates"
    )
    return (
        f"The {title(name)} becomes champion: {title(metric)} {scores[name].estimate:.3f} on the test rows,"
        f" against {scores[FINETUNED].estimate:.3f} of the {title(FINETUNED)}, {why}; {made}."
    )
