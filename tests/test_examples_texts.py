"""examples: what is seen in a text: personal data, its language, damage by a wrong encoding."""

import json
import re
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from fullft_assets import examples
from fullft_assets.examples.texts import (
    LANGUAGES,
    MAX_DAMAGE_SHARE,
    UNKNOWN,
    damage_shares,
    identify_languages,
)
from fullft_assets.personal_data import search
from fullft_assets.settings import ExamplesSettings
from tests.test_examples import sound_rows, table

pytestmark = pytest.mark.quick

#: (text, what is left of it once masked)
PERSONAL = [
    ("write to jo.o'neil+x@mail.example.co.uk.", "write to [EMAIL]."),
    ("mail: MÜLLER@EXAMPLE.DE", "mail: [EMAIL]"),
    ("card 4111 1111 1111 1111, 378282246310005", "card [CARD], [CARD]"),
    ("IBAN DE89 3704 0044 0532 0130 00 AND more", "IBAN [IBAN] AND more"),
    ("to GB82WEST12345698765432.", "to [IBAN]."),
    ("SSN 123-45-6789", "SSN [SSN]"),
    ("social security number: 123 45 6789", "social security number: [SSN]"),
    ("from 203.0.113.77 to 2001:db8::8a2e:370:7334", "from [IP] to [IP]"),
    ("call +49 30 901820 or (555) 234-5678", "call [PHONE] or [PHONE]"),
    ("Tel. 030/901820-15", "Tel. [PHONE]"),
    ("fax: 901 8200", "fax: [PHONE]"),
    ("01 42 68 53 00", "[PHONE]"),
]
#: Numbers of no person: each is close to a kind in one way.
IMPERSONAL = [
    "see section 4.1.2.3 and version 10.0.19041.1",
    "127.0.0.1, 0.0.0.0 and 1.2.3.4",
    "4111 1111 1111 1112 fails the check digit",
    "DE89370400440532013001 fails the check digits",
    "000-12-3456 and 666-12-3456 and 900-12-3456 are never given out; 078-05-1120 was an advertisement",
    "Copyright 1998-2004, 2007-2011 The Authors, Boston, MA 02110-1301",
    "on 2024-05-17 12:30:00, sha 1234567890abcdef",
    "logo@2x.png, @decorator, user@localhost",
    "std::vector::at, abc::def, 12:30:45",
    "ISBN 978-3-16-148410-0, 1.234.567,89 EUR",
]


def masked(text: str) -> str:
    return search.mask(text, search.find(text))


class TestPersonalData:
    @pytest.mark.parametrize(("text", "left"), PERSONAL, ids=[left for _, left in PERSONAL])
    def test_each_kind_is_masked(self, text: str, left: str) -> None:
        assert masked(text) == left

    @pytest.mark.parametrize("text", IMPERSONAL)
    def test_what_is_no_persons_stays(self, text: str) -> None:
        assert masked(text) == text

    @settings(max_examples=150, deadline=None)
    @given(
        parts=st.lists(
            st.sampled_from([*[text for text, _ in PERSONAL], *IMPERSONAL, " ", "\n", "words in between"]),
            max_size=6,
        )
    )
    @pytest.mark.heavy
    def test_the_hints_on_a_column_miss_nothing(self, parts: list[str]) -> None:
        text = " ".join(parts)
        assert search.find_all(pa.array([text]), search.KINDS).get(0, []) == search.find(text)

    @settings(max_examples=150, deadline=None)
    @given(
        data=st.data(),
        parts=st.lists(
            st.sampled_from([*[text for text, _ in PERSONAL], "Ann", "in Rome"]), min_size=1, max_size=5
        ),
    )
    def test_a_span_names_the_same_words_once_masked(self, data: st.DataObject, parts: list[str]) -> None:
        text = " ".join(parts)
        found = search.find(text)
        words = [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
        start, end = data.draw(st.sampled_from(words))
        new_start, new_end = search.shift(start, end, found)
        inside = [one for one in found if one.start < end and start < one.end]
        first = min([start, *(one.start for one in inside)])
        last = max([end, *(one.end for one in inside)])
        shifted = [search.Found(one.start - first, one.end - first, one.placeholder) for one in inside]
        assert masked(text)[new_start:new_end] == search.mask(text[first:last], shifted)


@pytest.mark.heavy
def test_spans_move_with_their_words_in_answers_too() -> None:
    text = "jo@example.org met Ann"
    spans = [{"start": 0, "end": 14, "label": "MAIL"}, {"start": 19, "end": 22, "label": "NAME"}]
    answers = [{"annotator": who, "label": json.dumps(spans)} for who in ("a", "b")]
    rows = sound_rows({"text": text, "spans": spans, "annotations": answers, "label": None})
    [found] = examples.examine(
        table(rows), ExamplesSettings(task="token_classification", label="s", pii="mask"), "b"
    ).valid.to_pylist()
    moved = [{"start": 0, "end": 7, "label": "MAIL"}, {"start": 12, "end": 15, "label": "NAME"}]
    assert (found["text"], found["spans"]) == ("[EMAIL] met Ann", moved)
    assert [json.loads(answer["label"]) for answer in found["annotations"]] == [moved, moved]


class TestLanguage:
    def test_known_texts(self) -> None:
        texts = {
            "This licence applies to the software and to its documentation.": "en",
            "Diese Lizenz gilt für die Software und für ihre Dokumentation.": "de",
            "Cette licence s'applique au logiciel et à sa documentation.": "fr",
            "Esta licencia se aplica al programa y a su documentación.": "es",
            "Эта лицензия распространяется на программу и её документацию.": "ru",
            "このライセンスはソフトウェアとその文書に適用されます。": "ja",
            "1234 5678 9012 ---- ==== 1234 5678": UNKNOWN,
            "MIT": UNKNOWN,
            "": UNKNOWN,
        }
        assert dict(zip(texts, identify_languages(pa.array(texts)), strict=True)) == texts
        assert identify_languages(pa.array([None], pa.string())).tolist() == [None]

    @pytest.mark.heavy
    def test_the_codes_are_those_that_the_model_tells_apart(self) -> None:
        labels = LanguageIdentifier.from_model_file(MODEL_FILE).labels
        assert sorted(set(map(str, labels)) - {"zxx"}) == sorted(LANGUAGES)


class TestDamage:
    @pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
    @pytest.mark.parametrize(
        "text",
        [
            "déjà vu à l'école où l'été dure",
            "Größe “quoted” – 5 €",
            "Ελληνικά και ρωσικά",
            "Привет, как дела",
            "Zażółć gęślą jaźń",
            "Bu lisans yazılım için geçerlidir",
            "سياسة الخصوصية وشروط الاستخدام",
            "นโยบายความเป็นส่วนตัว",
        ],
    )
    def test_utf8_read_as_a_one_byte_encoding_is_seen_and_the_right_text_is_not(
        self, text: str, encoding: str
    ) -> None:
        wrong = text.encode().decode(encoding, "replace")
        sound, damaged = damage_shares(pa.array([text, wrong]))
        assert sound == 0
        num_damaged = len(wrong) - sum(ord(character) < 128 for character in text)
        assert 5 * MAX_DAMAGE_SHARE < damaged <= num_damaged / len(wrong) + 0.1

    @pytest.mark.parametrize(
        ("text", "share"),
        [
            ("a\ufffdb\ufffd", 0.5),
            ("\x00\x01ab", 0.5),
            ("a\tb\r\nc", 0),
            ("", 0),
            ("déjà vu à la carte", 0),
            ("naïve café", 0),
            ("日本語 ♥ 😀", 0),
        ],
    )
    def test_shares(self, text: str, share: float) -> None:
        assert damage_shares(pa.array([text])).tolist() == [share]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "x" * 31}, "text too short or too long"),
        ({"text": "a \ufffd\ufffd b"}, "damaged characters"),
        ({"text": None}, "empty text"),
        ({"text": " \t\n"}, "empty text"),
    ],
)
def test_the_bounds_decide(row: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExamplesSettings, "max_characters", 30)
    examined = examples.examine(table(sound_rows({}, row)), ExamplesSettings(label="kind"), "b")
    assert examined.quarantined["reasons"].to_pylist() == [[reason]]
