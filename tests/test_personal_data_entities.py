"""examples: names, places and dates, found by presidio with a spaCy pipeline that is trained here (the extra
`pii`).
"""

import importlib.util
import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import project as projects
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fullft_assets import documents, examples
from fullft_assets.errors import SettingsError
from fullft_assets.personal_data import entities
from fullft_assets.personal_data.kinds import Found
from fullft_assets.personal_data.search import KINDS, PersonalDataSearch
from fullft_assets.store import Store

NAMES = [
    f"{first} {last}"
    for first in ("Ann", "Boris", "Chiara", "Dieter")
    for last in ("Becker", "Novak", "Rossi", "Young")
]
PLACES = ("Rome", "Ghent", "Porto", "Lublin", "Basel", "Turku")
DATES = ("3 May", "Monday", "12 August", "last Tuesday")
SENTENCES = (
    ("{} moved to {} on {}.", ("PERSON", "GPE", "DATE")),
    ("On {} the papers of {} went to {}.", ("DATE", "PERSON", "GPE")),
    ("Nobody in {} knew {}, who called on {}.", ("GPE", "PERSON", "DATE")),
    ("This licence covers copies and notices.", ()),
    ("The notice must stay in all copies of the program.", ()),
)


def sentence(shape: int, number: int) -> tuple[str, list[tuple[int, int, str]]]:
    """Return a sentence and the names in it: (start, end, label)."""
    form, labels = SENTENCES[shape]
    words = {"PERSON": NAMES, "GPE": PLACES, "DATE": DATES}
    text, spans, pieces = "", [], form.split("{}")
    for piece, label in itertools.zip_longest(pieces, labels):
        text += piece
        if label is not None:
            word = words[label][number % len(words[label])]
            spans.append((len(text), len(text) + len(word), label))
            text += word
    return text, spans


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spaCy pipeline of a convolution and a transition-based tagger, trained on a few dozen sentences in
    seconds.
    """
    pytest.importorskip("presidio_analyzer", reason="pip install 'fullft-assets[pii]'")
    spacy = pytest.importorskip("spacy", reason="pip install 'fullft-assets[pii]'")
    from spacy.training import Example
    from spacy.util import fix_random_seed

    fix_random_seed(17)
    nlp = spacy.blank("en")
    nlp.add_pipe("tok2vec", config={"model": {"@architectures": "spacy.HashEmbedCNN.v2", **_SMALL}})
    nlp.add_pipe(
        "ner", config={"model": {"tok2vec": {"@architectures": "spacy.Tok2VecListener.v1", "width": 48}}}
    )
    found = [sentence(shape, number) for shape in range(len(SENTENCES)) for number in range(16)]
    rows = [Example.from_dict(nlp.make_doc(text), {"entities": spans}) for text, spans in found]
    optimizer, order = nlp.initialize(lambda: rows), random.Random(17)
    for _ in range(15):
        order.shuffle(rows)
        for at in range(0, len(rows), 16):
            nlp.update(rows[at : at + 16], sgd=optimizer)
    folder = tmp_path_factory.mktemp("pipelines") / "en_names"
    nlp.to_disk(folder)
    return folder


_SMALL = {
    "width": 48,
    "depth": 2,
    "embed_size": 500,
    "window_size": 1,
    "maxout_pieces": 2,
    "subword_features": True,
    "pretrained_vectors": None,
}


@pytest.fixture
def model(pipeline: Path) -> entities.EntityModel:
    kinds = ("person", "location", "date")
    return entities.EntityModel(entities.find_pipeline(str(pipeline), kinds, Path("/")), kinds)


def shown(text: str, found: list[Found]) -> list[tuple[str, str]]:
    return [(one.kind, text[one.start : one.end]) for one in found]


def test_names_places_and_dates_are_found_in_a_text_that_is_longer_than_the_pipeline_reads_at_once(
    model: entities.EntityModel,
) -> None:
    text = "The notice must stay in all copies of the program. " * 900 + "Ann Rossi moved to Ghent on 3 May."
    assert len(text) > 2 * entities._MOST_CHARACTERS
    search = PersonalDataSearch(KINDS, model)
    found = search.find_all(pa.array([None, text, "", "This licence covers copies and notices."]))
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
    text = "Ann Rossi moved to Ghent on 3 May."
    project.deliver(
        "delivery-1.jsonl", [{**rows[0], "text": f"{text} Write to ann@correo.example."}, *rows[1:]]
    )
    project.configure(documents={"mask_raw": mask_raw}, examples={"pii": "mask", "pii_model": str(pipeline)})
    store, raw, valid = _made(project)
    [found] = [row["text"] for row in _rows(store, valid, "examples.parquet") if "[EMAIL]" in row["text"]]
    assert found.startswith("[PERSON] moved to [LOCATION] on [DATE]. ") and found.endswith("[EMAIL].")
    check = valid.check("personal_data_is_absent")
    assert check.passed and check.metadata["num_masked"] >= 1
    kept = any("Ann Rossi" in str(row["text"]) for row in _rows(store, raw, "documents.parquet"))
    assert kept is not mask_raw


def test_rows_with_names_are_counted_and_another_pipeline_is_another_result(
    project: projects.Project, pipeline: Path, tmp_path: Path
) -> None:
    rows = projects.licence_rows(30)
    project.deliver(
        "delivery-1.jsonl",
        [{**row, "text": sentence(number % 3, number)[0]} for number, row in enumerate(rows[:5])],
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
    with pytest.raises(
        SettingsError, match="has no label for date; list in examples.pii_kinds the kinds that it finds"
    ):
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
    _pretend_installed(monkeypatch)
    project.deliver("delivery-1.jsonl", projects.licence_rows(30))
    project.configure(examples={"pii": "mask", "pii_model": named})
    assert _problem(project) == f"examples.pii_model: {message}"


def test_without_the_extra_the_check_and_a_run_say_what_to_install(
    project: projects.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.deliver("delivery-1.jsonl", projects.licence_rows(30))
    project.configure(examples={"pii": "mask"})
    use_case = project.use_case()
    project.configure(examples={"pii": "mask", "pii_model": "en_core_web_md"})
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "spacy" else real(name, *more)
    )
    line = (
        "examples.pii_model: needs presidio-analyzer and spacy; pip install 'fullft-assets[pii]', or"
        " remove it"
    )
    assert _problem(project) == line
    chosen = use_case.settings.examples.model_copy(update={"pii_model": "en_core_web_md"})
    object.__setattr__(use_case, "settings", use_case.settings.model_copy(update={"examples": chosen}))
    with pytest.raises(SettingsError) as caught:
        documents.key_settings(use_case)
    assert str(caught.value) == line


def _pretend_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    installed = real("json")
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: installed if "spacy" in name or "presidio" in name else real(name, *more),
    )


def _problem(project: projects.Project) -> str:
    with pytest.raises(SettingsError) as caught:
        project.use_case()
    [line] = str(caught.value).splitlines()
    return line.split(": ", 1)[1]


def _made(project: projects.Project) -> tuple[Store, Any, Any]:
    use_case = project.use_case()
    store = Store(str(project.home / "own-store"))
    documents.cut_batches(store, use_case.name, documents.source_of(use_case), use_case.settings.documents)
    [batch] = documents.list_batches(store, use_case.name)
    raw = documents.keep(store, use_case, batch.name)
    valid, _ = examples.validate(store, use_case, raw)
    return store, raw, valid


def _rows(store: Store, made: Any, file: str) -> list[dict[str, Any]]:
    return pq.read_table(store.folder(made) / file).to_pylist()
