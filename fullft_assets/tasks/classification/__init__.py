"""Classification with one label a row."""

from fullft_assets.tasks.classification.task import TASK
