"""Classification with several labels a row."""

from fullft_assets.tasks.multi_label.task import TASK
