"""The code location of a project: the workspace.yaml that names it, and its account of AWS."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin
from dagster._core.workspace.load import location_origins_from_yaml_paths
from dagster._grpc.utils import get_loadable_targets

from fullft_assets.checking.project import find_use_cases, read_dg_project
from fullft_assets.checking.validation import unreadable
from fullft_assets.demos import is_dormant
from fullft_assets.errors import SettingsError
from fullft_assets.resources.account import AWS, AccountResource

# Private: Dagster has no public way to load what a workspace.yaml names. tests/test_private_dagster.py names
# the release.


@contextmanager
def account_of_project(project_root: Path, use_cases: set[str]) -> Iterator[None]:
    """Let this process use the AWS account of the resource `aws` of the code location that has these use
    cases, if the location has such a resource.

    Raises:
        SettingsError: the definitions cannot be loaded.
    """
    with workspace_file(project_root) as file:
        try:
            targets: list[Any] = [
                loadable.target_definition
                for origin in location_origins_from_yaml_paths([str(file)])
                if isinstance(origin, ManagedGrpcPythonEnvCodeLocationOrigin)  # else it is a server's
                for loadable in get_loadable_targets(
                    **{
                        field: value
                        for field, value in origin.loadable_target_origin._asdict().items()
                        if field != "executable_path"
                    },
                    resolve_lazy_defs=True,
                )
            ]
            locations = [
                getattr(target() if callable(target) else target, "resources", None) or {}
                for target in targets
            ]
        except Exception as error:
            raise SettingsError(f"{project_root}: Dagster cannot load the definitions ({error})") from error
    aws = {
        key: resources[key]
        for resources in locations
        if any(f"{name}_store" in resources for name in use_cases)
        for key in resources.keys() & {AWS}
    }
    with dg.build_resources(aws | {"account": AccountResource(lambda _: None, "This process.")}):
        yield


#: A module with the use cases of a folder.
_USE_CASES = """\
from pathlib import Path

from fullft_assets.component import load_use_cases

defs = load_use_cases(Path({defs!r}))
"""


@contextmanager
def workspace_file(project_root: Path) -> Iterator[Path]:
    """Yield the project's workspace.yaml; where it has none, one that loads the module of its pyproject.toml,
    as `dg dev` does; where a YAML of the project cannot be read, one that loads its use cases alone, as one
    broken file keeps Dagster from loading anything of a project.
    """
    existing = project_root / "workspace.yaml"
    project = read_dg_project(project_root)
    is_broken = project is not None and any(
        unreadable(path) for path, _ in find_use_cases(project.defs) if not is_dormant(path)
    )
    if existing.is_file() and not is_broken:
        yield existing
        return
    if project is None:
        raise SettingsError(
            f"{project_root}: neither a workspace.yaml nor [tool.dg.project] in pyproject.toml; add either"
        )
    about = {"working_directory": str(project.source), "location_name": project.root_module}
    with tempfile.TemporaryDirectory(prefix="fullft-") as folder:
        workspace_file = Path(folder, "workspace.yaml")
        location: dict[str, Any] = {
            "python_module": {"module_name": f"{project.root_module}.definitions", **about}
        }
        if is_broken:
            module = Path(folder, "use_cases.py")
            module.write_text(_USE_CASES.format(defs=str(project.defs)), encoding="utf-8")
            location = {"python_file": {"relative_path": str(module), **about}}
        workspace_file.write_text(yaml.safe_dump({"load_from": [location]}), encoding="utf-8")
        yield workspace_file
