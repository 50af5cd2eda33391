"""Registrations: names are listed without imports, unknown ones get a hint, other packages add theirs by entry points."""

from __future__ import annotations

from pathlib import Path

import pytest

from fullft_assets.errors import SettingsError
from fullft_assets.registry import Registry

pytestmark = pytest.mark.quick

GROUP = "fullft_assets.letters"


def registry() -> Registry:
    return Registry("letter", GROUP, {"alpha": "string:ascii_lowercase", "broken": "no_such_module:A"})


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as pip installs one: a module, and metadata with entry points."""
    (tmp_path / "their_letters.py").write_text("BETA = 'b'\n")
    metadata = tmp_path / "their_letters-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-letters\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\nbeta = their_letters:BETA\ngone = their_gone:G\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return metadata


def test_ours_are_imported_when_asked_for() -> None:
    letters = registry()
    assert letters.names == ["alpha", "broken"] and "alpha" in letters and "beta" not in letters
    assert letters.get("alpha") == "abcdefghijklmnopqrstuvwxyz"
    with pytest.raises(ModuleNotFoundError):
        letters.get("broken")


def test_another_package_adds_one_by_an_entry_point(other_package: Path) -> None:
    letters = registry()
    assert list(letters) == ["alpha", "broken", "beta", "gone"]
    assert letters.get("beta") == "b"
    with pytest.raises(SettingsError, match=r"letter gone of package their-letters cannot be imported \(ModuleNotFoundError"):
        letters.get("gone")


def test_unknown_names_list_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"unknown letter alpa: use one of alpha, broken; did you mean alpha\?"):
        registry().get("alpa")


def test_a_taken_name_is_refused(other_package: Path) -> None:
    (other_package / "entry_points.txt").write_text(f"[{GROUP}]\nalpha = their_letters:BETA\n")
    with pytest.raises(SettingsError, match="letter alpha of package their-letters: the name is taken"):
        registry().names  # noqa: B018
