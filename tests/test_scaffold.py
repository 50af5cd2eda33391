"""The scaffolded file runs as it is, and every commented key in it is true."""

import json
from pathlib import Path

import pytest
from dagster.components import ScaffoldRequest

from fullft_assets.checking.check import check_use_case
from fullft_assets.checking.validation import load_use_case
from fullft_assets.errors import SettingsError
from fullft_assets.scaffold import UseCaseScaffolder
from tests.project import write_files


def scaffold(project: Path, name: str, **changes: object) -> Path:
    target = project / "defs" / name
    target.mkdir(parents=True)
    (project / "pyproject.toml").touch()
    request = {"scaffold_format": "yaml", "project_root": project, "params": None} | changes
    UseCaseScaffolder().scaffold(
        ScaffoldRequest(type_name="fullft_assets.FullFineTune", target_path=target, **request)
    )
    return target / "defs.yaml"


def test_the_scaffold_loads_as_it_is_and_passes_the_check(tmp_path):
    use_case = load_use_case(scaffold(tmp_path, "my_case"))
    assert use_case.name == "my_case"
    report = check_use_case(use_case)
    assert "40 rows" in report
    assert "note" not in report
    rows = [json.loads(row) for row in (tmp_path / "data/my_case/sample.jsonl").read_text().splitlines()]
    assert sorted({row["label"] for row in rows}) == ["billing", "technical"]
    assert len({row["text"] for row in rows}) == 40


def test_a_folder_that_cannot_name_a_use_case_is_given_a_name(tmp_path):
    use_case = load_use_case(scaffold(tmp_path, "my-case"))
    assert use_case.name == "my_case"
    assert use_case.settings.documents.path == "data/my_case"


def test_documents_that_are_there_already_are_left_alone(tmp_path):
    write_files(tmp_path / "data/my_case", {"mine.csv": "text,label\na,b\n"})
    load_use_case(scaffold(tmp_path, "my_case"))
    assert [path.name for path in (tmp_path / "data/my_case").iterdir()] == ["mine.csv"]


@pytest.mark.parametrize("changes", [{"scaffold_format": "python"}, {"append": True}])
def test_another_form_is_refused_in_one_line(tmp_path, changes):
    with pytest.raises(SettingsError, match="one YAML file"):
        scaffold(tmp_path, "my_case", **changes)
