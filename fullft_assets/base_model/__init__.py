"""base model: a reference in the YAML -> a folder of weights, and what its headers contain. Never loads a
weight.
"""

from fullft_assets.base_model.header import (
    MODULES,
    WEIGHTS,
    BaseModelHeader,
    ModelFolder,
    TrustedFolder,
    copy_code,
    own_code,
    pooling_config,
    read_header,
    weights_digest,
    weights_files,
    with_rights,
)
from fullft_assets.base_model.licence import stated_licence
from fullft_assets.base_model.reference import find_base_model, resolve_base_model, suggest_path
