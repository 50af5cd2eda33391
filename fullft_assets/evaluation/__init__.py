"""evaluation: how good, how sure, where weak, and was full fine-tuning worth it. What all tasks share; each
task's own is in its folder.
"""

from fullft_assets.evaluation.base import VERSION, Evaluation, read_evaluation
from fullft_assets.evaluation.comparison import Comparison, Justification
from fullft_assets.evaluation.intervals import Interval
from fullft_assets.evaluation.titles import ANCHOR, BASE_MODEL, CHAMPION, FINETUNED, LOOK, SEED_RUN, title
