"""checkpoint: the settings that determine a checkpoint, its checks, and its lineage; `training` makes it."""

from fullft_assets.checkpoint.key import (
    CHECKS,
    GENERAL_MEASURES,
    STEP_LOG,
    VERSION,
    checks,
    key_settings,
    plan_settings,
    read_step_log,
    score_before,
)
