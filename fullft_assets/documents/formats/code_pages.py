"""Code pages of text that is neither UTF-8 nor declared: the fewest that explain all files which are read
together.

One sentence fits several code pages about equally well, the files of one delivery together hardly ever do. So
each file is scored against each code page by itself (`scores_of`), and the encoding is chosen for all of them
at once (`choose`).
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache

#: What fits one file: a score by encoding, the better the higher.
Scores = dict[str, float]
#: Encodings that documents outside UTF-8 are found in; of equally likely ones the first is taken.
# fmt: off
CANDIDATES = (
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp874", "koi8_r",
    "koi8_u", "iso8859_2", "iso8859_15",
    "iso8859_5", "mac_roman", "cp850", "cp852", "cp866", "cp932", "euc_jis_2004", "gb18030", "big5", "cp949",
)
# fmt: on
#: A file supports an encoding whose score is at least this share of the file's best.
_SUPPORTED_SHARE = 0.8
#: A file is read in an encoding of the batch whose score is at least this share of the file's best, else in
#: its own best.
_ACCEPTED_SHARE = 0.3
#: An encoding that fewer of the files support is no encoding of the batch.
_LEAST_FILES_SHARE = 0.05
#: How much the number of files that support an encoding counts against the score of one file.
_WEIGHT_OF_FILES = 0.15
#: With a score below this share of the best, the position of the characters is not looked at.
_EXAMINED_SHARE = 0.3
#: Characters that are looked at for their position.
_EXAMINED_CHARACTERS = 2_000
#: What each encoding is given that decodes a text. Confidences in short texts are below it, and tell nothing.
_LEAST_SCORE = 0.02
#: A text in another script than Latin has at least this share of its letters in it.
_LEAST_SCRIPT_SHARE = 0.1
#: Codes of the encodings of ISO 8859 that no text contains: in cp1252 and the like these bytes are quotation
#: marks.
_C1_CONTROLS = re.compile("[\x80-\x9f]")
#: Characters outside ASCII that may be between two letters without being one.
_JOINING = "’‘'\u00ad·\u00a0–—-"
#: Positions that no text has, in the kinds of `_kind`: Latin letters beside others, a capital after a small
#: letter, a sign between letters.
_MISPLACED = re.compile("[aA]x|x[aA]|(?<=[au])U|(?<=[aAuUx])s(?=[aAuUx])")


def scores_of(sample: bytes) -> Scores:
    """Return a score for each encoding that decodes a sample: how much it looks like text of some language,
    and its characters in place.
    """
    import chardet

    guesses = chardet.detect_all(
        sample, ignore_threshold=True, include_encodings=CANDIDATES, compat_names=False
    )
    confidences = {_candidate(each["encoding"] or ""): each["confidence"] for each in guesses}
    decoded = {name: text for name in CANDIDATES if (text := _text_in(sample, name)) is not None}
    scores = {name: _LEAST_SCORE + confidences.get(name, 0.0) for name in decoded}
    # The others are out of question, however their characters are placed.
    least = _EXAMINED_SHARE * max(scores.values(), default=0.0)
    return {
        name: score * (_plausibility(decoded[name]) if score >= least else 1.0)
        for name, score in scores.items()
    }


def choose(files: Sequence[Scores]) -> list[str | None]:
    """Return the encoding of each file, or None where none is likely.

    Encodings are taken one after the other, each time the one that the remaining files support most. Those
    that a part of the files supports are the encodings of the batch; each file is read in the one of them
    that fits it best, and in another one only if none fits.
    """
    own = _supported(files)
    numbers = Counter(name for name in own if name is not None)
    of_batch = [name for name, number in numbers.items() if number >= _LEAST_FILES_SHARE * len(files)]
    most = max(numbers.values(), default=0)

    def weight(scores: Scores, name: str) -> float:
        return scores[name] * (1 - _WEIGHT_OF_FILES + _WEIGHT_OF_FILES * numbers[name] / most)

    chosen: list[str | None] = []
    for scores, alone in zip(files, own, strict=True):
        least = _ACCEPTED_SHARE * max(scores.values(), default=0.0)
        weights = {name: weight(scores, name) for name in of_batch if scores.get(name, -1.0) >= least}
        chosen.append(_first_best(weights) if weights else alone)
    return chosen


def _supported(files: Sequence[Scores]) -> list[str | None]:
    """Return the encoding by which each file was counted while the batch's encodings were taken one after the
    other.
    """
    supported = [_of_share(scores, _SUPPORTED_SHARE) for scores in files]
    remaining = [at for at, scores in enumerate(supported) if scores]
    names: list[str | None] = [None] * len(files)
    while remaining:
        totals: dict[str, float] = defaultdict(float)
        for at in remaining:
            for name, score in supported[at].items():
                totals[name] += score
        best = _first_best(totals)
        for at in remaining:
            if best in supported[at]:
                names[at] = best
        remaining = [at for at in remaining if names[at] is None]
    return names


def _of_share(scores: Scores, share: float) -> Scores:
    least = share * max(scores.values(), default=0.0)
    return {name: score for name, score in scores.items() if score >= least}


def _first_best(scores: Mapping[str, float]) -> str:
    """Return the encoding with the highest score; of scores that differ by a thousandth, the first
    candidate.
    """
    least = 0.999 * max(scores.values())
    return next(name for name in CANDIDATES if scores.get(name, -1.0) >= least)


@cache
def _candidate(name: str) -> str | None:
    """Return the candidate that a detected encoding is, or None."""
    try:
        return {codecs.lookup(each).name: each for each in CANDIDATES}.get(codecs.lookup(name).name)
    except LookupError:
        return None


def _text_in(data: bytes, encoding: str) -> str | None:
    try:
        # A sample may end within a character.
        text = codecs.getincrementaldecoder(encoding)().decode(data)
    except UnicodeError:
        return None
    return None if _C1_CONTROLS.search(text) else text


def _plausibility(text: str) -> float:
    """Return how plausible the positions of the characters outside ASCII are, from 0 to 1."""
    kinds = Counter(kinds_in_order := "".join(map(_kind, text[:_EXAMINED_CHARACTERS])))
    num_characters = len(kinds_in_order) - kinds[" "] - kinds["a"] - kinds["A"]
    if not num_characters:
        return 1.0
    share_in_place = 1 - min(1.0, len(_MISPLACED.findall(kinds_in_order)) / num_characters)
    # A few letters of another script in a Latin text are rather accents in another code page.
    is_foreign = 0 < kinds["x"] < _LEAST_SCRIPT_SHARE * (len(kinds_in_order) - kinds[" "] - kinds["s"])
    return share_in_place**2 * (0.5 if is_foreign else 1.0)


@cache
def _kind(character: str) -> str:
    """Return `a` or `A` for a letter of ASCII, `u` or `U` for another Latin one, `x` for one of another
    script, `s` for a sign.
    """
    if character.isascii():
        return " " if not character.isalpha() else "a" if character.islower() else "A"
    if not character.isalpha():
        return " " if character in _JOINING or character.isspace() else "s"
    if not unicodedata.name(character, "").startswith(("LATIN", "MICRO", "FEMININE", "MASCULINE")):
        return "x"
    return "U" if character.isupper() else "u"
