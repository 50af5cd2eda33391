"""General words: how often words occur in general language, by a language's list or one of the user's own."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullft_assets.base_model import suggest_path
from fullft_assets.errors import SettingsError
from fullft_assets.settings.use_case import locate

if TYPE_CHECKING:
    from fullft_assets.settings.use_case import UseCase

#: `chunks.general_words`: nothing but the tokenizer's own vocabulary.
VOCABULARY = "vocabulary"
#: Lines of a user's list that are read when the YAML is checked: definitions load often.
_CHECKED_LINES = 1_000
_ENTRY = re.compile(r"(\S+)(?:\t([1-9]\d*))?")


@dataclass(frozen=True)
class GeneralWords:
    """General language that a corpus's words are compared with, beside the vocabulary of the tokenizer.

    Attributes:
        chosen: a language, `VOCABULARY`, or the path that `file` was made of; None: `languages`, else what
            the words are in.
        languages: that the texts may be in (ISO 639-1).
        file: a list of the user's own.
    """

    chosen: str | None = None
    languages: tuple[str, ...] = ()
    file: Path | None = None

    @classmethod
    def of(cls, use_case: UseCase) -> GeneralWords:
        """Return the general language that the settings of a use case choose."""
        chosen = use_case.settings.chunks.general_words
        if chosen is not None and chosen != VOCABULARY and chosen not in _languages():
            return cls(chosen, file=use_case.resolve(chosen))
        return cls(chosen, tuple(use_case.settings.examples.languages or ()) if chosen is None else ())

    def key(self) -> dict[str, Any]:
        """Return what an audit that mines terms depends on.

        Raises:
            SettingsError: the user's list cannot be read.
        """
        made_of: dict[str, Any] = {"general_words": self.chosen}
        if self.file is not None:
            made_of["general_words_digest"] = hashlib.sha256(_bytes(self.file)).hexdigest()[:20]
        elif self.chosen != VOCABULARY:
            made_of |= {"languages": list(self.languages), "pyspellchecker": version("pyspellchecker")}
        return made_of

    def per_million(self, words: Sequence[str], commonest: Sequence[str]) -> tuple[str, list[float] | None]:
        """Return what the words are compared with, in words, and how often each occurs in a million words of
        general language.

        Args:
            words: in lower case. One that no list knows has 0, one of a list without counts infinity.
            commonest: the corpus's commonest words, which identify its language.

        Returns:
            The name, and the frequencies; of several languages the highest. None: there is no list, only the
            vocabulary is compared with.

        Raises:
            SettingsError: the user's list cannot be read.
        """
        if self.chosen == VOCABULARY:
            return "the vocabulary alone", None
        if self.file is not None:
            known = _frequencies(self.file)
            return f"the general words of {self.chosen}", [known.get(word, 0.0) for word in words]
        languages, identified = list(self.languages), ""
        if self.chosen is not None:
            languages = [self.chosen]
        elif not languages:
            language = _identify(commonest)
            if language is None:
                return "the vocabulary alone: the language was not identified", None
            languages, identified = [language], " (identified)"
        listed = [language for language in languages if language in _languages()]
        missing = ", ".join(language for language in languages if language not in listed)
        if not listed:
            return f"the vocabulary alone: no list for {missing}{identified}", None
        name = f"the general words of {', '.join(listed)}{identified}" + (
            f"; no list for {missing}" if missing else ""
        )
        return name, list(map(max, zip(*(_of_language(language, words) for language in listed), strict=True)))


def problem(chosen: str, root: Path) -> str | None:
    """Return what is wrong with `chunks.general_words`, or None; of a long list only the beginning is
    read.
    """
    if chosen == VOCABULARY or chosen in _languages():
        return None
    path = locate(chosen, root)
    if not path.is_file():
        known = ", ".join(sorted(_languages()))
        what, near = ("is a folder", "") if path.is_dir() else ("is no file", suggest_path(chosen, root))
        return (
            f"{chosen} {what}, and no language that has a list ({known}); give one of these, a file of words"
            f" or `{VOCABULARY}`{near}"
        )
    try:
        for _ in islice(_entries(path), _CHECKED_LINES):
            pass
    except SettingsError as error:
        return str(error)
    return None


def _languages() -> Iterable[str]:
    from spellchecker import SpellChecker

    return SpellChecker.languages()


def _of_language(language: str, words: Iterable[str]) -> list[float]:
    from spellchecker import SpellChecker

    # Up to 100 MB, which go when this returns.
    known = SpellChecker(language=language)
    return [1e6 * known.word_usage_frequency(word) for word in words]


def _identify(commonest: Sequence[str]) -> str | None:
    import pyarrow as pa

    from fullft_assets.examples.language import UNKNOWN, identify

    (found,) = identify(pa.array([" ".join(commonest)], pa.string()))
    return None if found == UNKNOWN else found


def _frequencies(path: Path) -> dict[str, float]:
    counts: dict[str, float] = {}
    for word, count in _entries(path):
        counts[word] = counts.get(word, 0.0) + count
    total = sum(count for count in counts.values() if math.isfinite(count))
    return {word: 1e6 * count / total if math.isfinite(count) else count for word, count in counts.items()}


def _entries(path: Path) -> Iterator[tuple[str, float]]:
    """Yield (word in lower case, count, infinite where there is none) of each line that is not blank."""
    empty = True
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        entry = _ENTRY.fullmatch(line.strip())
        if entry is None:
            raise SettingsError(
                f"{path}:{number}: is neither a word nor a word, a tab and its count (1 or more); fix the"
                " line"
            )
        empty = False
        yield entry[1].lower(), float(entry[2] or math.inf)
    if empty:
        raise SettingsError(f"{path}: contains no word; give one a line")


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not UTF-8; save it as such") from error
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; chunks.general_words names it") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; chunks.general_words names it") from error
