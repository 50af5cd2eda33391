"""examples: names, places and dates, found by a spaCy pipeline of the user's (the extra `pii`)."""

import importlib.util
import json
import shutil
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fullft_assets.errors import SettingsError
from fullft_assets.personal_data import entities
from fullft_assets.personal_data.kinds import Found
from fullft_assets.personal_data.search import KINDS, PersonalDataSearch
from fullft_assets.store import Store
from tests import project as projects
from tests.prepared import validate

PATTERNS = {"PERSON": "Ann Rossi", "GPE": "Ghent", "DATE": "3 May"}
SENTENCE = "Ann Rossi moved to Ghent on 3 May."


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spaCy pipeline that knows a person, a place and a date."""
    nlp = pytest.importorskip("spacy", reason="pip install 'fullft-assets[pii]'").blank("en")
    nlp.add_pipe("entity_ruler").add_patterns(
        [{"label": label, "pattern": words} for label, words in PATTERNS.items()]
    )
    folder = tmp_path_factory.mktemp("pipelines") / "en_names"
    nlp.to_disk(folder)
    return folder


@pytest.fixture
def model(pipeline: Path) -> entities.EntityModel:
    kinds = ("person", "location", "date")
    return entities.EntityModel(entities.find_pipeline(str(pipeline), kinds, Path("/")), kinds)


def shown(text: str, found: list[Found]) -> list[tuple[str, str]]:
    return [(one.kind, text[one.start : one.end]) for one in found]


def test_names_places_and_dates_are_found_in_a_text_that_is_longer_than_the_pipeline_reads_at_once(
    model: entities.EntityModel,
) -> None:
    text = "The notice must stay in all copies of the program. " * 900 + SENTENCE
    assert len(text) > 2 * entities._MOST_CHARACTERS
    found = PersonalDataSearch(KINDS, model).find_all(
        pa.array([None, text, "", "This licence covers copies and notices."])
    )
    assert {row: shown(text, each) for row, each in found.items()} == {
        1: [("person", "Ann Rossi"), ("location", "Ghent"), ("date", "3 May")]
    }


def test_of_a_name_that_runs_into_an_address_the_rest_is_masked(
    monkeypatch: pytest.MonkeyPatch, model: entities.EntityModel
) -> None:
    text = "write to Ann ann@correo.example Rossi"
    monkeypatch.setattr(model, "find_all", lambda texts: iter([[Found(9, len(text), "[PERSON]", "person")]]))
    [found] = PersonalDataSearch(KINDS, model).find_all(pa.array([text])).values()
    assert shown(text, found) == [("person", "Ann"), ("email", "ann@correo.example"), ("person", "Rossi")]


@pytest.mark.parametrize("mask_raw", [True, False])
def test_no_artifact_of_the_examples_has_a_name_that_the_pipeline_knows(
    project: projects.Project, pipeline: Path, mask_raw: bool
) -> None:
    rows = projects.licence_rows(30)
    text = f"{SENTENCE} Write to ann@correo.example."
    project.deliver("delivery-1.jsonl", [{**rows[0], "text": text}, *rows[1:]])
    project.configure(documents={"mask_raw": mask_raw}, examples={"pii": "mask", "pii_model": str(pipeline)})
    store, raw, valid = _made(project)
    [found] = [row["text"] for row in _rows(store, valid, "examples.parquet") if "[EMAIL]" in row["text"]]
    assert found.startswith("[PERSON] moved to [LOCATION] on [DATE]. ") and found.endswith("[EMAIL].")
    check = valid.check("personal_data_is_absent")
    assert check.passed and check.metadata["num_masked"] >= 1
    assert (
        any("Ann Rossi" in str(row["text"]) for row in _rows(store, raw, "documents.parquet")) is not mask_raw
    )


def test_rows_with_names_are_counted_and_another_pipeline_is_another_result(
    project: projects.Project, pipeline: Path, tmp_path: Path
) -> None:
    rows = projects.licence_rows(30)
    project.deliver(
        "delivery-1.jsonl",
        [{**row, "text": f"{SENTENCE} {number}"} for number, row in enumerate(rows[:5])],
    )
    copied = shutil.copytree(pipeline, tmp_path / "pipeline")
    project.configure(examples={"pii": "flag", "pii_kinds": ["person", "email"], "pii_model": str(copied)})
    _, _, valid = _made(project)
    check = valid.check("personal_data_is_absent")
    assert (check.passed, check.metadata["num_failed"]) == (False, 5)
    _, _, again = _made(project)
    assert again.key == valid.key
    (copied / "meta.json").write_text((copied / "meta.json").read_text() + "\n")
    _, _, changed = _made(project)
    assert changed.key != valid.key


def test_a_pipeline_without_a_label_for_a_kind_is_refused(pipeline: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(pipeline, tmp_path / "pipeline")
    meta = json.loads((copied / "meta.json").read_text())
    (copied / "meta.json").write_text(json.dumps({**meta, "labels": {"ner": ["PER", "LOC"]}}))
    with pytest.raises(SettingsError, match="no label for date; .* examples.pii_kinds "):
        entities.find_pipeline(str(copied), ("person", "date", "email"), tmp_path)
    assert entities.find_pipeline("pipeline", ("person", "location"), tmp_path).labels == ("LOC", "PER")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("en_core_web_none", "no installed spaCy pipeline and no folder has the name en_core_web_none"),
        ("data", "no spaCy pipeline is in data (meta.json, config.cfg)"),
    ],
)
def test_an_unknown_pipeline_is_one_line_of_the_check(
    project: projects.Project, monkeypatch: pytest.MonkeyPatch, named: str, message: str
) -> None:
    _pretend(monkeypatch, importlib.util.find_spec("json"))
    project.deliver("delivery-1.jsonl", projects.licence_rows(30))
    project.configure(examples={"pii": "mask", "pii_model": named})
    assert _problem(project) == f"examples.pii_model: {message}"


def test_without_the_extra_the_check_says_what_to_install(
    project: projects.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.configure(examples={"pii": "mask", "pii_model": "en_core_web_md"})
    _pretend(monkeypatch, None)
    assert (
        _problem(project) == "examples.pii_model: needs spacy; pip install 'fullft-assets[pii]', or remove it"
    )


def _pretend(monkeypatch: pytest.MonkeyPatch, spacy: ModuleSpec | None) -> None:
    """Have another package, or none, where spaCy would be."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: spacy if name == "spacy" else real(name, *more),
    )


def _problem(project: projects.Project) -> str:
    with pytest.raises(SettingsError) as caught:
        project.use_case()
    [line] = str(caught.value).splitlines()
    return line.split(": ", 1)[1]


def _made(project: projects.Project) -> tuple[Store, Any, Any]:
    store = Store(str(project.home / "own-store"))
    raw, valid, _ = validate(store, project.use_case())
    return store, raw, valid


def _rows(store: Store, made: Any, file: str) -> list[dict[str, Any]]:
    return pq.read_table(store.folder(made) / file).to_pylist()
