"""The wheel by itself: in an environment with its requirements and the demo's alone, in a project as
`create-dagster` makes it.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fullft_assets.demos import licences
from tests.project import write_files

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
#: As in tests/project.py: seconds for planning, training and evaluation together.
SMALL = {
    "chunks": {"max_tokens": 32, "max_chunks": 1, "stride": 4},
    "documents": {"max_batch_files": 100},
    "snapshot": {"min_train_rows": 20, "max_train_rows": 100, "max_validation_rows": 60},
    "training": {"epochs": 1, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 2e-4},
    "planning": {"min_predicted_gain": -1},
    "release": {"min_effective_groups": 2},
}


def run(*command: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DAGSTER_HOME"))
    }
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**environment, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    return done.stdout + done.stderr


def closure(requirements: list[str]) -> set[str]:
    """Return the names of the installed distributions that requirements need, and those need."""
    found: set[tuple[str, str]] = set()
    open_ends = [(Requirement(each), "") for each in requirements]
    while open_ends:
        requirement, extra = open_ends.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for extra in ("", *requirement.extras):
            if (key := (canonicalize_name(requirement.name), extra)) not in found:
                found.add(key)
                open_ends += [
                    (Requirement(each), extra) for each in importlib.metadata.requires(requirement.name) or []
                ]
    return {name for name, _ in found}


def link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with the wheel and what it needs for the demo: files of this environment,
    linked, and nothing else.
    """
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    here, there = (
        Path(sysconfig.get_path("purelib")),
        next((folder / "venv" / "lib").glob("python*/site-packages")),
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in closure([*project["dependencies"], *project["optional-dependencies"]["demo"]]):
        for file in importlib.metadata.files(name) or []:
            source = Path(os.path.normpath(here / file))
            # To compile all that a run imports takes longer than the run.
            for path in (source, Path(importlib.util.cache_from_source(str(source)))):
                target = there / os.path.relpath(path, here)
                if path.is_relative_to(here) and path.is_file() and not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    link_or_copy(path, target)
    # Refuses where a requirement of the wheel is not there.
    python = folder / "venv" / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-index",
        f"{wheel}[demo]",
        cwd=folder,
    )
    return python


def test_the_demo_runs_in_a_project_of_its_own_without_any_other_extra(python: Path, tmp_path: Path) -> None:
    run(
        Path(sys.executable).with_name("create-dagster"),
        "project",
        "letters",
        "--no-uv-sync",
        cwd=tmp_path,
        env={"DAGSTER_HOME": str(tmp_path)},
    )
    project = tmp_path / "letters"
    installed = run(
        python, "-c", "import fullft_assets; print(fullft_assets.__path__[0])", cwd=project
    ).strip()
    assert Path(installed).is_relative_to(python.parents[1])
    others = "'boto3', 'docx', 'dagster_webserver', 'pytest'"
    run(
        python,
        "-c",
        f"import importlib.util as u; assert not [name for name in ({others}) if u.find_spec(name)]",
        cwd=project,
    )

    # One batch and no windows: a run of the job costs more than the few rows in it.
    use_case = yaml.safe_load(Path(installed, "defs/licences/defs.yaml").read_text())
    del use_case["attributes"]["monitoring"]
    for section, values in SMALL.items():
        use_case["attributes"].setdefault(section, {}).update(values)
    write_files(project / "src/letters/defs/licences", {"defs.yaml": yaml.safe_dump(use_case)})
    licences.write(project / "data" / "licences", max_rules=600)
    env = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "DAGSTER_HOME": str(tmp_path / "home"),
        "DO_NOT_TRACK": "1",
    }
    write_files(tmp_path / "home", {"dagster.yaml": (ROOT / "dagster.yaml").read_bytes()})
    said = run(python.with_name("fullft"), "run", "licences", cwd=project, env=env)
    assert re.search(r"^  split +100 train, ", said, re.MULTILINE) and re.search(
        r"^  verdict ", said, re.MULTILINE
    )
    assert "fullft ui (needs dagster_webserver; pip install 'fullft-assets[ui]'" in said
    assert (project / "data/licences/documents").is_dir() and not list(Path(installed).rglob("*.manifest"))
