"""General words: how often words occur in general language, by the word lists of languages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any


def key_of(languages: Sequence[str]) -> dict[str, Any]:
    """Return what the comparison with general language depends on, beside the words."""
    return {"languages": list(languages), "pyspellchecker": version("pyspellchecker")}


def per_million(
    words: Sequence[str], commonest: Sequence[str], languages: Sequence[str] = ()
) -> tuple[str, list[float] | None]:
    """Return what the words are compared with, in words, and how often each occurs in a million words of
    general language.

    Args:
        words: in lower case. One that no list knows has 0.
        commonest: the corpus's commonest words, which identify its language.
        languages: that the texts may be in (ISO 639-1). Default: the identified one.

    Returns:
        The name, and the frequencies; of several languages the highest. None: there is no list, only the
        vocabulary is compared with.
    """
    from spellchecker import SpellChecker

    identified = ""
    if not languages:
        language = _identify(commonest)
        if language is None:
            return "the vocabulary alone: the language was not identified", None
        languages = [language]
        identified = " (identified)"
    listed = [language for language in languages if language in SpellChecker.languages()]
    missing = ", ".join(language for language in languages if language not in listed)
    if not listed:
        return f"the vocabulary alone: no list for {missing}{identified}", None
    name = f"the general words of {', '.join(listed)}{identified}"
    frequencies = [_of_language(language, words) for language in listed]
    return f"{name}; no list for {missing}" if missing else name, list(
        map(max, zip(*frequencies, strict=True))
    )


def _of_language(language: str, words: Iterable[str]) -> list[float]:
    from spellchecker import SpellChecker

    # Up to 100 MB, which go when this returns.
    known = SpellChecker(language=language)
    return [1e6 * known.word_usage_frequency(word) for word in words]


def _identify(commonest: Sequence[str]) -> str | None:
    import pyarrow as pa

    from fullft_assets.examples.language import UNKNOWN, identify

    (language,) = identify(pa.array([" ".join(commonest)], pa.string()))
    return None if language == UNKNOWN else language
