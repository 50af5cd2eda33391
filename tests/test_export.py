"""Documents far from the training data: a varied sample, in the formats that people label in, without what
was erased.
"""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fullft_assets import documents, erasure, monitoring
from fullft_assets.cli.export import export
from fullft_assets.errors import FullftError
from fullft_assets.monitoring import FAR, FarDocument
from fullft_assets.store import Store
from tests import manifests
from tests import project as projects

CASE = "letters"


class Watched:
    """A project whose last windows have documents far from the training data."""

    def __init__(self, root: Path):
        self.project = projects.create(root, rows=20)
        self.project.configure(monitoring={"path": "data/letters/production"}, documents={"id": "key"})
        self.store = Store(str(self.project.home / "store"))

    def see(self, name: str, texts: list[str], far: list[int]) -> None:
        rows = [
            {"key": f"{name}-{number}", "text": text, "expression": "x"}
            for number, text in enumerate(texts, start=1)
        ]
        projects.write_rows(self.project.production / f"{name}.jsonl", rows)
        [window] = documents.look(self.store, self.project.use_case(), "window", now=2e9).cut
        seen = documents.keep(self.store, self.project.use_case(), window.name, "window")
        with self.store.create(CASE, "drift_report", window.name, version="1", seed=1) as draft:
            found = [FarDocument(source=f"{name}.jsonl", row=row, distance=2.0) for row in far]
            monitoring.write_far(draft.path / FAR, found)
            metadata = {**manifests.drift("alarm"), "documents": seen.ref}
            made = draft.commit(
                settings={}, inputs={"production_documents": seen.content_digest}, metadata=metadata
            )
        self.store.write_pointer(f"latest/{CASE}/drift_report/{window.name}", {"ref": made.ref})

    def export(self, chosen: str = "jsonl", most: int = 100, num_windows: int = 3) -> str:
        out = self.project.root / "out" / "to_label"
        export(
            self.project.use_case(), self.store, out, format_name=chosen, most=most, num_windows=num_windows
        )
        return out.read_text(encoding="utf-8")


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    found = Watched(tmp_path)
    found.see("a", ["one", "two", 'three, with a "quote"\nand a line'], [3, 1])
    found.see("b", ["two", "four", "five"], [2, 1])
    return found


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_windows_give_in_turn_and_each_text_comes_once(watched: Watched) -> None:
    found = lines(watched.export())
    assert [row["key"] for row in found] == ["a-3", "b-2", "a-1", "b-1"]
    assert found[0] == {
        "key": "a-3",
        "text": 'three, with a "quote"\nand a line',
        "expression": "x",
        "window": found[0]["window"],
        "distance": 2.0,
    }
    assert [row["key"] for row in lines(watched.export(most=2))] == ["a-3", "b-2"]
    assert [row["key"] for row in lines(watched.export(num_windows=1))] == ["b-2", "b-1"]
    watched.see("c", ["four"], [1])
    assert [row["key"] for row in lines(watched.export())] == ["a-3", "b-2", "a-1", "b-1"]


def test_each_format_comes_back_as_a_delivery(watched: Watched) -> None:
    tasks = json.loads(watched.export("label_studio"))
    assert [task["data"]["key"] for task in tasks] == ["a-3", "b-2", "a-1", "b-1"]
    rows = list(csv.DictReader(watched.export("csv").splitlines(keepends=True)))
    assert [row["text"] for row in rows] == [task["data"]["text"] for task in tasks]
    manifest = lines(watched.export("ground_truth"))
    assert [line["source"] for line in manifest] == [row["text"] for row in rows] and manifest[0][
        "key"
    ] == "a-3"
    labelled = [{**row, "kind": "notice"} for row in lines(watched.export())]
    watched.project.deliver("labelled.jsonl", labelled)
    batch = documents.look(watched.store, watched.project.use_case(), now=2e9).cut[-1]
    made = documents.keep(watched.store, watched.project.use_case(), batch.name)
    assert documents.RawMetadata.of(made).num_malformed == 0


def test_a_table_has_no_formulas_and_comes_back_with_its_ids_and_texts(tmp_path: Path) -> None:
    watched, texts = (
        Watched(tmp_path),
        ["=HYPERLINK(1)", "- a list", "@SUM(A1)", "+1", "'=quoted", "'plain", "\ttab"],
    )
    watched.see("=w", texts, list(range(1, 8)))
    table = watched.export("csv")
    rows = list(csv.DictReader(table.splitlines(keepends=True)))
    assert not [cell for row in rows for cell in row.values() if cell[0] in "=+-@\t\r"]
    with (watched.project.documents / "labelled.csv").open("w", newline="") as file:
        file.write(
            "".join(
                f"{line}{',kind' if number == 0 else ',notice'}\n"
                for number, line in enumerate(table.splitlines())
            )
        )
    batch = documents.look(watched.store, watched.project.use_case(), now=2e9).cut[-1]
    made = documents.keep(watched.store, watched.project.use_case(), batch.name)
    read = pq.read_table(
        watched.store.folder(made) / "documents.parquet", columns=["source", "id", "text"]
    ).to_pylist()
    found = {row["id"]: row["text"] for row in read if row["source"].endswith("labelled.csv")}
    assert found == {f"=w-{number}": text for number, text in enumerate(texts, start=1)}


def test_what_was_erased_is_neither_exported_nor_named(watched: Watched) -> None:
    erasure.erase(watched.store, CASE, ["a-3"])
    # The list of a window that an erased document was in goes as a whole.
    assert [row["key"] for row in lines(watched.export())] == ["b-2", "b-1"]
    places = [
        (each.source, each.row)
        for report in watched.store.artifacts(CASE, "drift_report")
        for each in monitoring.read_far(watched.store.folder(report) / FAR)
    ]
    assert sorted(places) == [("b.jsonl", 1), ("b.jsonl", 2)]


def test_without_such_documents_one_line_says_so(tmp_path: Path) -> None:
    with pytest.raises(FullftError, match="no document of the last 3 windows is far from the training data"):
        Watched(tmp_path).export()
