"""The encoding of a text: that of its byte order mark, else UTF-8 where it fits, else a likely code page.

One sentence fits several code pages about equally well, the files of one delivery together hardly ever do. So
each file is scored against each code page by itself (`_scores_of`), and the encoding is chosen for all of
them at once (`choose`).
"""

import codecs
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TypeVar

from fullft_assets.documents.formats.delivered import MAX_LINE_CHARACTERS, Delivered, Unreadable

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
#: Positions that no text has, in the kinds of `_kind`: Latin letters beside others, a capital after a small
#: letter, a sign between letters.
_MISPLACED = re.compile("[aA]x|x[aA]|(?<=[au])U|(?<=[aAuUx])s(?=[aAuUx])")


def _scores_of(sample: bytes) -> Scores:
    """Return a score for each encoding that decodes a sample: how much it looks like text of some language,
    and its characters in place.
    """
    import chardet

    guesses = chardet.detect_all(
        sample, ignore_threshold=True, include_encodings=CANDIDATES, compat_names=False
    )
    confidences = {_candidate(guess["encoding"] or ""): guess["confidence"] for guess in guesses}
    texts = {name: text for name in CANDIDATES if (text := _text_in(sample, name)) is not None}
    # What each encoding is given that decodes a text. Confidences in short texts are below it, and tell
    # nothing.
    scores = {name: 0.02 + confidences.get(name, 0.0) for name in texts}
    # The others are out of question, however their characters are placed.
    # With a score below this share of the best, the position of the characters is not looked at.
    least = 0.3 * max(scores.values(), default=0.0)
    return {
        name: score * (_plausibility(texts[name]) if score >= least else 1.0)
        for name, score in scores.items()
    }


def choose(files: Sequence[Scores]) -> list[str | None]:
    """Return the encoding of each file, or None where none is likely: the one that fits it, the more so the
    more files it fits best or nearly so.
    """
    support: dict[str, float] = defaultdict(float)
    for scores in files:
        best = max(scores.values(), default=0.0)
        for name, score in scores.items():
            # A file supports an encoding whose score is at least this share of the file's best.
            if score >= 0.9 * best > 0:
                support[name] += score / best
    # How much the support of all files counts against the score of one file.
    weights = {name: number ** (1 / 3) for name, number in support.items()}
    return [
        max(scores, key=lambda name, scores=scores: scores[name] * weights.get(name, 0.0), default=None)
        for scores in files
    ]


@cache
def _candidate(name: str) -> str | None:
    try:
        return {codecs.lookup(candidate).name: candidate for candidate in CANDIDATES}.get(
            codecs.lookup(name).name
        )
    except LookupError:
        return None


def _text_in(data: bytes, encoding: str) -> str | None:
    try:
        # A sample may end within a character.
        text = codecs.getincrementaldecoder(encoding)().decode(data)
    except UnicodeError:
        return None
    # Codes of the encodings of ISO 8859 that no text contains: in cp1252 and the like these bytes are
    # quotation marks.
    return None if re.search("[\x80-\x9f]", text) else text


def _plausibility(text: str) -> float:
    # Characters that are looked at for their position.
    kinds = Counter(kinds_in_order := "".join(map(_kind, text[:2_000])))
    if not (num_characters := len(kinds_in_order) - kinds[" "] - kinds["a"] - kinds["A"]):
        return 1.0
    share_in_place = 1 - min(1.0, len(_MISPLACED.findall(kinds_in_order)) / num_characters)
    # A few letters of another script in a Latin text are rather accents in another code page.
    # A text in another script than Latin has at least this share of its letters in it.
    return share_in_place**2 * (
        0.5 if 0 < kinds["x"] < 0.1 * (len(kinds_in_order) - kinds[" "] - kinds["s"]) else 1.0
    )


@cache
def _kind(character: str) -> str:
    """Return `a` or `A` for a letter of ASCII, `u` or `U` for another Latin one, `x` for one of another
    script, `s` for a sign.
    """
    if character.isascii():
        return " " if not character.isalpha() else "a" if character.islower() else "A"
    if not character.isalpha():
        # Characters outside ASCII that may be between two letters without being one.
        return " " if character in "’‘'\u00ad·\u00a0–—-" or character.isspace() else "s"
    if not unicodedata.name(character, "").startswith(("LATIN", "MICRO", "FEMININE", "MASCULINE")):
        return "x"
    return "U" if character.isupper() else "u"


T = TypeVar("T")
#: What `read_text` calls the encoding of a text that has no other characters.
ASCII = "ascii"
#: Longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UTF_8 = ("utf-8", "utf-8-sig")
#: Bytes of lines with characters outside ASCII that an encoding is detected from.
SAMPLE_BYTES = 2**16
#: Characters at the start of a text that distinguish text from binary data.
CHECKED_CHARACTERS = 2**16
_CONTROLS = [chr(code) for code in (*range(9), 11, *range(14, 32), 127)]
MAX_CONTROL_SHARE = 0.01


def is_encoding(name: str) -> bool:
    """Return whether a name is one of an encoding of text; codecs such as base64 are none."""
    try:
        return bool(getattr(codecs.lookup(name), "_is_text_encoding", True))
    except LookupError:
        return False


def of_mark(head: bytes) -> str | None:
    """Return the encoding that a byte order mark names, or None."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), None)


def _refuse_binary(text: str) -> None:
    start = text[:CHECKED_CHARACTERS]
    controls = sum(start.count(character) for character in _CONTROLS)
    if controls > 2 and controls > MAX_CONTROL_SHARE * len(start):
        raise Unreadable(
            "binary data, not text; if it is UTF-16 without a byte order mark, set documents.encoding"
        )


def _refuse_binary_file(file: Delivered) -> bool:
    """Raise `Unreadable` where a decoded file is no text; return whether it is short and ASCII."""
    with file.text() as text:
        start = text.read(CHECKED_CHARACTERS)
    _refuse_binary(start)
    return len(start) < CHECKED_CHARACTERS and start.isascii()


def alone(scores: Scores) -> str | None:
    """Return the likeliest encoding of a file that is read by itself."""
    return choose([scores])[0]


def _scores_of_lines(lines: Iterable[bytes]) -> Scores:
    """Return a score by encoding of lines that are not UTF-8; none where they are in no encoding.

    Text that is UTF-8 except for damaged bytes has no other encoding: decoded by one, every other letter
    would be wrong.

    Raises:
        Unreadable: they are binary data.
    """
    sample = bytearray()
    for line in lines:
        if not line.isascii():
            sample += line[: SAMPLE_BYTES - len(sample)]
            if len(sample) >= SAMPLE_BYTES:
                break
    _refuse_binary(sample.decode("latin-1"))
    return {} if _is_damaged_utf8(bytes(sample)) else _scores_of(bytes(sample))


def _is_damaged_utf8(sample: bytes) -> bool:
    text = sample.decode("utf-8", "surrogateescape")
    # A broken byte is a lone surrogate, which UTF-8 does not encode.
    return len(text) - len(text.encode("ascii", "ignore")) >= 2 * (
        len(text) - len(text.encode("utf-8", "ignore").decode("utf-8"))
    )


def read_text(
    file: Delivered,
    encoding_of_settings: str | None,
    declared_by: Callable[[bytes], str | None] | None,
    read: Callable[[Delivered], T],
    decide: Callable[[Scores], str | None] = alone,
) -> tuple[T, str]:
    """Return the result of `read` on a text file in the first encoding that fits, and that encoding: `ASCII`
    for a short text of ASCII characters alone.

    Args:
        file: the file.
        encoding_of_settings: the encoding that the settings name; a byte order mark is stronger.
        declared_by: returns the encoding that the first bytes of the file declare; wrong often enough that
            UTF-8 is tried first.
        read: reads the file in the encoding that `Delivered.encoding` names.
        decide: returns the encoding of a file that is in none of these, by the score of each encoding.

    Raises:
        Unreadable: no encoding fits, it is binary data, or `read` raises it.
    """
    with file.binary() as data:
        # Bytes at the start of a file that a byte order mark or a declared encoding is looked for in.
        head = data.read(4096)
    certain_encoding = of_mark(head) or encoding_of_settings
    for encoding in (
        (certain_encoding,)
        if certain_encoding
        else _candidates(file, declared_by(head) if declared_by is not None else None, decide)
    ):
        file_in_encoding = replace(file, encoding=encoding)
        try:
            is_ascii = _refuse_binary_file(file_in_encoding) and not certain_encoding
            return read(file_in_encoding), ASCII if is_ascii else encoding
        except UnicodeError:
            continue
    raise Unreadable(_complaint(file, certain_encoding or "utf-8-sig"))


def _candidates(
    file: Delivered, declared: str | None, decide: Callable[[Scores], str | None]
) -> Iterator[str]:
    yield "utf-8-sig"
    if declared is not None:
        yield declared
    with file.binary() as data:
        # In pieces where a line is long: the sample has no more of it anyway.
        detected_encoding = decide(_scores_of_lines(iter(lambda: data.readline(SAMPLE_BYTES), b"")))
    if detected_encoding is not None:
        yield detected_encoding


def _complaint(file: Delivered, encoding: str) -> str:
    """Return why an encoding does not fit a file, with the number of the first bad line where lines can be
    found without decoding.
    """
    name = "UTF-8" if encoding in _UTF_8 else encoding
    if codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
        return f"not {name}"
    # The decoder's own position counts from the start of its buffer, which helps nobody.
    with file.binary() as data:
        lines = iter(lambda: data.readline(MAX_LINE_CHARACTERS), b"")
        number = next(
            (number for number, line in enumerate(lines, start=1) if not _decodes(line, encoding)), 1
        )
    return f"not {name} on line {number}" + (
        "; where it has another encoding, set documents.encoding" if encoding in _UTF_8 else ""
    )


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeError:
        return False
    return True


def decode(data: bytes) -> str:
    """Return the text of a part of a document, which is read by itself.

    Raises:
        Unreadable: no encoding fits, or it is binary data.
    """
    encoding: str | None = of_mark(data) or "utf-8-sig"
    if not _decodes(data, encoding):
        encoding = alone(_scores_of_lines(data.splitlines(keepends=True)))
    if encoding is None or not _decodes(data, encoding):
        raise Unreadable("not UTF-8, and no other encoding fits; set documents.encoding")
    text = data.decode(encoding)
    _refuse_binary(text)
    return text
