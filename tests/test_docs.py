"""The documentation holds what it promises: its links lead somewhere, its YAML is accepted, its settings and
commands exist.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fullft_assets.checking.yaml_source import field_of
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.guards import GUARDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
#: Decision records tell what was true when they were written; their links are checked, their settings are
#: not.
TODAY = [page for page in PAGES if page.parent.name != "decisions"]
#: What every use case needs, so that an example of one section can be validated alone.
LEAST: dict[str, Any] = {"base_model": "a/model", "documents": {"path": "data"}, "examples": {}}
#: First words of names with a dot that are no settings.
SECTIONS = set(UseCaseSettings.model_fields)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page: its headings as MkDocs names them, and those that it sets itself."""
    text = without_code(page.read_text())
    titles = [
        re.sub(r"[`*]|\]\([^)]*\)|\[", "", line.lstrip("#").strip())
        for line in re.findall(r"^#{1,6} .*$", text, re.MULTILINE)
    ]
    slugs = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}
    return slugs | set(re.findall(r'<a id="([^"]+)"', text))


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a page that lead to no file, or to no anchor of a page."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    return broken


def yaml_blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the title and the text of each YAML example."""
    for indent, title, text in re.findall(
        r'^( *)```yaml(?: title="([^"]+)")?\n(.*?)^ *```', page.read_text(), re.MULTILINE | re.DOTALL
    ):
        yield title, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)


def validate(example: dict[str, Any]) -> UseCaseSettings:
    """Validate a use case, or some of its sections.

    Raises:
        ValidationError: a key or a value is not accepted.
    """
    given = example.get("attributes", example)
    return UseCaseSettings.model_validate(
        LEAST | given | {"documents": {"path": "data"} | given.get("documents", {})}
    )


def settings_named(text: str) -> set[tuple[str, ...]]:
    """Return the settings that a text names in full, such as `training.optimizer`."""
    names = re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:: [^`]*)?`", text)
    return {key for name in names if (key := tuple(name.split(".")))[0] in SECTIONS}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", TODAY, ids=name_of)
def test_yaml_examples_are_accepted(page: Path) -> None:
    for title, text in yaml_blocks(page):
        example = yaml.safe_load(text)
        if title == "dagster.yaml":
            assert set(example) <= set(yaml.safe_load((ROOT / "dagster.yaml").read_text()))
        else:
            validate(example)


@pytest.mark.parametrize("page", TODAY, ids=name_of)
def test_settings_that_are_named_exist(page: Path) -> None:
    assert [".".join(key) for key in sorted(settings_named(page.read_text())) if field_of(key) is None] == []


def test_every_guard_has_a_row() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \|.*\| `(\w+)` \|$", (DOCS / "training" / "guards.md").read_text(), re.MULTILINE
    )
    assert dict(rows) == {name: GUARDS.get(name).settings_class().action for name in GUARDS.ours}


def test_the_page_of_settings_is_up_to_date() -> None:
    command = [sys.executable, str(DOCS / "generate_settings.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_page_is_in_the_navigation() -> None:
    assert sorted(re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)) == sorted(
        str(page.relative_to(DOCS)) for page in PAGES
    )


def test_the_tree_has_every_package_in_the_order_of_the_layers() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    tree = re.findall(r"^  (\w+)(?:/|\.py) +\S", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert [name for name in tree if name != "defs"] == layers
    package = [
        path.name.removesuffix(".py")
        for path in (ROOT / "fullft_assets").iterdir()
        # A folder that an update left has compiled files alone.
        if not path.name.startswith("__") and (path.is_file() or (path / "__init__.py").is_file())
    ]
    assert sorted(tree) == sorted(package)


def test_what_to_edit_exists() -> None:
    table = (
        (ROOT / "README.md")
        .read_text()
        .partition("## To change X, edit Y")[2]
        .partition("\n\nThe package")[0]
    )
    named = re.findall(
        r"`([\w/.<>]+)`",
        "".join(line.rsplit("|", 2)[1] for line in table.splitlines() if line.startswith("|")),
    )
    package = last = ROOT / "fullft_assets"
    missing = []
    for name in named:
        # A file is named without its folder behind another path of the same folder.
        found = [
            path for base in (ROOT, package, last.parent) for path in base.glob(re.sub(r"<\w+>", "*", name))
        ]
        last = found[0] if found else last
        if not found:
            missing.append(name)
    assert len(named) > 40 and missing == []


def test_every_test_that_the_page_of_security_names_exists() -> None:
    names = {
        name
        for page in (DOCS / "security.md", ROOT / "benchmarks/results/security-2026-12.md")
        for name in re.findall(r"`(test_\w+)(?:\.py)?`", page.read_text())
    }
    tests = "".join(path.stem + path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert len(names) > 45 and [name for name in names if name not in tests] == []
