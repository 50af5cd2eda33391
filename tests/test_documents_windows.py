"""Windows of several files: each ends by number of rows or by time, once and for all, and the next one says
how far it is.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from fullft_assets import documents
from fullft_assets.documents import windows
from fullft_assets.store import Store
from tests import project as projects
from tests.delivered import die_at_a_write

pytestmark = pytest.mark.quick

BEGAN = 1_700_000_000.0
HOUR = 3600.0


class Feed:
    """A project whose production delivers files at given times."""

    def __init__(self, root: Path):
        self.project = projects.create(root, rows=20)
        self.store = Store(str(self.project.home / "store"))

    def configure(self, window: dict[str, Any] | None, **of_documents: Any) -> None:
        path = f"data/{self.project.name}/production"
        self.project.configure(
            documents=of_documents, monitoring={"path": path, "min_window_rows": 20, "window": window}
        )

    def deliver(self, name: str, num_rows: int, hours: float = 0.0) -> Path:
        path = projects.write_rows(self.project.production / name, projects.licence_rows(num_rows))
        os.utime(path, (BEGAN + hours * HOUR, BEGAN + hours * HOUR))
        return path

    def look(self, **how: Any) -> documents.Look:
        return documents.look(self.store, self.project.use_case(), "window", **how)

    def cut(self, **how: Any) -> list[list[str]]:
        return [[file.path for file in window.files] for window in self.look(**how).cut]


@pytest.fixture
def feed(tmp_path: Path) -> Feed:
    return Feed(tmp_path)


class TestByRows:
    def test_the_file_that_reaches_the_count_is_the_last_one_and_a_larger_one_is_a_window(
        self, feed: Feed
    ) -> None:
        feed.configure({"rows": 50})
        for hours, (name, rows) in enumerate((("z", 30), ("a", 20), ("m", 70), ("b", 10))):
            feed.deliver(f"{name}.jsonl", rows, hours)
        found = feed.look()
        assert [[file.path for file in window.files] for window in found.cut] == [
            ["z.jsonl", "a.jsonl"],
            ["m.jsonl"],
        ]
        assert found.open_window.startswith("10 of 50 rows ")
        assert found.open_window in found.notes and feed.cut() == []

    def test_files_that_come_one_at_a_time_give_the_same_windows_and_are_counted_once(
        self, feed: Feed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        feed.configure({"rows": 50})
        counted = []
        count = windows.WindowCutter._count
        monkeypatch.setattr(
            windows.WindowCutter,
            "_count",
            lambda self, reader, file: (counted.append(file.path), count(self, reader, file))[1],
        )
        cut = []
        for hours, (name, rows) in enumerate((("z", 30), ("a", 20), ("m", 70), ("b", 10))):
            feed.deliver(f"{name}.jsonl", rows, hours)
            cut += feed.cut() + feed.cut()
        assert cut == [["z.jsonl", "a.jsonl"], ["m.jsonl"]]
        assert counted == [
            "z.jsonl",
            "a.jsonl",
            "m.jsonl",
            "b.jsonl",
        ]

    def test_a_file_that_is_rewritten_before_its_window_is_complete_counts_once(self, feed: Feed) -> None:
        feed.configure({"rows": 40})
        feed.deliver("a.jsonl", 30)
        feed.cut()
        feed.deliver("a.jsonl", 31, hours=1)
        assert feed.look().open_window.startswith("31 of 40 rows ")

    def test_a_file_that_cannot_be_read_is_a_window_at_once(self, feed: Feed) -> None:
        feed.configure({"rows": 40})
        feed.deliver("a.jsonl", 30)
        feed.project.production.joinpath("broken.parquet").write_bytes(b"PAR1 no more")
        found = feed.look()
        assert [[file.path for file in window.files] for window in found.cut] == [
            ["broken.parquet"]
        ] and found.open_window.startswith("30 of 40 rows ")

    def test_a_look_counts_a_bounded_number_of_bytes_and_the_next_one_goes_on(
        self, feed: Feed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        feed.configure({"rows": 1_000})
        monkeypatch.setattr(windows, "COUNTED_BYTES", 1)
        for number in range(3):
            feed.deliver(f"{number}.jsonl", 20, hours=number)
        assert [feed.look().open_window.split()[0] for _ in range(4)] == ["20", "40", "60", "60"]
        feed.deliver("3.jsonl", 20, hours=3)
        feed.deliver("4.jsonl", 20, hours=4)
        assert feed.look(whole=True).open_window.startswith("100 of")

    def test_a_look_that_dies_at_any_write_cuts_what_the_next_one_would(self, feed: Feed) -> None:
        feed.configure({"rows": 40})
        for number in range(7):
            feed.deliver(f"{number}.jsonl", 20, hours=number)
        for dies_after in (True, False, True, True):
            die_at_a_write(feed.cut, dies_after=dies_after)
        feed.cut()
        made = [
            [file.path[0] for file in window.files]
            for window in documents.list_batches(feed.store, "letters", "window")
        ]
        assert made == [["0", "1"], ["2", "3"], ["4", "5"]] and feed.look().open_window.startswith(
            "20 of 40 rows "
        )


class TestByHours:
    def test_the_first_file_that_is_so_much_younger_begins_the_next_window(self, feed: Feed) -> None:
        feed.configure({"hours": 24})
        for name, hours in (("d", 0), ("c", 23.9), ("b", 24), ("a", 47)):
            feed.deliver(f"{name}.jsonl", 20, hours)
        found = feed.look()
        assert [[file.path for file in window.files] for window in found.cut] == [["d.jsonl", "c.jsonl"]]
        assert found.open_window.startswith("2 file(s) since 2023-11-15 22:13 UTC ")
        feed.deliver("e.jsonl", 20, hours=48)
        assert feed.cut() == [["b.jsonl", "a.jsonl"]]

    def test_a_producer_whose_clock_was_a_year_ahead_holds_up_no_window(self, feed: Feed) -> None:
        feed.configure({"hours": 24})
        cut = []
        for day in range(10):
            feed.deliver(f"{day}.jsonl", 20, hours=24 * day + (365 * 24 if day < 3 else 0))
            cut += feed.cut(now=BEGAN + 24 * HOUR * day) + feed.cut(now=BEGAN + 24 * HOUR * day + 60)
        assert cut == [[f"{day}.jsonl"] for day in range(9)]
