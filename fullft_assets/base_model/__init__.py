"""base model: a reference in the YAML -> a folder of weights, and what its headers contain. Never loads a
weight.
"""

from fullft_assets.base_model.header import BaseModelHeader, read_header, weights_digest, weights_files
from fullft_assets.base_model.reference import find_base_model, resolve_base_model, suggest_path
from fullft_assets.base_model.trusted_code import ModelFolder, TrustedFolder, copy_code, own_code, with_rights
