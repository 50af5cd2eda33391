"""What other packages have to have: modules that only an extra of this package installs, each imported where
a setting or a file needs it, and names of libraries.
"""

import re
import sys
from collections.abc import Iterable
from importlib import util
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from fullft_assets.errors import SettingsError

_MODULES = {
    "alerts": ("apprise",),
    "aws": ("boto3",),
    "buckets": ("obstore",),
    "kreuzberg": ("kreuzberg",),
    "kubernetes": ("kubernetes", "dagster_ray"),
    "office": ("docx", "openpyxl", "striprtf"),
    "ray": ("ray",),
    "ui": ("dagster_webserver",),
}
EXTRAS = {module: extra for extra, modules in _MODULES.items() for module in modules}


def problem_without(module: str) -> str | None:
    """Return `needs MODULE` with the command that installs it, or None where it is installed."""
    return needs(module) if util.find_spec(module) is None else None


def needs(module: str) -> str:
    """Return `needs MODULE` with the command that installs it."""
    return f"needs {module}; pip install 'fullft-assets[{EXTRAS[module]}]'"


def require(module: str, user: str) -> None:
    """Refuse to go on without a module.

    Raises:
        SettingsError: it is not installed; names what needs it and the extra.
    """
    if (problem := problem_without(module)) is not None:
        raise SettingsError(f"{user} {problem}")


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
