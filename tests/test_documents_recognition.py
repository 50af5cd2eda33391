"""documents: the text of scanned pages is recognised where the settings ask for it (extra `ocr`)."""

import importlib
import io
from pathlib import Path

import pytest

from fullft_assets.checking.validation import load_use_case
from fullft_assets.documents import keep, list_batches, look
from fullft_assets.documents.formats import office
from fullft_assets.errors import SettingsError
from fullft_assets.store import Store
from tests import project as projects
from tests.test_documents_formats import read_batch, shown, written_pdf

LINES = (
    "Permission is hereby granted, free of charge, to any person",
    "obtaining a copy of this software and associated files",
)
ASKED = {"pages_without_text": "recognise"}
needs_the_extra = pytest.mark.skipif(
    not office.recognizer_is_installed(), reason="the extra `ocr` is not installed"
)


def scanned(tmp_path: Path) -> bytes:
    """Return a PDF of two pages: one with text, and the picture of another one."""
    import pypdf

    (tmp_path / "typed").write_bytes(written_pdf(shown(*LINES)))
    with importlib.import_module("pypdfium2").PdfDocument(tmp_path / "typed") as typed:
        picture = io.BytesIO()
        typed[0].render(scale=2).to_pil().convert("RGB").save(picture, "PDF", resolution=144)
    writer, made = pypdf.PdfWriter(), io.BytesIO()
    for pages in (io.BytesIO(written_pdf(shown("A page with text"))), picture):
        writer.append(pages)
    writer.write(made)
    (tmp_path / "typed").unlink()
    return made.getvalue()


@needs_the_extra
def test_a_page_without_text_is_recognised_beside_one_that_has_it(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(scanned(tmp_path))
    assert read_batch(tmp_path).table["text"].to_pylist() == ["A page with text"]
    found = read_batch(tmp_path, pdf=ASKED)
    assert found.unreadable == {} and found.pages_without_text == {"a.pdf": 1}
    assert found.table["text"].to_pylist() == ["\n\n".join(["A page with text", "\n".join(LINES)])]


@needs_the_extra
def test_a_check_says_that_text_was_recognised_and_the_release_of_the_models_is_part_of_the_key(
    tmp_path: Path,
) -> None:
    project = projects.create(tmp_path, documents={"pdf": ASKED})
    (project.documents / "a.pdf").write_bytes(scanned(tmp_path))
    use_case, store = project.use_case(), Store(str(project.home / "store"))
    look(store, use_case)
    raw = keep(store, use_case, list_batches(store, use_case.name)[0].name)
    (check,) = [check for check in raw.checks if check.name == "pages_have_text"]
    assert (
        not check.passed
        and "1 page(s) without text, which was recognised: look at some of it" in check.description
    )
    assert raw.settings["ocr"] == office.recognizer_version()


def test_without_the_extra_it_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(office, "recognizer_is_installed", lambda: False)
    project = projects.create(tmp_path, documents={"pdf": ASKED})
    with pytest.raises(
        SettingsError,
        match=r"documents.pdf.pages_without_text: needs RapidOCR; pip install 'fullft-assets\[ocr\]'",
    ):
        load_use_case(project.yaml_path)
