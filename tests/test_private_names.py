"""A name of a library that this project overrides or sets is missing: the module that relies on it says so
when it is imported.
"""

import inspect
import os
import runpy
from types import ModuleType

import dagster as dg
import pytest
from dagster._core.launcher import RunLauncher
from dagster.components.core import decl
from transformers import PretrainedConfig, dynamic_module_utils, initialization

from fullft_assets.errors import SettingsError

_RENAMED = [
    (PretrainedConfig, "_attn_implementation", "models.loading"),
    (PretrainedConfig, "_experts_implementation", "models.loading"),
    (dynamic_module_utils, "HF_MODULES_CACHE", "models.loading"),
    (initialization, "_is_hf_initialized", "models.inference"),
    (decl, "find_defs_or_component_yaml", "component"),
    (dg.SensorDefinition, "evaluate_tick", "automation.ticks"),
    (dg.SensorEvaluationContext, "_instance", "automation.ticks"),
    (RunLauncher, "check_run_worker_health", "resources.run_workers"),
]


@pytest.mark.parametrize(("owner", "name", "module"), _RENAMED, ids=[name for _, name, _ in _RENAMED])
def test_a_renamed_name_is_one_line_at_import(
    owner: type | ModuleType, name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(owner, name, raising=False)
    # An attribute of instances is looked up in the source.
    monkeypatch.setattr(inspect.getmodule(owner), "__file__", os.devnull)
    with pytest.raises(SettingsError, match=rf"^\w+ [\d.]+ has no \S+\.{name}, which [^\n]+$"):
        runpy.run_module(f"fullft_assets.{module}")
