"""The baseline of a Bedrock model, against a server that speaks Converse: what is sent, read and paid, and
what goes wrong.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fullft_assets.errors import SettingsError
from fullft_assets.progress import Progress
from fullft_assets.settings import BedrockSettings
from fullft_assets.tasks.baseline import BaselineContext, load_all
from fullft_assets.tasks.classification import bedrock
from tests import project as projects
from tests.bedrock_server import BedrockServer, serve
from tests.prepared import Prepared, prepare

#: Characters of a text that are sent by default.
MOST = 8_000
MODEL = {"model": "vendor.model-1:0"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(
        tmp_path_factory.mktemp("bedrock"),
        tiny=True,
        rows=160,
        planning={"baselines": ["majority", "bedrock"], "bedrock": MODEL},
    )


@pytest.fixture
def server(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> Iterator[BedrockServer]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    truth = {
        text[:MOST]: prepared.labels[label]
        for name in ("train", "validation", "test")
        for text, label in zip(prepared.split(name).texts, prepared.split(name).labels, strict=True)
    }
    # Right, but with the marks and the case of a model that writes.
    with serve(lambda text: f" {truth[text].upper()}.\n" if text in truth else "I cannot say") as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", found.endpoint)
        yield found


def context(prepared: Prepared, **settings: object) -> BaselineContext:
    found = prepared.baseline_context
    asked = BedrockSettings.model_validate({**MODEL, **settings})
    planning = found.settings.planning.model_copy(update={"bedrock": asked})
    return replace(found, settings=found.settings.model_copy(update={"planning": planning}))


def test_it_is_asked_scored_paid_and_loaded(
    prepared: Prepared, server: BedrockServer, tmp_path: Path
) -> None:
    asking = context(prepared, usd_per_1k_tokens=(0.5, 10))
    recipe, rows, names = prepared.recipe, prepared.split("validation"), prepared.use_case.settings.baselines
    server.failures = 2
    scores = dict(recipe.score_baselines(names, tmp_path, asking))
    assert scores["bedrock"] == {"macro_f1": 1.0, "accuracy": 1.0} and scores["majority"]["accuracy"] < 1
    sent = server.requests
    assert sorted(request["messages"][-1]["content"][0]["text"] for request in sent) == sorted(
        text[:MOST] for text in rows.texts
    )
    assert all(label in sent[0]["system"][0]["text"] for label in prepared.labels)
    train = prepared.split("train")
    [user, assistant] = sent[0]["messages"][:2]
    place = [text[:MOST] for text in train.texts].index(user["content"][0]["text"])
    assert (
        len(sent[0]["messages"]) == 2 * bedrock.NUM_SHOWN + 1
        and assistant["content"][0]["text"] == prepared.labels[train.labels[place]]
    )
    characters = sum(
        len(part["text"])
        for request in sent
        for message in request["messages"]
        for part in message["content"]
    )
    characters += sum(len(request["system"][0]["text"]) for request in sent)
    assert asking.paid == {"bedrock": pytest.approx((characters * 0.5 + 2 * len(rows) * 10) / 1_000)}
    np.testing.assert_array_equal(
        load_all(["bedrock"], tmp_path, asking)["bedrock"].predict(rows).argmax(1), rows.labels
    )


def test_an_answer_that_is_no_label_counts_as_the_commonest(
    prepared: Prepared, server: BedrockServer
) -> None:
    said: list[str] = []
    asking = replace(context(prepared), progress=Progress(said.append))
    train, rows = prepared.split("train"), prepared.split("test")
    found = (
        bedrock.Bedrock.fit(train, asking)
        .predict(replace(rows, texts=["nobody knows this text", "", *rows.texts[2:]]))
        .argmax(1)
    )
    commonest = np.bincount(train.labels).argmax()
    assert found[:2].tolist() == [commonest] * 2 and (found[2:] == rows.labels[2:]).all()
    assert any(
        line.endswith(f"2 of {len(rows)} answers name no label and count as {prepared.labels[commonest]}")
        for line in said
    )


def test_a_refusal_names_no_text(prepared: Prepared, server: BedrockServer) -> None:
    asking = context(prepared, model="another.model")
    with pytest.raises(
        SettingsError,
        match="^planning.bedrock: another.model .* ValidationException; [a-z, ]*$",
    ):
        bedrock.Bedrock.fit(prepared.split("train"), asking).predict(prepared.split("test"))


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("notice", 0),
        (' "Tag". ', 1),
        ("**full text**", 2),
        ("it is a notice", None),
        ("", None),
        ("full", None),
    ],
)
def test_an_answer_is_a_label_or_none(answer: str, label: int | None) -> None:
    assert bedrock.read_label(answer, ["notice", "tag", "full text"]) == label


def test_a_yaml_has_to_say_which_model(tmp_path: Path) -> None:
    project = projects.create(tmp_path, planning={"baselines": ["majority", "bedrock"]})
    with pytest.raises(
        SettingsError,
        match=r"planning.baselines: .* planning.bedrock ",
    ):
        project.use_case()
