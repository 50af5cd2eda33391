"""The size of the project has a limit: what comes in, something goes out for. Lower a limit when you can."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS, DOCS = ROOT / "fullft_assets", ROOT / "tests", ROOT / "docs"
MOST_STATEMENTS = {PACKAGE: 30_000, TESTS: 25_000}
MOST_SETTINGS = 184
MOST_COLUMNS = 110
#: Long lines are left in texts of tests that a break would change.
MOST_WORDS = {"pages": 27_450, "a page": 1_500, "records": 14_000, "a record": 500}
MOST_MODULES_IN_A_FOLDER = 25
#: Names that say how a value came about instead of what it is.
NOT_NOUNS = (
    {"found", "made", "given", "mine", "theirs", "ours", "each", "kept"}
    | {"asked", "chosen", "known", "wanted", "left", "rest", "place", "own"}
    | {"what", "other", "others", "shared", "stored", "changed", "shown", "erased", "written"}
    | {"encoded", "parsed", "tuned", "judged", "delivered", "trained", "learned", "damaged"}
    | {"prepared", "needed", "listed", "marked", "unpacked", "moved"}
)
MOST_OF_THEM_IN_A_THOUSAND = 1
#: Assignments of several values at once, in 100 functions.
MOST_SEVERAL_VALUES = 1
#: Assignments to more than two names at once; what `partition` returns, and a shape, are not counted.
MOST_UNPACKED = 29


@cache
def nodes(folder: Path) -> tuple[ast.AST, ...]:
    return tuple(node for path in folder.rglob("*.py") for node in ast.walk(ast.parse(path.read_bytes())))


def words(paths: list[Path]) -> dict[str, int]:
    return {path.name: len(path.read_text(encoding="utf-8").split()) for path in paths}


def bound_names(folder: Path) -> Iterator[str]:
    for node in nodes(folder):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


@pytest.mark.parametrize("folder", [PACKAGE, TESTS], ids=["package", "tests"])
def test_statements_and_lines_are_within_the_budget(folder: Path) -> None:
    assert sum(isinstance(node, ast.stmt) for node in nodes(folder)) <= MOST_STATEMENTS[folder]
    long_lines = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in folder.rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1)
        if len(line) > MOST_COLUMNS
    ]
    assert not long_lines


def test_names_are_nouns_and_an_assignment_has_one_value() -> None:
    names = list(bound_names(PACKAGE))
    not_nouns = sum(name.strip("_") in NOT_NOUNS for name in names)
    assert not_nouns <= MOST_OF_THEM_IN_A_THOUSAND * len(names) / 1_000
    num_several = sum(
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Tuple)
        and isinstance(node.targets[0], ast.Tuple)
        for node in nodes(PACKAGE)
    )
    functions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes(PACKAGE))
    assert num_several <= MOST_SEVERAL_VALUES * functions / 100
    num_unpacked = sum(
        isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Tuple) and len(target.elts) > 2 for target in node.targets)
        and re.search(r"\.r?partition\(|\.shape$", ast.unparse(node)) is None
        for node in nodes(PACKAGE)
    )
    assert num_unpacked <= MOST_UNPACKED


def test_a_folder_has_few_modules() -> None:
    counts = Counter(path.parent for path in PACKAGE.rglob("*.py"))
    assert max(counts.values()) <= MOST_MODULES_IN_A_FOLDER


def test_settings_and_documentation_are_within_the_budget() -> None:
    reference = DOCS / "reference" / "settings.md"
    rows = re.findall(r"^\| <a id", reference.read_text(encoding="utf-8"), re.MULTILINE)
    assert 100 < len(rows) <= MOST_SETTINGS
    records = words(list((DOCS / "decisions").glob("[0-9]*.md")))
    pages = words(
        [path for path in DOCS.rglob("*.md") if "decisions" not in path.parts and path != reference]
    )
    assert sum(pages.values()) <= MOST_WORDS["pages"]
    assert max(pages.values()) <= MOST_WORDS["a page"]
    assert sum(records.values()) <= MOST_WORDS["records"]
    assert max(records.values()) <= MOST_WORDS["a record"]
