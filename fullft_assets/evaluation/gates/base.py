"""The protocol of a gate: what it is judged from, and what it answers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from fullft_assets.evaluation.base import Evaluation
from fullft_assets.evaluation.seed_noise import SeedNoise
from fullft_assets.planning.worth import Worth
from fullft_assets.settings import PlanningSettings, ReleaseSettings
from fullft_assets.settings.base import Settings
from fullft_assets.store.checks import CheckSpec

ChampionRule = Literal["superiority", "non_inferiority"]


class GateResult(BaseModel):
    """Result of one gate; `gate` is also the name of the check on `evaluation_report`.

    Attributes:
        is_undecided: it did not pass, but more test groups could show that it should.
        numbers: what the UI plots over evaluations.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate: str
    passed: bool
    text: str
    is_undecided: bool = False
    numbers: dict[str, int | float] = {}


@dataclass(frozen=True)
class GateContext:
    """What gates judge a candidate from.

    Attributes:
        rule: what the candidate must show against the champion.
        seed_noise: None: unknown; the comparison with the champion is one of two models then, not of their
            recipes.
        worth: whether the gain is worth its cost. None: not judged.
    """

    evaluation: Evaluation
    settings: ReleaseSettings
    rule: ChampionRule = "superiority"
    seed_noise: SeedNoise | None = None
    worth: Worth | None = None


class Gate(ABC):
    """One condition of a promotion. Subclass it, and register an instance by the gate's name.

    Attributes:
        name: name of the check on `evaluation_report`: what is true when it passes.
        description: the same in a sentence.
        advice: what to do when the gate says no, a clause.
        is_always: it judges each release; another gate only those that `release.gates` names it for.
        tasks: names of the tasks that it can judge; empty: all.
        options: the section that `release.gates` may give under the gate's name.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    advice: ClassVar[str]
    is_always: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[type[Settings]] = Settings

    @property
    def spec(self) -> CheckSpec:
        """The declaration of the gate's check."""
        return CheckSpec(self.name, self.description)

    def is_asked_for(self, settings: ReleaseSettings) -> bool:
        """Return whether the gate judges releases under these settings."""
        return self.is_always or self.name in settings.gates

    def has_check(self, release: ReleaseSettings, planning: PlanningSettings) -> bool:
        """Return whether there is a check of this gate under these settings."""
        return self.is_asked_for(release)

    @abstractmethod
    def judge(self, context: GateContext) -> GateResult | None:
        """Return whether the candidate passes and why, from the context alone. None: there is nothing to
        judge.
        """

    def result(
        self,
        passed: bool,
        text: str,
        numbers: Mapping[str, int | float] | None = None,
        *,
        is_undecided: bool = False,
    ) -> GateResult:
        """Return a result of this gate; numbers that are not finite are left out."""
        finite = {name: value for name, value in (numbers or {}).items() if math.isfinite(value)}
        return GateResult(gate=self.name, passed=passed, text=text, is_undecided=is_undecided, numbers=finite)

    def options_of(self, settings: ReleaseSettings) -> Any:
        """Return the options that `release.gates` gives this gate."""
        return self.options.model_validate(settings.gates.get(self.name, {}))
