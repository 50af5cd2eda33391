"""base model: a reference in the YAML -> a folder of weights, and what its headers say. Never loads a weight."""

from fullft_assets.base_model.reference import (
    BaseModelHeader,
    ModelFolder,
    TrustedFolder,
    copy_code,
    find_base_model,
    own_code,
    read_header,
    resolve_base_model,
    suggest_path,
    weights_digest,
    weights_files,
    with_rights,
)

__all__ = [
    "BaseModelHeader",
    "ModelFolder",
    "TrustedFolder",
    "copy_code",
    "find_base_model",
    "own_code",
    "read_header",
    "resolve_base_model",
    "suggest_path",
    "weights_digest",
    "weights_files",
    "with_rights",
]
