"""How an artifact's metadata is shown in Dagster: plain values, tables, and no markup from delivered text."""

import dagster as dg
import pytest

from fullft_assets.assets.graph import markdown_table, plain_metadata


@pytest.mark.parametrize(
    ("label", "cell"),
    [
        ("![seen](https://example.org/seen.png)", r"\!\[seen\](https://example.org/seen.png)"),
        ("[click](https://example.org)", r"\[click\](https://example.org)"),
        ("<img src=x>", "&lt;img src=x>"),
        (r"a \[b](c)", r"a \\\[b\](c)"),
        ("a|b\nc", r"a\|b c"),
        ("plain, 3 > 2", "plain, 3 > 2"),
    ],
)
def test_a_label_cannot_put_a_link_a_picture_or_a_tag_into_the_page(label: str, cell: str) -> None:
    assert markdown_table([{"label": label, "rows": 1_200}]).splitlines()[-1] == f"| {cell} | 1,200 |"
    (shown,) = plain_metadata({"counts": {label: 3}}).values()
    assert isinstance(shown, dg.MarkdownMetadataValue) and f"| 3 | {cell} |" in (shown.value or "")


def test_a_table_stays_short_enough_for_the_page_and_counts_its_other_rows() -> None:
    table = markdown_table([{"label": f"label {number}", "rows": number} for number in range(200)])
    assert len(table) < 1_000
    shown = sum(line.startswith("| label ") and line[8].isdigit() for line in table.splitlines())
    assert table.endswith(f"\n{200 - shown} more rows")
