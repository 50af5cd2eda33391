"""The general set: frozen with the snapshot, held out from replay, read as the task's model reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fullft_assets.checking.validation import load_use_case
from fullft_assets.chunks import Tokenization, chunk
from fullft_assets.errors import SettingsError
from fullft_assets.models.inference import embed, load_base
from fullft_assets.snapshot import general
from fullft_assets.snapshot.screening import Screen
from fullft_assets.store import Manifest
from fullft_assets.store.hashing import text_hash
from tests import licence_labels, project as projects
from tests.prepared import Prepared, prepare, prepare_language_model, write_general

BOTH = {"general": {"path": "general", "max_tokens": 3_000}, "replay": {"path": "general", "share": 0.2}}


def language(root: Path, **options: Any) -> Prepared:
    write_general(root / "general")
    return prepare_language_model(root, snapshot=BOTH, rows=80, **options)


def replayed(case: Prepared, made: Manifest) -> list[str]:
    return list(general.texts_by_hash(case.store, case.store.load(made.metadata["replay"])).values())


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return language(tmp_path_factory.mktemp("general"))


def test_what_is_measured_on_is_never_replayed(case: Prepared) -> None:
    measured, trained = general.load(case.store, case.snapshot), replayed(case, case.snapshot)
    assert len(measured.texts) > 10 and len(trained) > 5
    assert not set(measured.texts) & set(trained)
    assert not Screen(measured.texts).is_near(trained).any()
    num_tokens = sum(len(chunk) for document in measured.chunks for chunk in document)
    assert 3_000 <= num_tokens < 3_000 + 64 and num_tokens == case.snapshot.metadata["num_general_tokens"]


def test_a_near_duplicate_of_it_is_not_replayed_either(case: Prepared, tmp_path: Path) -> None:
    measured = {text_hash(text): text for text in general.load(case.store, case.snapshot).texts}
    copies = [f"{text} and one word" for text in measured.values()]
    folder = case.project.root / "copies"
    projects.write_rows(
        folder / "copies.jsonl", [{"text": text} for text in [*copies, *replayed(case, case.snapshot)]]
    )
    settings = case.use_case.settings
    sections = settings.snapshot.model_copy(
        update={"replay": settings.snapshot.replay.model_copy(update={"path": "copies"})}
    )
    use_case = type(case.use_case)(
        case.use_case.name,
        settings.model_copy(update={"snapshot": sections}),
        case.use_case.yaml_path,
        case.use_case.project_root,
    )
    made = general.draw_replay(case.store, use_case, 4_000, [], [], measured)
    drawn = set(general.texts_by_hash(case.store, made).values())
    assert drawn and not drawn & set(copies)
    assert made.metadata["num_near_general"] > 0
    assert set(
        general.texts_by_hash(case.store, general.draw_replay(case.store, use_case, 4_000, [])).values()
    ) & set(copies)


def test_other_general_documents_make_another_snapshot(tmp_path: Path) -> None:
    case = language(tmp_path)
    assert case.take_again().ref == case.snapshot.ref
    write_general(tmp_path / "general", 50)
    made = case.take_again()
    assert made.key != case.snapshot.key and made.content_digest != case.snapshot.content_digest


def test_rows_of_the_task_are_not_measured_on(tmp_path: Path) -> None:
    texts = write_general(tmp_path / "general", 5)
    projects.write_rows(tmp_path / "general" / "rows.jsonl", projects.licence_rows(80))
    case = prepare_language_model(
        tmp_path, snapshot={"general": {"path": "general", "max_tokens": 100_000}}, rows=80
    )
    measured = set(general.load(case.store, case.snapshot).texts)
    of_task = {text for name in ("train", "validation", "test") for text in case.split(name).texts}
    assert len(of_task) > 40 and measured == set(texts)
    assert not measured & of_task


KNOWN = ["copyleft", "notice", "permissive"]
SEVERAL = {"label": "labels", "labels": KNOWN, "task": "multi_label", "group": "expression"}


@pytest.mark.parametrize(
    ("rows", "examples"),
    [
        (lambda count: licence_labels.labelled_rows(count, known=set(KNOWN)), SEVERAL),
        (licence_labels.spanned_rows, licence_labels.SPANS),
    ],
    ids=["multi_label", "token_classification"],
)
def test_several_labels_and_spans_are_measured_on_it(
    tmp_path: Path, rows: Callable[[int], list[dict]], examples: dict[str, Any]
) -> None:
    texts = write_general(tmp_path / "general", 8)
    case = prepare(
        tmp_path,
        tiny=True,
        delivered=rows(200),
        examples=examples,
        snapshot={"general": {"path": "general"}},
        training={"epochs": 1, "learning_rate": 1e-3, "precision": "fp32", "ewc": 0.1},
        # A tokenizer of an encoder names no token that ends a text.
        chunks={"max_tokens": 32, "max_chunks": None, "stride": 4},
    )
    found = general.load(case.store, case.snapshot)
    assert sorted(found.texts) == sorted(texts) and found.marks is None
    assert (
        found.chunks
        == chunk(
            pa.table({"id": found.texts, "text": found.texts}),
            Tokenization.load(case.base_model, case.use_case.settings.chunks),
        )
        .table["windows"]
        .to_pylist()
    )
    made = case.train("k")
    assert made.metadata["general_before"] == pytest.approx(0, abs=1e-6)
    tuned = embed(load_base(case.store.folder(made) / "model"), found.chunks)
    base = embed(load_base(case.base_model), found.chunks)
    cosine = (tuned * base).sum(1) / np.linalg.norm(tuned, axis=1) / np.linalg.norm(base, axis=1)
    assert made.metadata["general_distance"] == pytest.approx(1 - cosine.mean(), rel=1e-2, abs=1e-6)
    assert (
        made.metadata["general_rise"] == pytest.approx(made.metadata["general_distance"], abs=1e-6)
        and made.metadata["general_rise"] > 1e-5
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"snapshot": {"general": {"path": "nowhere"}}},
            r"defs.yaml:\d+: snapshot.general.path: nowhere not found; relative paths start at",
        ),
        (
            {"training": {"max_general_rise": 0.1}},
            (
                r"training.max_general_rise: is measured on snapshot.general, which is not set; give it a"
                r" path, or remove this"
            ),
        ),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, options: dict[str, Any], line: str) -> None:
    write_general(tmp_path / "general", 3)
    project = projects.create(tmp_path, rows=0, **options)
    with pytest.raises(SettingsError, match=line):
        load_use_case(project.yaml_path, with_data=True)
