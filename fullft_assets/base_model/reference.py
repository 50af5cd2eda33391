"""reference: a reference in the YAML -> a folder with a base model. Nothing is downloaded: definitions load
often, and without a network.

A base model is a folder with `config.json`, `tokenizer.json` and safetensors weights, in one file or in
shards with an index. A model of the Hugging Face hub is named by its commit and found in the hub's cache.
"""

import difflib
import importlib.util
import os
import re
from pathlib import Path

from fullft_assets.base_model.header import ModelFolder, with_rights
from fullft_assets.errors import SettingsError
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import locate

#: ORG/NAME as the hub allows it, with a revision or without.
_HUB_ID = re.compile(r"(?P<org>\w[\w.-]*)/(?P<name>\w[\w.-]*)(?:@(?P<revision>[^@\s]*))?", re.ASCII)


def find_base_model(settings: UseCaseSettings, project_root: Path) -> ModelFolder:
    """Return the folder of a use case's base model, with the right to run its code where the use case gives
    that.
    """
    return with_rights(resolve_base_model(settings.base_model, project_root), settings)


def resolve_base_model(reference: str, project_root: Path) -> Path:
    """Return the folder that a `base_model` reference names.

    Args:
        reference: a folder, relative to the project root or absolute; or `package:NAME/FOLDER`, a
            folder inside an installed Python package, which is not imported; or `ORG/NAME@COMMIT` of the hub.
        project_root: where relative references start.

    Raises:
        SettingsError: there is no such folder or package, or a model of the hub is not pinned or not in the
            cache.
    """
    if reference.startswith("package:"):
        return _resolve_in_package(reference)
    folder = locate(reference, project_root)
    if folder.is_dir():
        return folder
    hub_id = _HUB_ID.fullmatch(reference)
    if hub_id is not None and hub_id["revision"] is not None:
        return _resolve_in_hub_cache(hub_id["org"], hub_id["name"], hub_id["revision"])
    hint = suggest_path(reference, project_root) or (
        "; no model is downloaded: give a local folder, package:NAME/FOLDER, or pin a model of the hub:"
        f" {reference if hub_id else 'ORG/NAME'}@COMMIT, the 40 digits of a commit"
    )
    raise SettingsError(f"folder not found: {reference}{hint}")


def _resolve_in_hub_cache(org: str, name: str, revision: str) -> Path:
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise SettingsError(
            f"{org}/{name}@{revision} is not pinned (`{revision}` can move); write {org}/{name}@COMMIT with"
            " the 40 digits of a commit"
        )
    folder = hub_cache() / f"models--{org}--{name}" / "snapshots" / revision
    if not folder.is_dir():
        raise SettingsError(
            f"{org}/{name}@{revision} is not in the hub's cache ({hub_cache()}); `hf download {org}/{name}"
            f" --revision {revision} --include '*.json' '*.txt' '*.safetensors'` fetches it"
        )
    return folder


def hub_cache() -> Path:
    """Return the folder that the hub's libraries keep models in, as their environment variables define."""
    if (cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")) is not None:
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def _resolve_in_package(reference: str) -> Path:
    match = re.fullmatch(r"package:([A-Za-z_][A-Za-z0-9_]*)/(.+)", reference)
    if match is None:
        raise SettingsError(f"`{reference}` is not of the form package:NAME/FOLDER")
    name, inside = match.groups()
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError(f"package not found: {name}; pip install {name.replace('_', '-')}")
    root = Path(next(iter(spec.submodule_search_locations)))
    if not (root / inside).is_dir():
        raise SettingsError(
            f"folder not found: {inside} inside the package {name}{suggest_path(inside, root)}"
        )
    return root / inside


def suggest_path(path: str, root: Path) -> str:
    """Return `; did you mean ...?` for a path that does not exist, or an empty string where nothing is
    near.
    """
    absolute = locate(path, root)
    siblings = [sibling.name for sibling in absolute.parent.iterdir()] if absolute.parent.is_dir() else []
    near = difflib.get_close_matches(absolute.name, siblings, n=1, cutoff=0.6)
    if not near:
        return ""
    nearest = absolute.parent / near[0]
    return f"; did you mean `{nearest.relative_to(root) if nearest.is_relative_to(root) else nearest}`?"
