"""Metrics: each is one object, registered by name; a task lists its own, `evaluation.metrics` adds others."""

from fullft_assets.evaluation.metrics.base import Metric, Predictions, SummedMetric, compute
