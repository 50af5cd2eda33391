"""A name of a library that this project overrides or sets is missing: the module that relies on it says so
when it is imported, or the server that does when it starts.
"""

import inspect
import os
import runpy
from collections.abc import Callable
from functools import partial
from types import ModuleType

import dagster as dg
import pytest
from dagster._cli import dev
from dagster._core.launcher import RunLauncher
from dagster._core.workspace.context import WorkspaceRequestContext
from dagster.components.core import decl
from dagster_webserver.webserver import DagsterWebserver
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PretrainedConfig, dynamic_module_utils, initialization

from fullft_assets.cli import webserver
from fullft_assets.errors import SettingsError

_RENAMED = [
    (PretrainedConfig, "_attn_implementation", "models.loading"),
    (PretrainedConfig, "_experts_implementation", "models.loading"),
    (dynamic_module_utils, "HF_MODULES_CACHE", "models.loading"),
    (initialization, "_is_hf_initialized", "models.inference"),
    *(
        (ImmutableSandboxedEnvironment, name, "chunks.bounded_template")
        for name in ("_generate", "call", "call_binop", "intercepted_binops")
    ),
    (decl, "find_defs_or_component_yaml", "component"),
    (dg.SensorDefinition, "evaluate_tick", "automation.ticks"),
    (dg.SensorEvaluationContext, "_instance", "automation.ticks"),
    (RunLauncher, "check_run_worker_health", "resources.run_workers"),
]


def remove(owner: type | ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A class may have it of another one; some are of instances alone.
    bases = owner.__mro__ if isinstance(owner, type) else (owner,)
    monkeypatch.delattr(next((base for base in bases if name in vars(base)), owner), name, raising=False)


@pytest.mark.parametrize(("owner", "name", "module"), _RENAMED, ids=[name for _, name, _ in _RENAMED])
def test_a_renamed_name_is_one_line_at_import(
    owner: type | ModuleType, name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(owner, name, monkeypatch)
    # An attribute of instances is looked up in the source.
    monkeypatch.setattr(inspect.getmodule(owner), "__file__", os.devnull)
    with pytest.raises(SettingsError, match=rf"^\w+ [\d.]+ has no \S+\.{name}, which [^\n]+$"):
        runpy.run_module(f"fullft_assets.{module}")


@pytest.mark.parametrize(
    ("owner", "name", "start"),
    [
        (DagsterWebserver, "create_asgi_app", webserver.main),
        (dg.DagsterInstance, "submit_run", webserver.main),
        (WorkspaceRequestContext, "source", webserver.main),
        (dev, "open_ipc_subprocess", partial(webserver.develop, [])),
    ],
)
def test_a_renamed_name_is_one_line_where_the_web_server_starts(
    owner: type | ModuleType, name: str, start: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(owner, name, monkeypatch)
    with pytest.raises(SettingsError, match=rf"^dagster\w* [\d.]+ has no \S+\.{name}, which [^\n]+$"):
        start()
