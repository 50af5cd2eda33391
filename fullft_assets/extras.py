"""Modules that only an extra of this package installs: each is imported where a setting or a file
needs it.
"""

from importlib import util

from fullft_assets.errors import SettingsError

_MODULES = {
    "alerts": ("apprise",),
    "aws": ("boto3",),
    "buckets": ("obstore",),
    "kreuzberg": ("kreuzberg",),
    "kubernetes": ("kubernetes",),
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
