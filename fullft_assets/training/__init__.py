"""training: what of the settings makes a checkpoint, and what is said about one. The work itself is a workload."""

from fullft_assets.training.checkpoint import GENERAL_MEASURES, VERSION, checks, key_settings, plan_settings, score_before

__all__ = ["GENERAL_MEASURES", "VERSION", "checks", "key_settings", "plan_settings", "score_before"]
