"""release: a candidate becomes champion only if it passes its gates; the champion is a pointer with a history."""

from fullft_assets.evaluation.verdict import ReleaseVerdict, verdict
from fullft_assets.release.champion import MAX_HISTORY, Champion, promote, read_anchor, read_champion, read_history, rollback
from fullft_assets.release.decision import JudgedAgainst, ReleaseOutcome, champion_rule, judged_against, publish, recipe_digest
from fullft_assets.release.metadata import ChampionMetadata
from fullft_assets.release.model_card import CARD, VERSION
