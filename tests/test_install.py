"""What is installed: uv.lock is the one source of versions, and pip, CI and the image install them from its
list.
"""

import re
import tomllib
from pathlib import Path

import docx
import pytest

from fullft_assets import extras
from fullft_assets.errors import SettingsError
from fullft_assets.store.files import Files
from tests import project as projects

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def lock() -> dict:
    return tomllib.loads((ROOT / "uv.lock").read_text())


def test_the_lock_has_one_public_index_and_no_file_of_a_machine(lock) -> None:
    sources = [package["source"] for package in lock["package"] if package["name"] != "fullft-assets"]
    assert {tuple(source.items()) for source in sources} == {(("registry", "https://pypi.org/simple"),)}
    files = re.findall(r'(?:url|path) = "([^"]*)"', (ROOT / "uv.lock").read_text())
    assert files and all(url.startswith("https://files.pythonhosted.org/") for url in files)


def test_the_list_for_pip_has_the_versions_of_the_lock(lock) -> None:
    listed = re.findall(
        r"^([\w.-]+)==([\w.+!-]+)(?: ;.*)?$", (ROOT / "uv.lock.txt").read_text(), re.MULTILINE
    )
    assert len(listed) == len((ROOT / "uv.lock.txt").read_text().splitlines())
    assert sorted(listed) == sorted(
        (each["name"], each["version"]) for each in lock["package"] if each["name"] != "fullft-assets"
    )


def test_the_lock_was_made_from_the_ranges_of_today(lock) -> None:
    (package,) = [each for each in lock["package"] if each["name"] == "fullft-assets"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {"": project["dependencies"], **project["optional-dependencies"]}
    locked = {
        (
            each.get("marker", "").rpartition("extra == ")[2].strip("'"),
            each["name"],
            ",".join(sorted(each.get("specifier", "").split(","))),
        )
        for each in package["metadata"]["requires-dist"]
    }
    ranges = re.compile(r"([\w.-]+)(?:\[([^]]*)\])?([^;]*)")
    expected = set()
    for extra, requirements in asked.items():
        for requirement in requirements:
            name, _, specifier = ranges.match(requirement).groups()
            expected.add((extra, name, ",".join(sorted(specifier.strip().split(",")))))
    newest = {each["name"]: each["version"] for each in lock["package"]}
    # No job runs older releases of what developers do not install.
    assert all(
        f">={newest[name]}" in specifier.split(",")
        for extra, name, specifier in expected
        if extra in ("kernels", "pii", "postgres")
    )
    assert {each for each in expected if each[1] != "fullft-assets"} == {
        each for each in locked if each[1] != "fullft-assets"
    }


#: Hides modules from each Python of a test, as if they were not installed.
WITHOUT = """
import importlib.machinery
found = importlib.machinery.PathFinder.find_spec
def find_spec(name, *more):
    return None if name in {names} else found(name, *more)
importlib.machinery.PathFinder.find_spec = find_spec
"""


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> projects.Project:
    """A project in an environment without the extras."""
    hidden = tmp_path / "hidden"
    projects.write_files(hidden, {"sitecustomize.py": WITHOUT.format(names=set(extras.EXTRAS))})
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    return projects.create(tmp_path / "project", rows=40)


class TestWithoutItsExtra:
    @pytest.mark.heavy
    def test_a_setting_is_refused_with_its_key_and_what_to_install(self, bare: projects.Project) -> None:
        bare.configure(
            documents={"path": "s3://bucket/letters"},
            launcher={"kind": "kubernetes", "image": "image@sha256:" + "0" * 64},
            alerts={"channels": {"cloudwatch": {}}},
        )
        done = bare.fullft("check", bare.name)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        said = re.findall(
            r": ([\w.]+): (?:the channel )?(needs \w+; pip install 'fullft-assets\[\w+\]')$",
            done.stderr,
            re.MULTILINE,
        )
        assert dict(said) == {
            "documents.path": "needs boto3; pip install 'fullft-assets[aws]'",
            "launcher.kind": "needs kubernetes; pip install 'fullft-assets[kubernetes]'",
            "alerts.channels.cloudwatch": "needs boto3; pip install 'fullft-assets[aws]'",
        }

    def test_a_store_in_a_bucket_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(extras.util, "find_spec", lambda name: None)
        with pytest.raises(
            SettingsError,
            match=r"^store s3://bucket/store needs obstore; pip install 'fullft-assets\[buckets\]'$",
        ):
            Files("s3://bucket/store")

    @pytest.mark.heavy
    def test_a_file_is_refused_by_name_and_not_read_as_a_damaged_one(self, bare: projects.Project) -> None:
        docx.Document().save(bare.documents / "a.docx")
        done = bare.fullft("check", bare.name)
        assert (done.returncode, done.stderr) == (
            1,
            "a.docx needs docx; pip install 'fullft-assets[office]'\n",
        )
