"""documents/formats: office files, mail and XML, written by the libraries that people write them with."""

import datetime
import email.message
import email.policy
import gzip
import io
import mailbox
import zipfile
from pathlib import Path
from typing import Any

import docx
import openpyxl
import pytest
from docx.opc.constants import RELATIONSHIP_TYPE
from docx.opc.packuri import PackURI
from docx.opc.part import Part
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls

from fullft_assets import documents
from fullft_assets.documents.formats import delivered
from fullft_assets.documents.formats.mail import without_quoted
from fullft_assets.documents.reading import read_documents
from fullft_assets.settings import DocumentsSettings, ExamplesSettings
from tests import project as projects
from tests.test_documents_formats import read, read_batch, shown, written_pdf

pytestmark = pytest.mark.quick

NOTES = """<w:footnotes xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">\
<w:footnote w:id="2"><w:p><w:r><w:t>See
annex A.</w:t></w:r></w:p></w:footnote></w:footnotes>"""
JATS = """<?xml version="1.0"?>
<!DOCTYPE article PUBLIC "-//NLM//DTD JATS 1.2//EN" "JATS-archivearticle1.dtd">
<article article-type="research"><front><journal-meta><journal-title>Journal</journal-title></journal-meta>\
<article-meta>
<article-id pub-id-type="pmid">77</article-id><article-id pub-id-type="doi">10.1/x</article-id>
<title-group><article-title>On <italic>E. coli</italic></article-title></title-group>
<abstract><p>Growth &gt; 5&#160;%.</p></abstract></article-meta></front>
<body><sec><title>Methods</title><p>We <bold>grew</bold> it<sup>2</sup>
again.</p><table><tr><th>a</th><th><p>b</p></th></tr><tr><td>1</td><td>2</td></tr></table></sec></body>
<back><ref-list><ref>Other paper</ref></ref-list></back></article>"""
PUBMED = """<PubmedArticleSet><PubmedArticle><MedlineCitation><PMID Version="1">11</PMID>\
<Article><ArticleTitle>First.</ArticleTitle>
<Abstract><AbstractText Label="AIM">To see.</AbstractText>\
<AbstractText Label="RESULT">Seen.</AbstractText></Abstract></Article>
<KeywordList><Keyword>x</Keyword></KeywordList></MedlineCitation></PubmedArticle>
<PubmedArticle><MedlineCitation><PMID>12</PMID>\
<Article><ArticleTitle>Second.</ArticleTitle></Article></MedlineCitation></PubmedArticle>
</PubmedArticleSet>"""


def letter() -> bytes:
    """Return a DOCX with a header, a table, a note, a content control, and tracked changes."""
    document = docx.Document()
    document.sections[0].header.paragraphs[0].text = "Clinic of Example"
    document.add_heading("Report", 1)
    paragraph = document.add_paragraph("The patient is ")
    ns = nsdecls("w")
    paragraph._p.append(parse_xml(f"<w:del {ns}><w:r><w:delText>ill</w:delText></w:r></w:del>"))
    paragraph._p.append(parse_xml(f"<w:ins {ns}><w:r><w:t>well</w:t></w:r></w:ins>"))
    paragraph.add_run(".")
    paragraph._p.append(parse_xml(f'<w:r {ns}><w:footnoteReference w:id="2"/></w:r>'))
    table = document.add_table(2, 2)
    for number, value in enumerate(("test", "value", "CRP", "5")):
        table.cell(number // 2, number % 2).text = value
    control = parse_xml(
        f"<w:sdt {ns}><w:sdtContent><w:p><w:r><w:t>In a control</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    )
    document.element.body.insert(len(document.element.body) - 1, control)
    document.add_paragraph("The end")
    part = Part(PackURI("/word/footnotes.xml"), "application/xml", NOTES.encode(), document.part.package)
    document.part.relate_to(part, RELATIONSHIP_TYPE.FOOTNOTES)
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def test_a_docx_is_its_text_in_reading_order_with_changes_accepted(tmp_path: Path) -> None:
    [row] = read(tmp_path, {"label": "folder"}, files={"wards/a.docx": letter()})
    assert row["text"] == (
        "Report\nThe patient is well.\nSee\nannex A.\ntest\tvalue\nCRP\t5\nIn a control\nThe end"
    )
    assert (row["label"], row["row"], row["problem"]) == ("wards", 1, None)


def test_a_docx_that_is_damaged_or_encrypted_says_so(tmp_path: Path) -> None:
    data = letter()
    projects.write_files(
        tmp_path,
        {
            "good.jsonl": '{"text": "good"}\n',
            "cut.docx": data[: len(data) // 2],
            "flipped.docx": data[:3000] + bytes([data[3000] ^ 255]) + data[3001:],
            "old.docx": delivered.OLE_MAGIC + bytes(1000),
        },
    )
    assert read_batch(tmp_path).unreadable == {
        "cut.docx": "not a complete DOCX (BadZipFile)",
        "flipped.docx": "not a complete DOCX (BadZipFile)",
        "old.docx": "not DOCX: encrypted with a password, or in the old format of Office; save it as DOCX",
    }


def workbook(*sheets: list[list[Any]]) -> openpyxl.Workbook:
    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for rows in sheets:
        sheet = book.create_sheet()
        for row in rows:
            sheet.append(row)
    return book


def test_a_spreadsheet_gives_its_rows_as_they_are_shown(tmp_path: Path) -> None:
    header = ["id", "text", "kind", "expression"]
    day, hour = datetime.datetime(2024, 5, 6), datetime.datetime(2024, 5, 6, 7, 8)
    book = workbook(
        [
            header,
            ["00012", "a", 1, day],
            [12, "b", 0.1 + 0.2, hour],
            [],
            [True, "c", "x", 7.0],
            [4, "d", None, 10**9],
            [5, 6],
        ]
    )
    sheet = book.worksheets[0]
    sheet["A3"].number_format = "00000"
    sheet.merge_cells("E1:G1")
    book.save(tmp_path / "a.xlsx")
    assert [(row["row"], row["id"], row["text"], row["label"], row["group"]) for row in read(tmp_path)] == [
        (2, "00012", "a", "1", "2024-05-06"),
        (3, "00012", "b", "0.3", "2024-05-06t07:08:00"),
        (5, "true", "c", "x", "7"),
        (6, "4", "d", None, "1000000000"),
        (7, "5", "6", None, None),
    ]
    sheet.merge_cells("C5:C6")
    book.save(tmp_path / "a.xlsx")
    (tmp_path / "b.jsonl").write_text('{"text": "good"}\n')
    unreadable = read_batch(tmp_path).unreadable
    assert {name: "are merged" in why for name, why in unreadable.items()} == {"a.xlsx": True}


def test_cells_without_a_value_are_empty(tmp_path: Path) -> None:
    book = workbook(
        [
            ["text", "kind", "other"],
            ["b", "#N/A", None],
            ["c", "y", "=1+1"],
            ["d", "z", None, "more"],
            [None, None, "=1+1"],
            ["e", "=IF(1<2,3,4)", None],
            ["=1+1", "=2+2", None],
            ["f", '=""', None],
        ]
    )
    book.worksheets[0]["D2"].number_format = "0.00"
    book.save(data := io.BytesIO())
    # The last one is computed, as an empty text.
    with zipfile.ZipFile(data) as old, zipfile.ZipFile(tmp_path / "a.xlsx", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'<c r="B8">', b'<c r="B8" t="str">'))
    formula = "a formula in `%s` that no program has computed; open and save the file"
    assert [(row["row"], row["text"], row["label"], row["problem"]) for row in read(tmp_path)] == [
        (2, "b", None, None),
        (3, "c", "y", None),
        (4, None, None, "has more fields than the header"),
        (6, None, None, formula % "kind"),
        (7, None, None, formula % "text"),
        (8, "f", None, None),
    ]


def test_sheets_with_one_header_are_read_as_one_table(tmp_path: Path) -> None:
    legend, data = [["key", "meaning"], ["x", "y"]], [["text", "kind"], ["a", "x"], ["b", "y"]]
    book = workbook([], data, legend, data)
    book.create_sheet().sheet_state = "hidden"
    # Of a sheet that is not read.
    book.worksheets[2].merge_cells("A2:A9")
    book.save(tmp_path / "a.xlsx")
    assert [
        (row["row"], row["text"], row["group"], row["problem"]) for row in read(tmp_path, {"group": "sheet"})
    ] == [
        (2, "a", "sheet1", None),
        (3, "b", "sheet1", None),
        (5, "a", "sheet3", None),
        (6, "b", "sheet3", None),
    ]
    workbook([["cover"]], [["Report of 2024"], ["text", "kind"], ["a", "x"]], [["notes"]]).save(
        tmp_path / "a.xlsx"
    )
    assert [row["text"] for row in read(tmp_path, header=2)] == ["a"]


def message(**headers: str) -> email.message.EmailMessage:
    made = email.message.EmailMessage(policy=email.policy.SMTP)
    for name, value in headers.items():
        made[name.replace("_", "-")] = value
    return made


def test_a_message_is_its_subject_and_body(tmp_path: Path) -> None:
    plain = message(
        Subject="Größe",
        From="a@example.org",
        Message_ID="<1@example.org>",
        Date="Mon, 06 May 2024 07:08:00 +0000",
    )
    plain.set_content("Hällo,\n\nfine.\n\nOn Monday, B wrote:\n> is it?\n> yes\n", charset="iso-8859-1")
    plain.add_alternative("<p>not this</p>", subtype="html")
    plain.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="a.pdf")
    html = message(Subject="Offer")
    html.set_content("<p>One</p><p>two</p>", subtype="html")
    first, second = read(
        tmp_path,
        {"label": "num_attachments", "group": "from"},
        files={"a.eml": bytes(plain), "b.eml": bytes(html)},
        id="message_id",
    )
    assert first["text"] == "Größe\n\nHällo,\n\nfine.\n\nOn Monday, B wrote:\n> is it?\n> yes"
    assert (first["id"], first["label"], first["group"]) == ("<1@example.org>", "1", "a@example.org")
    assert (second["text"], second["id"], second["label"]) == ("Offer\n\nOne\n\ntwo", "b.eml:1", "0")
    assert read(tmp_path, mail={"quoted": "drop"})[0]["text"] == "Größe\n\nHällo,\n\nfine."


@pytest.mark.parametrize(
    "quoted",
    [
        (
            "From: B <b@example.org>\nSent: Monday, 6 May 2024 07:08\nTo: A <a@example.org>\nSubject: Re:"
            " x\n\nold"
        ),
        (
            "Von: B <b@example.org>\nGesendet: Montag, 6. Mai 2024 07:08\nAn: A <a@example.org>\nBetreff:"
            " x\n\nold"
        ),
        "De : B <b@example.org>\nEnvoyé : lundi 6 mai 2024 07:08\nÀ : A <a@example.org>\nObjet : x\n\nold",
        "pon., 6 maj 2024 o 07:08 B <b@example.org> napisał(a):\n\n> old\n> mail",
        "-----Ursprüngliche Nachricht-----\nVon: B\n\nold",
    ],
    ids=["Outlook", "Outlook in German", "Outlook in French", "Gmail in Polish", "old Outlook"],
)
def test_what_a_mail_quotes_is_dropped(quoted: str) -> None:
    own = "Hello,\n\n  - one\n  - two: three\n\nRegards\nA"
    assert without_quoted(f"{own}\n\n{quoted}\n").rstrip() == own


def test_answers_between_quoted_lines_and_a_forwarded_mail_stay() -> None:
    assert without_quoted("On Monday, B wrote:\n> is it?\nIt is.\n> sure?\nSure.").strip() == "It is.\nSure."
    forwarded = "From: B\nSent: Monday\nTo: A\n\nThe text."
    assert without_quoted(forwarded) == forwarded


def test_messages_that_lie_about_their_encoding_or_end_too_early(tmp_path: Path) -> None:
    head = (
        b"Subject: caf\xe9\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding:"
        b" 8bit\r\n\r\n"
    )
    mixed = message(Subject="x")
    mixed.set_content("text")
    mixed.add_attachment(b"y" * 500, maintype="image", subtype="png")
    batch = read_batch(
        tmp_path,
        files={
            "a.eml": head + "Déjà vu : où étiez-vous hier soir ?".encode("cp1252"),
            "b.eml": bytes(mixed)[:-300],
            "c.eml": b"just text\n",
        },
    )
    assert batch.table["text"].to_pylist() == ["café\n\nDéjà vu : où étiez-vous hier soir ?"]
    assert batch.unreadable == {
        "b.eml": "not a complete message (cut off)",
        "c.eml": "not a mail message: none of the usual headers",
    }


def test_a_mailbox_has_one_row_a_message(tmp_path: Path) -> None:
    box = mailbox.mbox(tmp_path / "a.mbox")
    for number in range(3):
        each = message(Subject=f"No. {number}")
        each.set_content("From here on\nit is quoted\n")
        box.add(mailbox.mboxMessage(each))
    box.flush()
    rows = read(
        tmp_path, {"label": "subject"}, files={"b.mbox.gz": gzip.compress((tmp_path / "a.mbox").read_bytes())}
    )
    assert [(row["row"], row["label"], row["text"]) for row in rows] == [
        (number + 1, f"No. {number}", f"No. {number}\n\nFrom here on\nit is quoted") for number in range(3)
    ] * 2


def test_rtf_is_its_text(tmp_path: Path) -> None:
    source = (
        r"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0 Arial;}}{\*\generator Riched20;}\f0 Caf\'e9"
        r" \u-10179?\u-8704?\par {\b Second} \{x\}\par}"
    )
    batch = read_batch(
        tmp_path,
        files={
            "a.rtf": source,
            "b.rtf": source[:-1],
            "c.rtf": "text",
        },
    )
    assert batch.table["text"].to_pylist() == ["Café 😀\nSecond {x}"]
    assert batch.unreadable == {
        "b.rtf": "not a complete RTF file (cut off: a group is not closed)",
        "c.rtf": "not RTF",
    }


@pytest.mark.parametrize(
    ("source", "settings", "expected"),
    [
        (
            JATS,
            {"id": "front//article-id[@pub-id-type='doi']", "text": "body"},
            [
                {
                    "text": "Methods\nWe grew it2 again.\na\tb\n1\t2",
                    "id": "10.1/x",
                    "group": "research",
                }
            ],
        ),
        (
            JATS,
            {"records": "p"},
            [{"text": "Growth > 5\xa0%."}, {"text": "We grew it2 again."}, {"text": "b"}],
        ),
        (
            PUBMED,
            {"records": "PubmedArticle", "text": "MedlineCitation/Article", "id": ".//PMID"},
            [{"text": "First.\nTo see.\nSeen.", "id": "11"}, {"text": "Second.", "id": "12"}],
        ),
        (
            "<notes><note><b>a</b><kind>x</kind></note></notes>",
            {"text": "b", "records": "note"},
            [{"text": "a", "label": "x"}],
        ),
    ],
)
def test_xml_is_read_by_paths(
    tmp_path: Path, source: str, settings: dict[str, Any], expected: list[dict[str, str]]
) -> None:
    rows = read(
        tmp_path,
        {"label": "kind", "group": "@article-type"},
        files={
            "a.xml": source,
            "b.xml.gz": gzip.compress(source.encode()),
        },
        **settings,
    )
    assert [{name: row[name] for name in expected[0]} for row in rows] == expected * 2


def test_xml_expands_no_entity_and_says_where_it_is_broken(tmp_path: Path) -> None:
    bomb = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    batch = read_batch(
        tmp_path,
        files={
            "bomb.xml": f'<!DOCTYPE a [<!ENTITY l0 "ha">{bomb}]><a><p>x</p>&l11;</a>',
            "file.xml": '<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/hostname">]><a>&f;</a>',
            "named.xml": '<!DOCTYPE a SYSTEM "a.dtd"><a>Caf&eacute;</a>',
            "cut.xml": "<a>\n<p>text</p>\n",
        },
    )
    assert batch.unreadable == {
        "cut.xml": "not XML: broken on line 3; the file may be cut off",
        "bomb.xml": "not XML: broken on line 1; the file may be cut off",
    }
    rows = {row["source"]: (row["text"], row["problem"]) for row in batch.table.to_pylist()}
    assert rows["named.xml"] == ("Café", None) and rows["file.xml"][0] is None
    assert "entity" in rows["file.xml"][1]


def test_pages_without_text_are_counted_or_quarantined(tmp_path: Path) -> None:
    batch = read_batch(
        tmp_path,
        files={
            "a.pdf": written_pdf(shown("One"), b"", shown("Three"), b"q 1 0 0 1 0 0 cm Q"),
            "b.pdf": written_pdf(shown("One")),
        },
    )
    assert (batch.table["text"].to_pylist(), batch.pages_without_text) == (
        ["One\n\nThree", "One"],
        {"a.pdf": 2},
    )
    batch = read_batch(tmp_path, pdf={"pages_without_text": "quarantine"})
    problem = (
        "2 of 4 pages have no text (scanned?); recognise the text, such as with ocrmypdf, and deliver again"
    )
    assert batch.table["problem"].to_pylist() == [problem, None]


OPEN_DOCUMENT = {
    "mimetype": "application/vnd.oasis.opendocument.text",
    "content.xml": (
        """<office:document-content
xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0"
xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0"><office:body><office:text>
<text:h>Terms</text:h><text:p>A naïve letter</text:p></office:text></office:body></office:document-content>"""
    ),
}


def test_kreuzberg_reads_what_no_other_format_does(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "b.odt", "w") as archive:
        for name, data in OPEN_DOCUMENT.items():
            archive.writestr(name, data)
    (tmp_path / "c.odt").write_bytes(b"no document" * 50)
    source = documents.Folder(tmp_path, any_ending=True)
    batch = read_documents(
        source,
        documents.Batch("00001-test", source.files()),
        DocumentsSettings(path="unused", format="kreuzberg"),
        ExamplesSettings(label="kind"),
    )
    assert batch.table["text"].to_pylist() == ["Terms\n\nA naïve letter"] and list(batch.unreadable) == [
        "c.odt"
    ]
