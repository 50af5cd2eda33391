"""Names of libraries that this project overrides or sets: if a release renamed one, nothing else would report
it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from fullft_assets.errors import SettingsError


def require_names(
    owner: type | ModuleType, names: Iterable[str] = (), *, in_source: Iterable[str] = ()
) -> None:
    """Refuse a library whose class or module has no such names any more; call it when the module that relies
    on them is imported.

    Args:
        names: attributes of `owner` itself.
        in_source: attributes that only instances have; that the source of `owner`'s module contains the word
            counts.

    Raises:
        SettingsError: one is missing.
    """
    module = owner if isinstance(owner, ModuleType) else sys.modules[owner.__module__]
    missing = [name for name in names if not hasattr(owner, name)]
    if in_source:
        words = set(re.findall(r"\w+", Path(str(module.__file__)).read_text(encoding="utf-8")))
        missing += [name for name in in_source if name not in words]
    if missing:
        library = module.__name__.partition(".")[0]
        raise SettingsError(
            f"{library} {version(library)} has no {owner.__name__}.{missing[0]}, which this version of"
            f" fullft-assets overrides or sets; install an earlier release of {library}"
        )
