"""A name of a library that this project overrides or sets is missing: the module that relies on it says so
when it is imported.
"""

import runpy

import pytest
from transformers import PretrainedConfig, dynamic_module_utils, initialization

from fullft_assets.errors import SettingsError
from fullft_assets.models.loading import require_names

_RENAMED = [
    (PretrainedConfig, "_attn_implementation", "fullft_assets.models.loading"),
    (PretrainedConfig, "_experts_implementation", "fullft_assets.models.loading"),
    (dynamic_module_utils, "HF_MODULES_CACHE", "fullft_assets.models.loading"),
]


@pytest.mark.parametrize(("owner", "name", "module"), _RENAMED, ids=[name for _, name, _ in _RENAMED])
def test_a_renamed_name_is_one_line_at_import(
    owner: type, name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(owner, name)
    with pytest.raises(SettingsError, match=rf"^transformers [\d.]+ has no \S+\.{name}, which [^\n]+$"):
        runpy.run_module(module)


def test_an_attribute_of_instances_is_looked_up_in_the_source() -> None:
    require_names(initialization, in_source=("_is_hf_initialized",))
    with pytest.raises(SettingsError, match=r"has no \S+\._is_hf,"):
        require_names(initialization, in_source=("_is_hf",))
