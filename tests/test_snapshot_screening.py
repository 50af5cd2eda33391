"""Screening: runs of words shared with evaluation sets, near-duplicates of their texts, and sets in any
format.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from fullft_assets.errors import DataError
from fullft_assets.snapshot import screening
from tests import project as projects

#: Few words, so that runs are often shared, in several scripts and cases.
FEW = ["a", "B", "ä", "Привет", "x_1", "律师", "", "...", "b", "Μαΐου", "ΟΔΟΣ", "ไทย", "かな", "b。律"]
few_words = st.lists(st.sampled_from(FEW), max_size=25).map(" ".join)
#: A word and letters of scripts without spaces, with their lengths in sixths of a word.
UNITS = (
    (re.compile("[律师]"), 3),
    (re.compile("[ไทยかな]"), 2),
    (re.compile(r"(?:(?![律师ไทยかな])\w)+"), 6),
)


def slow_overlaps(texts: list[str], evaluation_texts: list[str], num_words: int) -> list[bool]:
    """Return for each text whether it shares a run of words with one of the others, word by word."""

    def runs(text: str) -> Iterator[tuple[str, ...]]:
        found = sorted(
            (match.start(), match[0], length)
            for unit, length in UNITS
            for match in unit.finditer(text.lower())
        )
        for first in range(len(found)):
            run, left = [], 6 * num_words
            for _, word, length in found[first:]:
                run.append(word)
                left -= length
                if left <= 0:
                    yield tuple(run)
                    break

    known = {run for text in evaluation_texts for run in runs(text)}
    return [not known.isdisjoint(runs(text)) for text in texts]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [row["text"] for row in projects.licence_rows(3_000)]


class TestRuns:
    @given(st.lists(few_words, max_size=8), st.lists(few_words, max_size=5), st.integers(1, 9))
    @settings(deadline=None, max_examples=150)
    def test_what_is_found_is_what_word_by_word_finds(self, candidates, evaluation_texts, num_words):
        assert screening.Screen(evaluation_texts, num_words=num_words).shares_a_run(
            candidates
        ).tolist() == slow_overlaps(candidates, evaluation_texts, num_words)

    def test_blocks_are_as_one(self, texts, monkeypatch):
        screen = screening.Screen(texts[:200])
        whole = screen.shares_a_run(texts[200:900])
        monkeypatch.setattr(screening, "_BLOCK_ROWS", 17)
        assert np.array_equal(screen.shares_a_run(pa.chunked_array([texts[200:300], texts[300:900]])), whole)


class TestNearDuplicates:
    def test_short_text_is_found_as_a_near_duplicate(self):
        assert screening.Screen(["what is a trust deed"]).overlapping(
            ["What is a trust deed?", "What is a deed poll?"]
        ).tolist() == [True, False]

    def test_runs_and_near_duplicates_together(self, texts):
        evaluation_texts, candidates = texts[:300], texts[300:1_500]
        screen = screening.Screen(evaluation_texts)
        found = screen.overlapping(candidates)
        runs, near = screen.shares_a_run(candidates), screen.is_near(candidates)
        assert np.array_equal(found, runs | near)
        assert (near & ~runs).any() and (runs & ~near).any()


class TestEvaluationSets:
    @pytest.fixture
    def project(self, tmp_path: Path) -> projects.Project:
        project = projects.create(tmp_path, rows=5)
        (tmp_path / "benchmarks").mkdir()
        return project

    def read(self, project: projects.Project, *paths: str) -> screening.EvaluationTexts:
        project.configure(snapshot={"screen": list(paths)})
        return screening.read_evaluation_texts(project.use_case())

    def test_files_and_folders_of_any_format(self, project):
        folder = project.root / "benchmarks"
        projects.write_rows(folder / "plain.jsonl", [{"text": "a plain text"}, {"text": "another"}])
        page = "<html><body><p>from a page</p></body></html>"
        projects.write_files(folder, {"inner/table.csv": "id,text\n1,from a table\n", "page.html": page})
        projects.write_rows(
            project.root / "one.jsonl",
            [{"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "He."}]}],
        )
        found = self.read(project, "benchmarks", "one.jsonl")
        assert found.texts == sorted(
            ["a plain text", "another", "from a table", "from a page", "Who?\n\nHe."]
        )
        assert found.num_texts == {"benchmarks": 4, "one.jsonl": 1}

    def test_prompts_and_answers_and_the_own_field(self, project):
        projects.write_rows(
            project.root / "one.jsonl",
            [
                {"prompt": "What is it?", "completion": "A bond."},
                {"instruction": "Add.", "input": "1 and 1", "output": "2"},
                {"note": "own"},
            ],
        )
        project.configure(documents={"text": "note"}, snapshot={"screen": ["one.jsonl"]})
        found = screening.read_evaluation_texts(project.use_case())
        assert "own" in found.texts
        assert any("What is it?" in text and "A bond." in text for text in found.texts)
        assert any("1 and 1" in text for text in found.texts)

    def test_questions_without_a_text(self, project):
        projects.write_rows(
            project.root / "one.jsonl",
            [
                {"question": "Who signs a deed?", "choices": ["the grantor", "nobody"], "answer": 0},
                {"text": "a text"},
            ],
        )
        assert self.read(project, "one.jsonl").texts == ["Who signs a deed?", "a text"]

    def test_digest_follows_the_content(self, project):
        path = project.root / "one.jsonl"
        projects.write_rows(path, [{"text": "a"}, {"text": "b"}])
        first = self.read(project, "one.jsonl")
        projects.write_rows(path, [{"text": "b"}, {"text": "a"}])
        assert self.read(project, "one.jsonl").digest == first.digest
        projects.write_rows(path, [{"text": "b"}, {"text": "c"}])
        assert self.read(project, "one.jsonl").digest != first.digest

    def test_what_cannot_be_read_is_an_error_that_names_it(self, project):
        path = project.root / "benchmarks" / "set.jsonl"
        path.write_text("{}")
        project.configure(snapshot={"screen": ["benchmarks"]})
        loaded = project.use_case()
        path.unlink()
        with pytest.raises(DataError, match=r"snapshot\.screen: no .* at benchmarks"):
            screening.read_evaluation_texts(loaded)
        path.parent.rmdir()
        with pytest.raises(DataError, match=r"snapshot\.screen: benchmarks not"):
            screening.read_evaluation_texts(loaded)
        path.parent.mkdir()
        path.write_text(json.dumps({"text": "a"}) + "\n" + json.dumps({"answer": 4}) + "\n{cut off\n")
        with pytest.raises(DataError, match=r"set\.jsonl:2: no .*\(and 1 more rows\)"):
            self.read(project, "benchmarks")
        projects.write_rows(path, [{"text": "  "}])
        with pytest.raises(DataError, match="holds no text"):
            self.read(project, "benchmarks")
