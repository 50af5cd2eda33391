"""examples: personal data in labelled sentences, and in texts that are hard for patterns."""

import time
from collections import Counter

import pytest

from benchmarks import personal_data
from fullft_assets.personal_data import search
from fullft_assets.personal_data.contacts import IBAN_LENGTHS
from fullft_assets.settings.examples import PII_KINDS

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def counts() -> dict[str, Counter[str]]:
    halves = [personal_data.measure(personal_data.ours, half) for half in ("tuned", "held_back")]
    return {kind: halves[0].get(kind, Counter()) + halves[1].get(kind, Counter()) for kind in PII_KINDS}


def test_the_kinds_of_the_settings_are_those_of_the_patterns() -> None:
    assert {kind.name for kind in search.KINDS} == set(PII_KINDS)


@pytest.mark.parametrize("kind", PII_KINDS)
def test_each_kind_is_found(counts: dict[str, Counter[str]], kind: str) -> None:
    assert counts[kind]["marked"] >= 6
    assert counts[kind]["found"] / counts[kind]["marked"] >= personal_data.LEAST_RECALL


def test_each_country_s_mobile_numbers_are_found_in_national_notation() -> None:
    """libphonenumber's examples; of Denmark's pairs and Mexico's groups a word before them must tell."""
    missed = [
        number
        for number in personal_data.example_telephones()["mobile"]
        if [one.kind for one in search.find(f"Ana, {number}, from Monday.")] != ["phone"]
    ]
    assert missed == ["34 41 23 45", "222 123 4567"]
    assert [search.find(f"Call {number}.")[0].kind for number in missed] == ["phone", "phone"]


@pytest.mark.parametrize(
    "text",
    [
        "It cost 612 345 678 zł.",
        "501 234 567 € of debt",
        "PLN 512 345 678",
        "1 612 345 678 of them",
        "612 345 678 901",
        "invoice 512 345 678",
    ],
)
def test_an_amount_in_groups_of_three_is_no_telephone_number(text: str) -> None:
    assert search.find(text) == []


def test_hardly_anything_else_is(counts: dict[str, Counter[str]]) -> None:
    texts = [pieces for half in ("tuned", "held_back") for _, pieces in personal_data.sentences(half)]
    assert sum(map(bool, texts)) >= 200 and sum(not pieces for pieces in texts) >= 100
    assert personal_data.scores(counts)[1] >= personal_data.LEAST_PRECISION


def test_only_the_chosen_kinds_are_found() -> None:
    text = "a@b.example, 203.0.113.45 and IBAN DE89 3704 0044 0532 0130 00"
    assert (
        search.mask(text, search.find(text, search.kinds_named(["iban"])))
        == "a@b.example, 203.0.113.45 and IBAN [IBAN]"
    )


@pytest.mark.parametrize("unit", ["1 ", "12-", "GB33 "])
def test_a_number_with_wrong_check_digits_is_no_iban(unit: str) -> None:
    assert "GB" in IBAN_LENGTHS
    assert [one for one in search.find(unit * 40) if one.kind == "iban"] == []


@pytest.mark.heavy
@pytest.mark.parametrize("name", personal_data.hard_texts())
def test_time_grows_as_the_text_does(name: str) -> None:
    text = personal_data.hard_texts()[name]
    search.find("imports libphonenumber: 0049 30 901820")

    def seconds(length: int) -> float:
        return min(_timed(text[:length]) for _ in range(3))

    # 8 times the text: 8 times the time where it is linear, 64 times where it is quadratic.
    assert seconds(64_000) <= 20 * max(seconds(8_000), 0.0005)


def _timed(text: str) -> float:
    began = time.process_time()
    search.find(text)
    return time.process_time() - began
