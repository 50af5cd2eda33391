"""Gates of a release: each is one class, registered by name (`fullft_assets.gates`), ours and those of other
packages.
"""

from fullft_assets.evaluation.gates.base import ChampionRule, Gate, GateContext, GateResult
