"""loading: a model from its folder, from safetensors alone, and its own code only where the folder has the right to run it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    dynamic_module_utils,
)

from fullft_assets.base_model import ModelFolder, TrustedFolder, own_code
from fullft_assets.errors import SettingsError
from fullft_assets.jobs.launch import ERROR_FILE

_MAPPINGS = {
    AutoModel: MODEL_MAPPING,
    AutoModelForCausalLM: MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForSequenceClassification: MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForTokenClassification: MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
}


def read_config(folder: ModelFolder) -> PretrainedConfig:
    """Read a model's configuration.

    Raises:
        SettingsError: it takes code of the model's own, which may not run or cannot.
    """
    with _right_to_run(folder) as may_run:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=may_run)


def load(kind: type, folder: ModelFolder, **options: Any) -> Any:
    """Return what `kind.from_pretrained` makes of a folder.

    Args:
        kind: AutoModel, or one of those with a head.
        folder: with config.json and safetensors.
        options: of `from_pretrained`.

    Raises:
        SettingsError: it takes code of the model's own, which may not run or cannot.
    """
    with _right_to_run(folder) as may_run:
        return kind.from_pretrained(str(folder), use_safetensors=True, trust_remote_code=may_run, **options)


def has_kind(config: PretrainedConfig, kind: type) -> bool:
    """Return whether transformers, or the model's own code, has a model of this kind for a configuration."""
    return type(config) in _MAPPINGS[kind] or kind.__name__ in (getattr(config, "auto_map", None) or {})


@contextmanager
def _right_to_run(folder: ModelFolder) -> Iterator[bool]:
    """Say whether a folder's code may run, and put what its absence leads to into one line."""
    # The right is given to a use case, of whose models some may have no code: a champion made of an earlier base model.
    may_run = isinstance(folder, TrustedFolder) and bool(own_code(folder.path))
    if may_run:
        _take_private_folder()
    try:
        yield may_run
    except ValueError as error:
        if may_run or "trust_remote_code" not in str(error):
            raise
        raise SettingsError(
            f"base_model: {folder} brings code of its own, which does not run without trust_remote_code: true; read its Python files and set "
            "that if you trust them, or give a model whose architecture transformers has"
        ) from error
    except ImportError as error:
        if not may_run:
            raise
        raise SettingsError(f"base_model: the code in {folder} cannot be imported: {str(error).strip().splitlines()[0]}") from error


@cache
def _take_private_folder() -> None:
    """Have transformers copy the code that it runs into a folder of this process alone, which goes with it.

    By default it copies into the cache of the hub, from which it also imports: code that ran once stays there, and where that cache is
    shared, whoever can write to it has code run by all.
    """
    # Beside the launcher's other files, where there is one: it cleans up even where this process is killed.
    beside = os.environ.get(ERROR_FILE)
    folder = tempfile.mkdtemp(prefix="fullft-code-", dir=None if beside is None else Path(beside).parent)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # A constant to transformers, which takes it from the environment as it is imported.
    dynamic_module_utils.HF_MODULES_CACHE = folder
