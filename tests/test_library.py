"""The package in somebody else's Dagster project: installed from its wheel, scaffolded, checked; the demo
stays out of it.
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's wheel, built by pip."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--quiet",
        "--wheel-dir",
        str(folder),
    ]
    subprocess.run(command, check=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


class Library:
    """A fresh Dagster project that has the wheel on its path, and nothing of this repository."""

    def __init__(self, root: Path, installed: Path):
        self.root, self.installed = root, installed
        (root / "src" / "fresh" / "defs").mkdir(parents=True)
        for package in ("fresh", "fresh/defs"):
            (root / "src" / package / "__init__.py").touch()
        (root / "src" / "fresh" / "definitions.py").write_text(
            "from pathlib import Path\n\nfrom dagster import definitions,"
            " load_from_defs_folder\n\n\n@definitions\ndef defs():\n    return"
            " load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
        )
        (root / "pyproject.toml").write_text(
            '[project]\nname = "fresh"\nversion = "0.1.0"\n\n[tool.dg]\ndirectory_type = "project"\n\n'
            '[tool.dg.project]\nroot_module = "fresh"\n'
        )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
        environment |= {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{self.root / 'src'}{os.pathsep}{self.installed}",
        }
        return subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    def succeed(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def library(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The project with a scaffolded use case."""
    installed = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)  # what pip does with a wheel of plain Python
    made = Library(tmp_path_factory.mktemp("fresh"), installed)
    made.succeed("dg", "scaffold", "defs", "fullft_assets.FullFineTune", "my_case")
    return made


def test_the_wheel_holds_all_that_the_package_reads(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    tracked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "fullft_assets").rglob("*")
        if path.suffix in (".py", ".j2", ".yaml")
    }
    assert tracked <= held
    assert {name.split("/")[0] for name in held if ".dist-info/" not in name} == {"fullft_assets"}


def test_the_project_reads_the_wheel_and_not_this_checkout(library):
    found = library.succeed("python", "-c", "import fullft_assets; print(fullft_assets.__file__)")
    assert Path(found.strip()).is_relative_to(library.installed)


def test_the_component_is_listed_with_its_description(library):
    items = json.loads(library.succeed("dg", "list", "components", "--json"))["items"]
    listed = {found["key"]: found for found in items}
    found = listed["fullft_assets.FullFineTune"]
    assert found["summary"].startswith("Labelled documents in, a fully fine-tuned model")


def test_its_schema_documents_every_key(library):
    shown = library.succeed("dg", "utils", "inspect-component", "fullft_assets.FullFineTune")
    schema = json.loads(shown.split("Component schema:")[1])
    assert {"base_model", "documents", "examples"} == set(schema["required"])
    for name, section in schema["$defs"].items():
        if name.endswith("Settings"):
            assert all(field.get("description") for field in section["properties"].values()), name


def test_the_scaffolded_use_case_passes_every_check(library):
    assert "validated successfully" in library.succeed("dg", "check", "yaml")
    assert "loaded successfully" in library.succeed("dg", "check", "defs")
    assert library.succeed("fullft", "check", "my_case").startswith("my_case: ok\n")


def test_the_demo_stays_out_of_the_users_project(library):
    listed = json.loads(library.succeed("dg", "list", "defs", "--json"))
    assert {asset["group_name"] for asset in listed["assets"]} == {"my_case"}
    library.succeed("fullft", "prepare")
    assert [path.name for path in (library.root / "data").iterdir()] == ["my_case"]
    unknown = library.run("fullft", "check", "licences")
    assert unknown.stderr == "no use case `licences`; known: my_case\n"


def test_before_the_demos_documents_are_written_its_error_says_how(library):
    code = (
        "from fullft_assets.checking.project import DEFS; from fullft_assets.checking.validation import"
        " load_use_case; load_use_case(DEFS / 'licences' / 'defs.yaml', with_data=True)"
    )
    done = library.run("python", "-c", code)
    last = done.stderr.strip().splitlines()[-1]
    assert "documents.path: folder not found: data/licences/documents" in done.stderr
    assert last.endswith("`fullft prepare licences` writes the demo's")


def test_a_wrong_key_is_shown_with_file_line_and_fix(library):
    path = library.root / "src" / "fresh" / "defs" / "my_case" / "defs.yaml"
    right = path.read_text()
    path.write_text(right.replace("  base_model:", "  bas_model:", 1))
    try:
        shown = library.run("dg", "check", "yaml")
        assert shown.returncode == 1
        assert "bas_model" in shown.stdout + shown.stderr
        assert "defs.yaml" in shown.stdout + shown.stderr
        line, missing = library.run("fullft", "check", "my_case").stderr.splitlines()
        assert "bas_model: unknown key `bas_model`; did you mean `base_model`?" in line + missing
    finally:
        path.write_text(right)
