"""Sensors whose ticks share one Dagster instance: to open one, which Dagster does a tick, takes longer than
most ticks do.
"""

from collections.abc import Callable
from threading import Lock
from typing import Any

import dagster as dg

from fullft_assets.extras import require_names

require_names(dg.SensorDefinition, ("evaluate_tick", "with_attributes"))
require_names(dg.SensorEvaluationContext, in_source=("_instance",))
_instances: list[dg.DagsterInstance] = []
_lock = Lock()


class _Sensor(dg.SensorDefinition):
    """A sensor whose ticks use the instance that the last tick in this process opened, while its settings are
    the same.
    """

    def evaluate_tick(self, context: dg.SensorEvaluationContext) -> Any:
        # Private: a context takes an instance of a test only. tests/test_private_dagster.py names the
        # release.
        if context.instance_ref is not None and context._instance is None:
            with _lock:
                if not _instances or _instances[0].get_ref() != context.instance_ref:
                    _instances[:] = [dg.DagsterInstance.from_ref(context.instance_ref)]
                context._instance = _instances[0]
        return super().evaluate_tick(context)

    def with_attributes(self, **changes: Any) -> dg.SensorDefinition:
        changed = super().with_attributes(**changes)
        # Dagster resolves the jobs of a sensor in a copy, which is none of this class.
        changed.__class__ = _Sensor
        return changed


def sensor(**attributes: Any) -> Callable[[Callable[..., Any]], dg.SensorDefinition]:
    """Return a decorator that makes a sensor of a function, as `dg.sensor` does."""
    return lambda function: _Sensor(evaluation_fn=function, **attributes)
