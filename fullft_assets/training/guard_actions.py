"""Shows the guards each step of a segment and acts on what they find: a warning, a roll-back, or the end of
training.
"""

from __future__ import annotations

from typing import Any

from fullft_assets.errors import DivergenceError, IdleError
from fullft_assets.jobs.ranks import is_first_rank
from fullft_assets.settings import TrainingSettings
from fullft_assets.training import ranks
from fullft_assets.training.checkpoints import Written, complete_checkpoints, last_good
from fullft_assets.training.guards import GuardFinding, GuardSet, PlannedRun, StepMetrics
from fullft_assets.training.recorder import StepRecorder
from fullft_assets.training.run_history import Incident, IncidentKind, RunHistory
from fullft_assets.training.stored_checkpoints import StoredCheckpoints

#: Roll-backs of a run at most, and the factor of each on the learning rate.
MAX_ROLL_BACKS = 2
RATE_FACTOR = 0.5


class SegmentOver(Exception):
    """The segment ends before the run does: another segment continues from a checkpoint."""


class RolledBack(SegmentOver):
    """Training continues from an earlier checkpoint with a lower rate; the run history has both."""


class GuardActions:
    """The guards of one segment and what follows from their findings.

    Args:
        stored: checkpoints that need not be on this machine's disk.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        recorder: StepRecorder,
        history: RunHistory,
        *,
        num_steps: int,
        resumable: bool,
        stored: StoredCheckpoints | None = None,
    ):
        self._settings = settings
        self._recorder = recorder
        self._history = history
        self._resumable = resumable
        self._stored = stored
        self._guards = GuardSet(settings.guards, PlannedRun(num_steps, settings.max_grad_norm))
        self._guards.replay(recorder.log.lines)

    def check(self, line: dict[str, Any]) -> None:
        """Show the guards a line of the step log that is neither an event nor yet shown, and act on their
        findings.

        Raises:
            DivergenceError, IdleError: the run ends.
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
        if finding.action == "roll_back" and self._may_roll_back(finding):
            self._roll_back(finding)
        elif finding.rule == "overfitting":
            self.end_early(finding)
        else:
            self._recorder.record(finding.line())
            tried = self._history.num_roll_backs if finding.action == "roll_back" else 0
            tried_in_vain = f"; {tried} roll-backs did not help" if tried else ""
            raise (IdleError if finding.rule == "idle" else DivergenceError)(
                f"training stopped at step {finding.step:,} by its guard {finding.rule}:"
                f" {finding.reason}{tried_in_vain}; {finding.fix}"
            )

    def _may_roll_back(self, finding: GuardFinding) -> bool:
        # What is wrong at the first step was wrong in the loaded weights: a lower rate does not fix them.
        is_in_loaded_weights = finding.rule == "non_finite" and finding.step == 1
        return not is_in_loaded_weights and self._history.num_roll_backs < MAX_ROLL_BACKS

    def _roll_back(self, finding: GuardFinding) -> None:
        # Only the first process sees all checkpoints.
        to_step = ranks.from_first(last_good(self._checkpoints(), finding.since) if is_first_rank() else 0)
        rate = self._settings.learning_rate * RATE_FACTOR
        self._history.add(self._incident("roll_back", finding, to_step, learning_rate=rate))
        place = f"step {to_step:,}" if to_step else "the base model"
        self._say(
            finding.step,
            f"{finding.rule}: {finding.reason}; rolled back to {place}, learning rate {rate:.3g}",
        )
        raise RolledBack

    def _checkpoints(self) -> list[Written]:
        if not self._resumable:
            return []
        stored = [] if self._stored is None else self._stored.complete(self._history)
        return [*complete_checkpoints(self._recorder.log.path.parent, self._history), *stored]

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
        seconds = round(self._recorder.seconds, 3)
        return Incident(
            kind,
            finding.step,
            to_step,
            finding.reason,
            seconds,
            rule=finding.rule,
            learning_rate=learning_rate,
        )

    def _say(self, step: int, message: str) -> None:
        self._recorder.progress.say(f"step {step:,}: {message}")
