"""Registrations: names are listed without imports, unknown ones get a hint, other packages add theirs by
entry points.
"""

from pathlib import Path

import pytest

from fullft_assets.errors import SettingsError
from fullft_assets.registry import Registry
from tests.other_package import install

pytestmark = pytest.mark.quick

GROUP = "fullft_assets.letters"


def registry() -> Registry:
    return Registry("letter", GROUP, {"alpha": "string:ascii_lowercase", "broken": "no_such_module:A"})


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    points = {GROUP: {"beta": "their_letters:BETA", "gone": "their_gone:G"}}
    metadata = install(tmp_path, "their-letters", {"their_letters.py": "BETA = 'b'\n"}, points)
    monkeypatch.syspath_prepend(str(tmp_path))
    return metadata


def test_ours_are_imported_when_asked_for() -> None:
    letters = registry()
    assert letters.names == ["alpha", "broken"]
    assert "alpha" in letters
    assert "beta" not in letters
    assert letters.get("alpha") == "abcdefghijklmnopqrstuvwxyz"
    with pytest.raises(ModuleNotFoundError):
        letters.get("broken")


def test_another_package_adds_one_by_an_entry_point(other_package: Path) -> None:
    letters = registry()
    assert list(letters) == ["alpha", "broken", "beta", "gone"]
    assert letters.get("beta") == "b"
    with pytest.raises(
        SettingsError, match=r"letter gone of package their-letters cannot be imported \(ModuleNotFoundError"
    ):
        letters.get("gone")


def test_unknown_names_list_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(
        SettingsError, match=r"unknown letter alpa: use one of alpha, broken; did you mean `alpha`\?"
    ):
        registry().get("alpa")


def test_a_taken_name_is_refused(other_package: Path) -> None:
    (other_package / "entry_points.txt").write_text(f"[{GROUP}]\nalpha = their_letters:BETA\n")
    with pytest.raises(SettingsError, match="letter alpha of package their-letters: .* taken"):
        list(registry().names)
