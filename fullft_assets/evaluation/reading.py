"""Reading evaluations that were stored."""

from __future__ import annotations

import json

from fullft_assets.evaluation.base import Evaluation
from fullft_assets.task import TASKS

VERSION = "3"


def read_evaluation(text: str | bytes) -> Evaluation:
    """Return an evaluation that was stored as JSON, in the type of its task."""
    found = json.loads(text)
    return TASKS.get(found["task"]).evaluation_type().model_validate(found)
