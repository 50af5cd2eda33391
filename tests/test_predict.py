"""`fullft predict`: the champion of each kind of task on one text and on the texts of a file; rows without a
text are named.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dagster as dg
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from fullft_assets import champion, chunks
from fullft_assets.cli import main
from fullft_assets.cli.predict import predict, predict_file, read_texts
from fullft_assets.errors import DataError, FullftError, SettingsError
from fullft_assets.models.inference import MULTI_LABEL
from fullft_assets.resources.champion import load_champion
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest, Store
from fullft_assets.tasks.language.scoring import Writer
from tests import manifests, project as projects, small_language_model
from tests.checkpoint_metadata import checkpoint_metadata
from tests.prepared import write_tiny_model
from tests.s3_server import S3Server
from tests.test_data_report import metadata as snapshot_metadata

LABELS = ["notice", "reference", "text"]
TEXTS = [
    "Licensed under the MIT license",
    "see the file LICENSE",
    "Copyright, all rights reserved",
    "Äpfel, 30 $",
]


def documented_asset() -> str:
    """Return the lines of the README that take the champion in an asset."""
    section = (
        (Path(__file__).parents[1] / "README.md")
        .read_text(encoding="utf-8")
        .partition("## In your own Dagster project")[2]
    )
    return section.partition("```python\n")[2].partition("```")[0]


def write_model(folder: Path, task: str) -> None:
    """Write a model with a head of random weights, as a training of this task saves it."""
    if task in ("language_modeling", "sft"):
        small_language_model.write(folder, TEXTS)
        turns = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}<end>{% endfor %}"
        (folder / "chat_template.jinja").write_text(
            turns + "{% if add_generation_prompt %}assistant: {% endif %}"
        )
        return
    write_tiny_model(folder)
    kind, names = (
        (AutoModelForTokenClassification, ["O", *(f"{kind}-{label}" for label in LABELS for kind in "BI")])
        if task == "token_classification"
        else (AutoModelForSequenceClassification, LABELS)
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = kind.from_pretrained(folder, num_labels=len(names), id2label=dict(enumerate(names)))
    if task == "multi_label":
        model.config.problem_type, model.config.label_thresholds = MULTI_LABEL, [0.6, 0.5, 0.4]
    model.save_pretrained(folder)


def take_snapshot(store: Store, settings: UseCaseSettings) -> Manifest:
    """Write a snapshot over one batch, as far as its manifests go."""
    chunked = manifests.write(store, "demo", "tokenized_chunks", settings=chunks.key_settings(settings))
    part = {
        "examples": "e",
        "chunks": chunked.ref,
        "examples_digest": "e",
        "chunks_digest": chunked.content_digest,
    }
    return manifests.write(
        store, "demo", "training_snapshot", metadata=snapshot_metadata(parts={"b": part}).as_dict()
    )


def crowned(folder: Path, task: str = "classification", **documents: Any) -> tuple[UseCase, Store]:
    given = {
        "base_model": "models/tiny",
        "documents": {"path": "data", **documents},
        "examples": {"label": "kind", "task": task},
    }
    settings = UseCaseSettings.model_validate({**given, "chunks": {"max_tokens": 32, "stride": 0}})
    store = Store(str(folder / "store"))
    with store.create("demo", "finetuned_checkpoint", "k", version="1", seed=1) as draft:
        write_model(draft.path / "model", task)
        made = draft.commit(settings={}, inputs={}, metadata=checkpoint_metadata(labels=LABELS))
    manifests.promote(store, "demo", made.ref, snapshot=take_snapshot(store, settings).ref)
    return UseCase(name="demo", settings=settings, yaml_path=folder / "defs.yaml", project_root=folder), store


def answers(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    "task", ["classification", "multi_label", "token_classification", "language_modeling"]
)
def test_a_file_is_answered_as_each_of_its_texts_is(
    tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    use_case, store = crowned(tmp_path, task)
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS) + "\n", encoding="utf-8")
    assert predict_file(use_case, store, tmp_path / "texts.txt", None, 5) == 0
    found = answers(capsys)
    assert [each["row"] for each in found] == [1, 3, 5, 7]
    alone = []
    for text in TEXTS:
        predict(use_case, store, text, 5)
        alone.append(capsys.readouterr().out)
    for text, each, shown in zip(TEXTS, found, alone, strict=True):
        if task == "classification":
            assert each["label"] in LABELS and sum(each["probabilities"].values()) == pytest.approx(1)
            assert shown.splitlines()[0] == f"{each['probability']:6.1%}  {each['label']}"
        elif task == "multi_label":
            assert each["labels"] == [
                line.split()[2] for line in shown.splitlines() if line.startswith("yes")
            ]
            assert each["labels"]
            given = [line.startswith("yes") for line in shown.splitlines()]
            assert given == sorted(given, reverse=True), "those that it gets come first"
            assert each["thresholds"] == dict(zip(LABELS, [0.6, 0.5, 0.4], strict=True))
        elif task == "token_classification":
            assert all(
                span["text"] == text[span["start"] : span["end"]] and span["label"] in LABELS
                for span in each["spans"]
            )
            assert len(shown.splitlines()) == len(each["spans"])
        else:
            assert each["text"].startswith(text) and shown == f"{each['text']}\n"
    if task == "token_classification":
        assert any(each["spans"] for each in found), "a model that finds nothing shows nothing"


@pytest.mark.parametrize(
    "task", ["classification", "multi_label", "token_classification", "language_modeling", "sft"]
)
def test_the_champion_of_each_task_answers_without_the_yaml(tmp_path: Path, task: str) -> None:
    use_case, store = crowned(tmp_path, task)
    found = champion("demo", str(tmp_path / "store"))
    assert found.predict(TEXTS, 5) == list(load_champion(store, "demo", use_case.settings).each(TEXTS, 5))
    assert (found.path / "config.json").is_file() and found.labels == LABELS
    with pytest.raises(DataError, match="list of texts"):
        found.predict(TEXTS[0])


def test_a_conversation_in_any_form_is_answered_up_to_its_last_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use_case, store = crowned(tmp_path, "sft")
    turns = [{"role": role, "content": role * 3} for role in ("user", "assistant", "user")]
    rows = [
        {"messages": turns},
        {"conversations": [{"from": turn["role"], "value": turn["content"]} for turn in turns]},
        {"messages": [*turns, {"role": "assistant", "content": "known"}]},
        {"instruction": turns[0]["content"], "text": "the whole", "output": "known"},
        {"instruction": turns[0]["content"]},
        {"text": turns[0]["content"]},
        {"messages": [{"role": "nobody", "content": "?"}]},
        {"messages": [turns[1]]},
    ]
    path = projects.write_rows(tmp_path / "chats.jsonl", rows)
    with patch.object(Writer, "write", autospec=True, side_effect=Writer.write) as write:
        assert predict_file(use_case, store, path, None, 8) == 2
        champion("demo", str(tmp_path / "store")).predict([turns], 8)
    assert [call.args[1] for call in write.call_args_list] == [*[turns] * 3, *[turns[:1]] * 3, turns]
    said = capsys.readouterr()
    assert [json.loads(line)["row"] for line in said.out.splitlines()] == [1, 2, 3, 4, 5, 6]
    assert f"{path}:7: turn 1 of field `messages` has no known role" in said.err
    assert f"{path}:8: the text is empty" in said.err


def jsonl(path: Path) -> Path:
    rows = [{"id": f"d{n}", "body": text} for n, text in enumerate(TEXTS)]
    return projects.write_rows(path.with_suffix(".jsonl"), rows)


def csv(path: Path) -> Path:
    path = path.with_suffix(".csv")
    path.write_text(
        "id;body\n" + "".join(f'd{n};"{text}"\n' for n, text in enumerate(TEXTS)), encoding="utf-8"
    )
    return path


@pytest.mark.parametrize(("write", "first"), [(jsonl, 1), (csv, 2)])
def test_the_field_is_the_one_of_the_deliveries_and_the_id_comes_with_the_answer(
    tmp_path: Path, write: Callable[[Path], Path], first: int, capsys: pytest.CaptureFixture[str]
) -> None:
    # The format of the deliveries is not that of what is to be predicted.
    use_case, store = crowned(tmp_path, text="body", format="parquet")
    path, out = write(tmp_path / "texts"), tmp_path / "answers.jsonl"
    assert [row.text for row in read_texts(path, use_case.settings)] == TEXTS
    assert predict_file(use_case, store, path, out, 5) == 0 and capsys.readouterr().out == ""
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(each["row"], each["id"]) for each in found] == [(first + n, f"d{n}") for n in range(len(TEXTS))]
    assert not list(tmp_path.glob(".*partial"))


def test_rows_without_a_text_are_named_and_the_others_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use_case, store = crowned(tmp_path)
    path = tmp_path / "texts.jsonl"
    path.write_text(
        '{"text": " "}\n{"text": "fine"}\nnot json\n{"other": 1}\n{"text": "\\u200b\\n"}\n'
        + '{"text": ""}\n' * 12
    )
    capsys.readouterr()
    assert predict_file(use_case, store, path, None, 5) == 16
    said = capsys.readouterr()
    assert [json.loads(line)["row"] for line in said.out.splitlines()] == [2]
    lines = [line for line in said.err.splitlines() if line.startswith(str(path))]
    assert [line.split(": ")[0] for line in lines[:4]] == [f"{path}:{number}" for number in (1, 3, 4, 5)]
    assert "the text is empty" in lines[0]
    assert "not JSON" in lines[1]
    assert "`text` (documents.text)" in lines[2]
    assert lines[-1] == f"{path}: 6 more rows without a text" and len(lines) == 11


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b", "\u00a0\ufeff"])
def test_an_empty_text_is_refused(tmp_path: Path, text: str) -> None:
    use_case, store = crowned(tmp_path)
    with pytest.raises(FullftError, match="demo: the text is empty"):
        predict(use_case, store, text, 5)
    (tmp_path / "empty.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"empty\.txt: no row "):
        predict_file(use_case, store, tmp_path / "empty.txt", None, 5)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.txt", b"\xff\xfe\xfa", "cannot be read .not UTF-8"),
        ("a.csv", b'text\n"open', "cannot be read"),
        ("a.pdf", b"%PDF-1.7", "pdf is not read here; give JSON lines, CSV, or text with one text a line"),
        ("a.json", b"[]", "json is not read here"),
        (None, b"", "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, name: str | None, content: bytes, problem: str
) -> None:
    settings = UseCaseSettings.model_validate(
        {"base_model": "m", "documents": {"path": "data"}, "examples": {"label": "kind"}}
    )
    path = tmp_path / (name or "missing.txt")
    if name is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=problem) as raised:
        list(read_texts(path, settings))
    assert len(str(raised.value).splitlines()) == 1 and str(path) in str(raised.value)


def test_the_command_takes_a_text_or_a_file(
    project: projects.Project, capsys: pytest.CaptureFixture[str]
) -> None:
    defs = ["--defs", str(project.root / "my_project" / "defs")]
    for given in ([], ["text", "--file", "a.txt"], ["text", "--out", "b.jsonl"]):
        assert main(["predict", "letters", *given, *defs]) == 1
        assert capsys.readouterr().err.startswith("predict: give a text or --file")
    (project.root / "a.txt").write_text("one\n")
    done = project.fullft("predict", "letters", "--file", str(project.root / "a.txt"))
    assert done.returncode == 1
    assert "no champion yet; `fullft run letters`" in done.stderr


@pytest.mark.heavy
@pytest.mark.parametrize("place", ["home", "bucket"])
def test_the_documented_asset_runs(
    tmp_path: Path, place: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FULLFT_STORE", raising=False)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    _, store = crowned(tmp_path)
    with pytest.raises(SettingsError, match="champion of demo: where is"):
        champion("demo")
    if place == "home":
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    else:
        server: S3Server = request.getfixturevalue("s3_env")
        shutil.copytree(store.url, server.make_bucket("champions") / "store")
        monkeypatch.setenv("FULLFT_STORE", "s3://champions/store")
    asset: dict[str, Any] = {}
    exec(documented_asset().replace("my_case", "demo"), asset)
    assert asset["answers"].asset_deps[dg.AssetKey("answers")] == {dg.AssetKey(["demo", "champion_model"])}
    found = asset["answers"]()
    assert (
        found == load_champion(store, "demo").predict(["first text", "second text"])
        and found[0]["label"] in LABELS
    )
