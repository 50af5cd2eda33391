"""The `fullft` command as a person types it: help, check, errors, where it looks for use cases."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fullft_assets.checking.project import DEFS, find_defs
from fullft_assets.cli import commands, main
from tests.project import Project, write_files

ROOT = Path(__file__).parents[1]


def fullft(
    folder: Path, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a folder, without --defs."""
    return subprocess.run(
        [str(Path(sys.executable).parent / "fullft"), *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_in_a_dagster_project_its_own_use_cases_are_found(project):
    (project.root / "deep").mkdir()
    assert find_defs(project.root / "deep") == project.root / "my_project" / "defs"
    assert fullft(project.root / "deep", "check", "letters").stdout.startswith("letters: ok\n")


def test_elsewhere_the_shipped_use_cases_are_found(tmp_path):
    assert find_defs(tmp_path) == DEFS and find_defs(ROOT) == DEFS
    assert fullft(tmp_path, "check", "nothing").stderr.endswith("`nothing`; known: licence_texts, licences\n")


def test_a_broken_pyproject_is_one_line(project):
    (project.root / "pyproject.toml").write_text("[tool.dg\n")
    done = fullft(project.root, "check", "letters")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{project.root}/pyproject.toml: not TOML (")


def test_a_use_case_that_is_no_demo_is_not_prepared(project, capsys):
    assert main(["prepare", "letters", "--defs", str(project.root / "my_project" / "defs")]) == 0
    assert capsys.readouterr().out.startswith("letters is no demo: ")


def test_what_the_operating_system_refuses_is_one_line(monkeypatch, capsys):
    def refuse(_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/proc/nowhere")

    monkeypatch.setattr(commands, "_load", refuse)
    assert main(["report", "letters", "--defs", "."]) == 1
    assert capsys.readouterr().err == "/proc/nowhere: No such file or directory\n"


def test_a_bucket_that_does_not_answer_is_one_line(project: Project):
    nowhere = {"FULLFT_STORE": "s3://nowhere/store", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
    done = fullft(project.root, "files", "letters", env={**project.env(), **nowhere, **keys})
    assert done.returncode == 1
    assert re.fullmatch(r"s3://nowhere/store: [^\n]+\n", done.stderr)


def test_without_dagster_home_the_projects_own_is_used(project: Project):
    environment = {name: value for name, value in project.env().items() if name != "DAGSTER_HOME"}
    (project.root / "dagster.yaml").write_text((project.home / "dagster.yaml").read_text())
    (project.home / "dagster.yaml").unlink()
    assert fullft(
        project.root, "rollback", "letters", "--reason", "worse", env=environment
    ).stderr.startswith("letters: no champion ")
    assert os.readlink(project.home / "dagster.yaml") == str(project.root / "dagster.yaml")
    assert (project.home / "storage").is_dir() or (project.home / "history").is_dir()


@pytest.mark.slow
def test_ingest_makes_the_data_report_and_no_model_and_keeps_names_of_files_out_of_the_log(project: Project):
    project.configure(release={"min_effective_groups": 400})
    none = project.fullft("report", "letters", "data")
    assert none.returncode == 1
    assert "`fullft ingest letters` writes" in none.stderr
    write_files(
        project.documents, {"ward 7/letter of Ann.csv": 'text,kind\n"a quote that nobody closes,notice\n'}
    )
    printed = project.succeed("ingest", "letters")
    logged = project.logged()
    assert "letter of Ann" in printed
    assert "letter of Ann" not in logged, "the terminal has the name, the event log has not"
    (called,) = set(re.findall(r"file-[0-9a-f]{8}\.csv", logged))
    names = dict(line.split("  ", 1) for line in project.fullft("files", "letters").stdout.splitlines())
    assert len(names) == 2 and names[called].endswith("  ward 7/letter of Ann.csv")
    lines = printed.splitlines()
    page = next(line.split(maxsplit=2)[2] for line in lines if line.startswith("  data report"))
    assert "snapshot: training_snapshot done in " in printed
    assert "feasibility_plan" not in printed
    assert next(line for line in lines if line.startswith("  next")).endswith("fullft run letters")
    found = project.fullft("report", "letters", "data")
    assert (found.returncode, found.stdout) == (0, f"{page}\n")
    assert (report := Path(page).read_text(encoding="utf-8")).startswith("<!doctype html>")
    needs = " test groups, and a verdict needs 400 (release.min_effective_groups)"
    assert "check verdict_is_possible is yellow: " in printed
    assert needs in report
    assert needs in next(
        line for line in lines if line.startswith("  verdict        No verdict is possible: ")
    )
