"""What is installed: uv.lock is the one source of versions, and pip, CI and the image install them from its list."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

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
    listed = re.findall(r"^([\w.-]+)==([\w.+!-]+)(?: ;.*)?$", (ROOT / "uv.lock.txt").read_text(), re.MULTILINE)
    assert len(listed) == len((ROOT / "uv.lock.txt").read_text().splitlines())
    assert sorted(listed) == sorted((each["name"], each["version"]) for each in lock["package"] if each["name"] != "fullft-assets")


def test_the_lock_was_made_from_the_ranges_of_today(lock) -> None:
    (package,) = [each for each in lock["package"] if each["name"] == "fullft-assets"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {"": project["dependencies"], **project["optional-dependencies"]}
    locked = {
        (each.get("marker", "").rpartition("extra == ")[2].strip("'"), each["name"], ",".join(sorted(each.get("specifier", "").split(","))))
        for each in package["metadata"]["requires-dist"]
    }
    ranges = re.compile(r"([\w.-]+)(?:\[([^]]*)\])?([^;]*)")
    expected = set()
    for extra, requirements in asked.items():
        for requirement in requirements:
            name, _, specifier = ranges.match(requirement).groups()
            expected.add((extra, name, ",".join(sorted(specifier.strip().split(",")))))
    assert {each for each in expected if each[1] != "fullft-assets"} == {each for each in locked if each[1] != "fullft-assets"}


def test_everything_that_installs_takes_the_versions_of_the_lock() -> None:
    for file in ("Makefile", "deploy/docker/Dockerfile", ".ci/run"):
        installs = re.findall(r"(?:-m pip|pip|PIP := .*) install .*", (ROOT / file).read_text())
        assert installs and all("--constraint uv.lock.txt" in line or re.search(r"\w==\d", line) for line in installs), file
