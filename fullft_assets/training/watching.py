"""What watches a training segment: the validation of its weights, and its guards with what follows from their
findings (a warning, a roll-back, the end of training).
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from fullft_assets.checkpoint import GENERAL_MEASURES, score_before
from fullft_assets.errors import DivergenceError
from fullft_assets.models.inference import scoring
from fullft_assets.progress import Listener
from fullft_assets.ranks import is_first_rank
from fullft_assets.settings import TrainingSettings
from fullft_assets.training import ranks
from fullft_assets.training.checkpoints import (
    Checkpoint,
    Incident,
    IncidentKind,
    RunHistory,
    complete_checkpoints,
    last_good,
)
from fullft_assets.training.guards import GuardFinding, GuardSet, PlannedRun, StepMetrics
from fullft_assets.training.recipe import Recipe
from fullft_assets.training.recorder import StepRecorder
from fullft_assets.training.stored_checkpoints import StoredCheckpoints

#: Name of the rule in incidents and in the step log.
RULE = "max_general_rise"
_FIX = (
    "snapshot.replay, training.distillation, a lower learning_rate or training.wise_ft make a model forget"
    " less"
)


class Validator:
    """Scores the weights of a training segment on the validation rows and on the general set, whose rise over
    the score before training may have a budget, and records their scores.
    """

    def __init__(self, recipe: Recipe, max_rise: float | None, recorder: StepRecorder):
        self._recipe = recipe
        self.max_rise = max_rise
        self._recorder = recorder

    def score_before(self, model: PreTrainedModel) -> None:
        """Score the weights that training begins with on the general set, once a run."""
        recorder = self._recorder
        if score_before(recorder.log.lines) is not None:
            return
        with scoring():
            scores = ranks.deal_passes(partial(self._recipe.score_general, model), recorder.progress)
        if not all(map(math.isfinite, scores.values())):
            raise DivergenceError(
                "snapshot.general: the outputs of the weights that training begins with are not finite on it"
            )
        if scores:
            recorder.record({"step": 0, **scores})
            recorder.progress.say(f"before training: {in_words(scores)}")

    def score(self, model: PreTrainedModel, listener: Listener) -> dict[str, float]:
        """Return the scores of a model, not wrapped: `validation_loss` and others; and with a general set its
        score there and `general_rise`, the rise over the score before training.
        """
        scores = {f"validation_{name}": value for name, value in self._recipe.score(model, listener).items()}
        for name, value in self._recipe.score_general(model, listener).items():
            before = score_before(self._recorder.log.lines)
            assert before is not None, "the general set is scored before training"
            scores |= {name: value, "general_rise": value - before}
        return scores

    def score_now(self, model: PreTrainedModel) -> dict[str, float]:
        """Return the `score` of a model in all processes, which must all call this."""
        with scoring():
            return ranks.make_passes(
                model, lambda listener: self.score(model, listener), self._recorder.progress
            )

    def validate(self, step: int, model: PreTrainedModel) -> dict[str, Any]:
        """Score the weights after a step; return the recorded line."""
        with scoring():
            scores = ranks.deal_passes(partial(self.score, model), self._recorder.progress)
        line = {"step": step, **scores}
        self._recorder.record(line)
        by_name = {name.removeprefix("validation_"): value for name, value in scores.items()}
        self._recorder.progress.say(f"step {step}: validation {in_words(by_name)}")
        return line

    def is_spent(self, scores: Mapping[str, Any]) -> bool:
        """Return whether a model with these scores has forgotten more than the budget; a score that is not a
        number is over it.
        """
        return self.max_rise is not None and not scores["general_rise"] <= self.max_rise

    def spent_budget(self, step: int, scores: Mapping[str, Any]) -> GuardFinding:
        """Return the finding for a spent budget, which ends the run."""
        name = next(name for name in GENERAL_MEASURES if name in scores)
        return GuardFinding(
            RULE,
            "stop",
            step,
            step,
            f"{name} {scores[name]:.4f} is {scores['general_rise']:.4f} above the one before training,"
            f" max_general_rise is {self.max_rise:g}",
            _FIX,
        )

    def over_budget(self, step: int) -> DivergenceError:
        """Return the error of a run without any scored weights within the budget."""
        return DivergenceError(
            f"no scored weights, up to step {step:,}, are within training.max_general_rise"
            f" ({self.max_rise:g}); {_FIX}; or raise it"
        )

    def best_step(self) -> int | None:
        """Return the scored step with the lowest validation loss within the forgetting budget."""
        return self._recorder.log.best_step(self.max_rise)


def in_words(scores: dict[str, float]) -> str:
    """Return scores by name as one line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())


#: Roll-backs of a run at most, and the factor of each on the learning rate.
MAX_ROLL_BACKS = 2
RATE_FACTOR = 0.5


class RolledBack(Exception):
    """The segment ends before the run does: training continues from an earlier checkpoint with a lower rate;
    the run history has both.
    """


class GuardActions:
    """The guards of one segment and what follows from their findings.

    Args:
        checkpoints: checkpoints that need not be on this machine's disk.
        before_roll_back: called before a checkpoint is chosen to roll back to.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        recorder: StepRecorder,
        history: RunHistory,
        *,
        num_steps: int,
        resumable: bool,
        checkpoints: StoredCheckpoints | None = None,
        before_roll_back: Callable[[], None] = lambda: None,
    ):
        self._settings = settings
        self._before_roll_back = before_roll_back
        self._recorder = recorder
        self._history = history
        self._resumable = resumable
        self._stored = checkpoints
        self._guards = GuardSet(settings.guards, PlannedRun(num_steps))
        self._guards.replay(recorder.log.lines)

    def check(self, line: dict[str, Any]) -> None:
        """Show the guards a line of the step log that is neither an event nor yet shown, and act on their
        findings.

        Raises:
            DivergenceError: the run ends.
            RolledBack: it continues from an earlier checkpoint.
        """
        findings = self._guards.observe(StepMetrics.of_line(line))
        for finding in findings:
            if finding.action == "warn":
                self._recorder.record(finding.line())
                self._say(finding.step, f"warning: {finding.rule}: {finding.reason}; {finding.fix}")
        if findings and findings[0].action in ("roll_back", "stop"):
            self._act(findings[0])

    def _act(self, finding: GuardFinding) -> None:
        num_roll_backs = self._history.num_roll_backs if finding.action == "roll_back" else MAX_ROLL_BACKS
        # What is wrong at the first step was wrong in the loaded weights: a lower rate does not fix them.
        if num_roll_backs < MAX_ROLL_BACKS and not (finding.rule == "non_finite" and finding.step == 1):
            self._roll_back(finding)
        if finding.rule == "overfitting":
            self.end_early(finding)
            return
        self._recorder.record(finding.line())
        is_in_vain = finding.action == "roll_back" and num_roll_backs > 0
        raise DivergenceError(
            f"training stopped at step {finding.step:,} by its guard {finding.rule}: {finding.reason}"
            f"{f'; {num_roll_backs} roll-backs did not help' if is_in_vain else ''}; {finding.fix}"
        )

    def _roll_back(self, finding: GuardFinding) -> None:
        self._before_roll_back()
        checkpoints: list[Checkpoint] = []
        if self._resumable and is_first_rank():  # only the first process sees all checkpoints
            checkpoints += complete_checkpoints(self._recorder.log.path.parent, self._history)
            checkpoints += [] if self._stored is None else self._stored.complete(self._history)
        to_step = ranks.from_first(last_good(checkpoints, finding.since))
        rate = self._settings.peak_rate * RATE_FACTOR
        self._history.add(self._incident("roll_back", finding, to_step, learning_rate=rate))
        start = f"step {to_step:,}" if to_step else "the base model"
        self._say(
            finding.step,
            f"{finding.rule}: {finding.reason}; rolled back to {start}, learning rate {rate:.3g}",
        )
        raise RolledBack

    def end_early(self, finding: GuardFinding) -> None:
        """Make the step of a finding the last one of the run."""
        if self._history.end_step is not None:  # decided before a kill
            return
        incident = self._incident("early_stop", finding, finding.step)
        self._history.add(incident)
        self._recorder.record(incident.line())
        self._say(finding.step, f"training ends here: {finding.rule}: {finding.reason}")

    def _incident(
        self, kind: IncidentKind, finding: GuardFinding, to_step: int, learning_rate: float | None = None
    ) -> Incident:
        return Incident(
            kind,
            finding.step,
            to_step,
            finding.reason,
            round(self._recorder.seconds, 3),
            rule=finding.rule,
            learning_rate=learning_rate,
        )

    def _say(self, step: int, message: str) -> None:
        self._recorder.progress.say(f"step {step:,}: {message}")
