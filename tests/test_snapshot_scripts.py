"""Near-duplicates and screening in scripts without spaces between words, and in those with marks on their
letters, on real texts.
"""

import unicodedata
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.frozen import freeze
from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot.near_text.pairs import near_duplicates
from fullft_assets.snapshot.near_text.words import split_words
from fullft_assets.snapshot.screening import Screen
from fullft_assets.store.hashing import text_hash
from tests.text_in_other_scripts import texts

#: Letters of a text in which one letter is less than the difference at the default similarity.
LANGUAGES = {"zh_Hans": 60, "ja": 100, "th": 120, "km": 120, "my": 80, "ar": 400, "hi": 250, "ko": 150}
#: Letters that are as long as 13 words, and too few: of Japanese it depends on how many are Chinese
#: characters.
SCREENED = {"zh_Hans": (26, 25), "ja": (39, 25), "th": (39, 38), "km": (39, 38), "my": (39, 38)}


def words_of(text: str) -> list[str]:
    """Return the words that are hashed of one text."""
    return split_words(pa.array([text], pa.string()))[0].as_py() or []


def with_another_letter(text: str, part: float) -> str:
    """Return a text with one letter, about that part of the way through it, replaced by another one of it."""
    letters = [n for n, letter in enumerate(text) if letter.isalpha() and not letter.isascii()]
    at = letters[int(part * len(letters))]
    other = next(text[n] for n in letters[::-1] if text[n].casefold() != text[at].casefold())
    return text[:at] + other + text[at + 1 :]


@pytest.mark.parametrize("language", LANGUAGES)
class TestOneLetter:
    @pytest.mark.parametrize("part", [0, 0.4, 0.999])
    def test_makes_a_near_duplicate(self, language: str, part: float) -> None:
        originals = texts(language, LANGUAGES[language])
        changed = [with_another_letter(text, part) for text in originals]
        assert len(originals) >= 7 and not set(originals) & set(changed)
        assert near_duplicates(originals, changed) == {n: n for n in range(len(originals))}

    def test_never_on_both_sides_of_the_split(self, language: str) -> None:
        pairs = [(text, with_another_letter(text, 0.5)) for text in texts(language, LANGUAGES[language])]
        sides, left_out = sides_of_pairs(pairs)
        assert max(map(len, sides.values())) == 1
        assert sum(count for reason, count in left_out.items() if "near" in reason) >= 2


def sides_of_pairs(
    pairs: list[tuple[str, str]], **changes: Any
) -> tuple[dict[str, set[str]], dict[str, int]]:
    """Return the splits that the texts of each pair are in, each text a group of its own, and the rows that
    were left out.
    """
    found = [text for pair in pairs for text in pair]
    ids = pa.array([f"{number // 2} {number % 2}" for number in range(len(found))])
    numbers = pa.array(range(len(found)))
    columns = {"id": ids, "group": ids, "text": pa.array(found), "text_hash": pa.array(map(text_hash, found))}
    columns |= {"source": pa.array(["a"] * len(found)), "row": numbers, "delivered_ns": numbers}
    columns |= {"annotator": pa.nulls(len(found), pa.string())}
    settings = SnapshotSettings(test_share=0.3, validation_share=0.3, min_train_rows=1, **changes)
    frozen = freeze({"b": pa.table(columns)}, {"b": {"a": 1}}, settings, seed=17, task="language_modeling")
    sides: dict[str, set[str]] = {}
    for row in frozen.index.to_pylist():
        sides.setdefault(row["id"].split()[0], set()).add(row["split"])
    return sides, frozen.metadata["left_out"]


def test_a_chinese_text_inside_a_longer_one_is_not_on_the_other_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a message is quoted in the answer to it."""
    found = texts("zh_Hans", 40)
    third = len(found) // 3
    quoted, before, after = found[:third], found[third : 2 * third], found[2 * third :]
    pairs = [
        (text, f"{begin}\n{text}\n{end}") for text, begin, end in zip(quoted, before, after, strict=False)
    ]
    assert len(pairs) > 30
    leaks = []
    for share in (2.0, 0.95):  # no share is above 1
        monkeypatch.setattr(SnapshotSettings, "contained_share", share)
        sides, _ = sides_of_pairs(pairs)
        leaks.append(sum("train" in found and len(found) > 1 for found in sides.values()))
    assert leaks[0] > 10, "similarity alone does not see it"
    assert leaks[1] == 0


class TestScreening:
    @pytest.mark.parametrize("language", SCREENED)
    def test_a_run_as_long_as_13_words_is_found_within_another_text(self, language: str) -> None:
        first, *others = texts(language, 150)
        evaluation = "".join(letter for letter in first if letter.isalpha() and not letter.isascii())
        passage, short = (evaluation[5 : 5 + length] for length in SCREENED[language])
        screen = Screen([evaluation])
        assert screen.shares_a_run(
            [f"{others[0]} said {part} and {others[1]}" for part in (passage, short)]
        ).tolist() == [True, False]
        assert not screen.overlapping(others).any()

    def test_a_run_of_13_words_is_found_in_arabic_without_its_vowel_signs(self) -> None:
        first, *others = texts("ar", 150)
        words = words_of(first)
        screen = Screen([first])
        passage, short = " ".join(words[2:15]), " ".join(words[2:14])
        assert screen.shares_a_run(
            [f"{others[0]} {part} {others[1]}" for part in (passage, short)]
        ).tolist() == [True, False]
        assert not screen.overlapping(others).any()


class TestWords:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("Deep 学习, v2", ["deep", "学", "习", "v2"]),
            ("ラーメン屋", ["ラ", "ー", "メ", "ン", "屋"]),
            ("กินข้าว", ["ก", "น", "ข", "า", "ว"]),
            ("كِتَابٌ جديد", ["كتاب", "جديد"]),
            ("हिन्दी में", ["हनद", "म"]),
            ("한국어 문장", ["한국어", "문장"]),
            ("L’État", ["l", "état"]),
            (unicodedata.normalize("NFD", "Übergröße か\u3099"), ["übergröße", "が"]),
        ],
    )
    def test_of_any_script(self, text: str, words: list[str]) -> None:
        assert words_of(text) == words
