"""Loading a model from its folder: from safetensors alone, with code of its own only where the use case
trusts the folder.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

# Private: torch has no public name for it. tests/test_outline.py fails where a release moves it.
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
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
    PreTrainedModel,
    dynamic_module_utils,
)

from fullft_assets.base_model import ModelFolder, TrustedFolder, own_code
from fullft_assets.errors import SettingsError
from fullft_assets.jobs.launch import ERROR_FILE
from fullft_assets.models.private_names import require_names

#: In a configuration: how a classifier pools hidden states. ModernBERT's own classifier reads it, too.
POOLING = "classifier_pooling"
#: Whether models are made from their configuration alone.
_WITHOUT_WEIGHTS: ContextVar[bool] = ContextVar("without_weights", default=False)
#: Options of `from_pretrained` that are about the weights it reads.
_OF_WEIGHTS = ("ignore_mismatched_sizes", "output_loading_info")
#: Of `transformers.dynamic_module_utils`: the folder from which code of models is imported.
_CACHE_CONSTANT = "HF_MODULES_CACHE"
# Were one renamed, a model could choose a kernel of the hub, and code would be imported from a shared folder.
require_names(PretrainedConfig, ("_attn_implementation", "_experts_implementation"))
require_names(dynamic_module_utils, (_CACHE_CONSTANT,))
_MAPPINGS = {
    AutoModel: MODEL_MAPPING,
    AutoModelForCausalLM: MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForSequenceClassification: MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForTokenClassification: MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
}


def read_config(folder: ModelFolder) -> PretrainedConfig:
    """Read a model's configuration.

    Raises:
        SettingsError: it needs code of its own, which is not trusted or cannot be imported.
    """
    with _trust(folder) as is_trusted:
        return _config(folder, is_trusted, {})[0]


def load(kind: type, folder: ModelFolder, **options: Any) -> Any:
    """Return the result of `kind.from_pretrained` for a folder."""
    with _trust(folder) as is_trusted:
        if _WITHOUT_WEIGHTS.get():
            return _outline(kind, folder, is_trusted, options)
        dtype = {name: options.pop(name) for name in ("dtype",) if name in options}
        config, options = _config(folder, is_trusted, options)
        return kind.from_pretrained(
            str(folder), config=config, use_safetensors=True, trust_remote_code=is_trusted, **dtype, **options
        )


def has_kind(config: PretrainedConfig, kind: type) -> bool:
    """Return whether transformers, or the model's own code, has a model of this kind for a configuration."""
    return type(config) in _MAPPINGS[kind] or kind.__name__ in (getattr(config, "auto_map", None) or {})


@contextmanager
def without_weights() -> Iterator[FakeTensorMode]:
    """Make models of fake tensors, which have shapes and no values, from their configuration alone: no weight
    is read or held.

    Operations on them need no memory, and fail where they ask for a value. Yields the mode that later
    operations on them need.
    """
    token = _WITHOUT_WEIGHTS.set(True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        _WITHOUT_WEIGHTS.reset(token)


def is_outline(model: PreTrainedModel) -> bool:
    """Return whether a model has no weights, see `without_weights`."""
    return isinstance(next(iter(model.parameters()), None), FakeTensor)


def _outline(kind: Any, folder: ModelFolder, is_trusted: bool, options: dict[str, Any]) -> Any:
    """Return what `from_pretrained` would, without weights; every tensor counts as found in the folder."""
    dtype, about_weights = options.pop("dtype", None), {name: options.pop(name, None) for name in _OF_WEIGHTS}
    config, _ = _config(folder, is_trusted, options)
    if issubclass(kind, PreTrainedModel):
        model = kind._from_config(config, dtype=dtype)
    else:
        model = kind.from_config(config, dtype=dtype, trust_remote_code=is_trusted)
    loading_info: dict[str, list[Any]] = {"missing_keys": [], "mismatched_keys": []}
    return (model, loading_info) if about_weights["output_loading_info"] else model


def _config(
    folder: ModelFolder, is_trusted: bool, options: dict[str, Any]
) -> tuple[PretrainedConfig, dict[str, Any]]:
    """Return a model's configuration with these options in it, and the options that are not of the
    configuration.
    """
    pooling = options.pop("pooling", None)
    loaded: Any = AutoConfig.from_pretrained(
        str(folder), trust_remote_code=is_trusted, return_unused_kwargs=True, **options
    )
    config, other_options = loaded
    if pooling is not None:
        # Not an option of every configuration.
        setattr(config, POOLING, pooling)
    # `config.json` may name a kernel, which transformers would fetch from the hub and run: transformers' own
    # choice is used instead.
    config._attn_implementation = config._experts_implementation = None
    return config, other_options


@contextmanager
def _trust(folder: ModelFolder) -> Iterator[bool]:
    """Yield whether a folder's code may run; turn errors of code that may not run, or cannot, into one
    line.
    """
    # A use case that trusts its base model may also have models without code: a champion of an earlier base
    # model.
    is_trusted = isinstance(folder, TrustedFolder) and bool(own_code(folder.path))
    if is_trusted:
        _use_private_folder()
    try:
        yield is_trusted
    except ValueError as error:
        if is_trusted or "trust_remote_code" not in str(error):
            raise
        raise SettingsError(
            f"base_model: {folder} has code of its own, which does not run without trust_remote_code: true;"
            " read its Python files and set that if you trust them, or use a model whose architecture"
            " transformers has"
        ) from error
    except ImportError as error:
        if not is_trusted:
            raise
        raise SettingsError(
            f"base_model: the code in {folder} cannot be imported: {str(error).strip().splitlines()[0]}"
        ) from error


@cache
def _use_private_folder() -> None:
    """Make transformers copy the code that it runs into a temporary folder of this process.

    By default it copies into the cache of the hub and imports from there: code that ran once stays there, and
    in a shared cache everybody who can write to it can make others run code.
    """
    # Beside the launcher's files, if there is a launcher: it removes them even if this process is killed.
    beside = os.environ.get(ERROR_FILE)
    folder = tempfile.mkdtemp(prefix="fullft-code-", dir=None if beside is None else Path(beside).parent)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # transformers reads it from the environment when it is imported, and then uses this constant.
    setattr(dynamic_module_utils, _CACHE_CONSTANT, folder)
