"""Labelled spans: a token classifier."""

from fullft_assets.tasks.token_classification.task import TASK
