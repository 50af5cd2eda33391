"""model config: `config.json` of a model's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fullft_assets.errors import SettingsError


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model's `config.json`.

    Raises:
        SettingsError: there is none, or it is not a transformers model's.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SettingsError(f"{folder}: no config.json; this is not a model's folder") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise SettingsError(f"{path}: no `model_type`; this is not a transformers model")
    return config
