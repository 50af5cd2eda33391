"""The page of faults is that of the tests, and has no gap that nobody knows of."""

import pytest

from tests.fault_table import FAULTS, IMPOSSIBLE, LAUNCHERS, PAGE, marked, page

pytestmark = pytest.mark.quick


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(marked()), "run `python -m tests.fault_table`"


def test_each_fault_is_tested_with_each_launcher_or_cannot_happen_there() -> None:
    found = marked()
    gaps = {(launcher, fault) for launcher in LAUNCHERS for fault in FAULTS if not found[launcher, fault]}
    assert gaps == set(IMPOSSIBLE)
