"""release: a candidate becomes champion only if it passes its gates, or by hand; the champion is a pointer
with a history.
"""

from fullft_assets.evaluation.verdict import ReleaseVerdict, verdict
from fullft_assets.release.champion import (
    MAX_HISTORY,
    Champion,
    Intervention,
    ReleaseState,
    drop_from_history,
    freeze,
    kept_champions,
    promote,
    read_champion,
    read_history,
    read_state,
    rollback,
    unfreeze,
)
from fullft_assets.release.decision import (
    BASELINE_VERSION,
    JudgedAgainst,
    ReleaseOutcome,
    candidates,
    champion_rule,
    choice_sentence,
    judged_against,
    promote_by_hand,
    publish,
    recipe_digest,
    recorded_outcome,
    seed_runs,
    stored_baseline_key,
    stored_baseline_settings,
    verdict_outlook,
)
from fullft_assets.release.model_card import CARD, VERSION, ChampionMetadata, card_of
from fullft_assets.release.push import hand_over, push_champion, register_champion, try_to_hand_over
