"""documents/formats/code_pages: short texts in the code pages of their languages, real sentences from
Django's translations.
"""

import re
from functools import cache
from pathlib import Path

import pytest

from fullft_assets.documents import raw
from fullft_assets.documents.names import alias
from fullft_assets.documents.reading import ReadBatch
from fullft_assets.documents.sources import Folder
from tests import text_in_other_scripts
from tests.test_documents_formats import read_batch

pytestmark = pytest.mark.quick

CODE_PAGES = [
    *[(language, name) for language in ("de", "fr", "pt_BR") for name in ("cp1252", "latin_1", "iso8859_15")],
    *[(language, name) for language in ("pl", "hu", "cs") for name in ("cp1250", "iso8859_2")],
]
#: Where they are really used, other ones are found as well.
OTHERS = [
    ("de", "mac_roman"),
    ("fr", "mac_roman"),
    ("de", "cp850"),
    ("fr", "cp850"),
    ("pl", "cp852"),
    ("ru", "koi8_r"),
    ("ru", "cp1251"),
]
OTHERS += [
    ("lt", "cp1257"),
    ("lv", "cp1257"),
    ("et", "cp1257"),
    ("uk", "koi8_u"),
    ("el", "cp1253"),
    ("tr", "cp1254"),
]
OTHERS += [("ja", "cp932"), ("zh_Hans", "gb18030"), ("ko", "cp949")]


@cache
def sentences(language: str) -> list[str]:
    """Return texts of a language that are not ASCII: what Django shows, without its placeholders."""
    texts = (
        " ".join(re.sub(r"%\(\w+\)s|%[sd]|\{[^}]*\}|<[^>]+>", "", text).split())
        for text in text_in_other_scripts.translations(language)
    )
    found = [
        text
        for text in texts
        if " " in text and len(text) >= (12 if language in ("ja", "zh_Hans", "ko") else 25)
    ]
    return [text for text in dict.fromkeys(found) if not text.isascii()]


def encodable(language: str, encoding: str) -> list[str]:
    """Return the sentences that an encoding has all characters of."""
    return [text for text in sentences(language) if text.encode(encoding, "replace").decode(encoding) == text]


def deliver(folder: Path, texts: dict[str, tuple[str, str]]) -> ReadBatch:
    """Write each text in its encoding as a file, and read them as one batch."""
    folder.mkdir(exist_ok=True)
    for name, (text, encoding) in texts.items():
        (folder / name).write_bytes(text.encode(encoding))
    return read_batch(folder)


def share_right(batch: ReadBatch, texts: dict[str, tuple[str, str]]) -> float:
    """Return the share of the files that are read as they were written."""
    found = dict(zip(batch.table["source"].to_pylist(), batch.table["text"].to_pylist(), strict=True))
    return sum(found.get(name) == text for name, (text, _) in texts.items()) / len(texts)


@pytest.mark.parametrize(("language", "encoding"), [*CODE_PAGES, *OTHERS])
@pytest.mark.heavy
def test_files_of_one_sentence_are_read_in_the_code_page_of_all(
    language: str, encoding: str, tmp_path: Path
) -> None:
    texts = {f"{n:04d}.txt": (text, encoding) for n, text in enumerate(encodable(language, encoding))}
    assert len(texts) > 60
    batch = deliver(tmp_path, texts)
    assert share_right(batch, texts) >= min(0.995, 1 - 1 / len(texts)), set(batch.encodings.values())


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("first", "second"), [(("de", "cp1252"), ("pl", "cp1250")), (("fr", "cp1252"), ("cs", "cp1250"))]
)
@pytest.mark.parametrize("num_second", [10, 90])
def test_two_code_pages_in_one_batch(
    first: tuple[str, str], second: tuple[str, str], num_second: int, tmp_path: Path
) -> None:
    texts = {f"a{n}.txt": (text, first[1]) for n, text in enumerate(encodable(*first)[:90])}
    texts |= {f"b{n}.txt": (text, second[1]) for n, text in enumerate(encodable(*second)[:num_second])}
    assert share_right(deliver(tmp_path, texts), texts) >= 0.95


def test_a_rare_encoding_is_named_by_the_check(tmp_path: Path) -> None:
    texts = {f"{n}.txt": (text, "utf-8") for n, text in enumerate(sentences("fr")[:20])}
    texts |= {f"old-{n}.txt": (text, "cp1252") for n, text in enumerate(encodable("fr", "cp1252")[30:33])} | {
        "a.txt": ("plain", "ascii")
    }
    batch = deliver(tmp_path, texts)
    assert share_right(batch, texts) == 1
    assert batch.num_files_by_encoding == {
        "utf-8": 20,
        "cp1252": 3,
        "ascii": 1,
    }
    check = raw._encodings_check(Folder(tmp_path), batch)
    assert not check.passed and check.severity == "warn"
    expected = (
        f"detected in few files: 3 in cp1252 ({alias('old-0.txt')}); look at these rows, and set"
        " documents.encoding where it is wrong"
    )
    assert check.description == expected
    only = deliver(tmp_path / "only", {name: found for name, found in texts.items() if found[1] != "utf-8"})
    assert raw._encodings_check(Folder(tmp_path / "only"), only).passed, (
        "what is ASCII is in no other encoding"
    )
