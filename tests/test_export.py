"""Documents far from the training data: a varied sample, in the formats that people label in, without what
was erased.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest

from fullft_assets import documents, erasure, monitoring
from fullft_assets.cli.commands import main
from fullft_assets.cli.export import export
from fullft_assets.errors import FullftError
from fullft_assets.store import Store
from tests import aws_double, manifests, project as projects
from tests.s3_server import S3Server
from tests.sagemaker_double import SageMaker
from tests.test_documents_formats import as_csv
from tests.test_documents_office import workbook

CASE = "letters"
LABELS = ["notice", 'R&D "new" <one>']
_SPANS = {
    "entities": [{"startOffset": 0, "endOffset": 3, "label": "notice"}],
    "labels": [{"label": "notice"}],
}
#: By task: the column that an answer is read into, the answer as Argilla has it, the values of its regions in
#: Label Studio, and the value and the metadata of a label attribute of Ground Truth.
ANSWERS: dict[str, tuple[str, Any, list[dict[str, Any]], Any, dict[str, Any]]] = {
    "classification": ("label", LABELS[1], [{"choices": LABELS[1:]}], 1, {"class-name": LABELS[1]}),
    "multi_label": (
        "labels",
        sorted(LABELS),
        [{"choices": LABELS}],
        [0, 1],
        {"class-map": {"0": LABELS[0], "1": LABELS[1]}},
    ),
    "token_classification": (
        "spans",
        [{"start": 0, "end": 3, "label": "notice"}],
        [{"start": 0, "end": 3, "labels": ["notice"]}],
        {"annotations": _SPANS},
        {"entities": [{"confidence": 0.9}], "type": "groundtruth/text-span"},
    ),
}
IDS = {"a-3", "b-2", "a-1", "b-1"}


class Watched:
    """A project whose last windows have documents far from the training data."""

    def __init__(self, root: Path):
        self.project = projects.create(root, rows=20)
        self.configure()
        self.store = Store(str(self.project.home / "store"))

    def configure(self, task: str = "classification", path: str | None = None, **examples: Any) -> None:
        self.project.configure(
            monitoring={"path": "data/letters/production"},
            documents={"id": "key", **({"path": path} if path else {})},
            examples={"task": task, "labels": LABELS, **examples},
        )

    def answers(self, column: str) -> tuple[dict[str, Any], list[str]]:
        """Return what is read of the newest batch by the document's id, and its files."""
        batch = documents.look(self.store, self.project.use_case(), now=2e9).cut[-1]
        made = self.store.folder(documents.keep(self.store, self.project.use_case(), batch.name))
        rows = pq.read_table(made / "documents.parquet", columns=["id", column]).to_pylist()
        return {row["id"]: row[column] for row in rows if row["id"] in IDS}, [
            file.path for file in batch.files
        ]

    def see(self, name: str, texts: list[str], far: list[int]) -> None:
        rows = [
            {"key": f"{name}-{number}", "text": text, "expression": "x"}
            for number, text in enumerate(texts, start=1)
        ]
        projects.write_rows(self.project.production / f"{name}.jsonl", rows)
        [window] = documents.look(self.store, self.project.use_case(), "window", now=2e9).cut
        seen = documents.keep(self.store, self.project.use_case(), window.name, "window")
        with self.store.create(CASE, "drift_report", window.name, version="1", seed=1) as draft:
            found = [monitoring.FarDocument(source=f"{name}.jsonl", row=row, distance=2.0) for row in far]
            monitoring.write_far(draft.path / monitoring.FAR, found)
            made = draft.commit(
                settings={},
                inputs={"production_documents": seen.content_digest},
                metadata={**manifests.drift("alarm"), "documents": seen.ref},
            )
        self.store.write_pointer(f"latest/{CASE}/drift_report/{window.name}", {"ref": made.ref})

    def export(self, chosen: str = "jsonl", most: int = 100, num_windows: int = 3) -> str:
        out = self.project.root / "out" / "to_label"
        export(
            self.project.use_case(), self.store, out, format_name=chosen, most=most, num_windows=num_windows
        )
        return out.read_text(encoding="utf-8")


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    found = Watched(tmp_path)
    found.see("a", ["one", "two", 'three, with a "quote"\nand a line'], [3, 1])
    found.see("b", ["two", "four", "five"], [2, 1])
    return found


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_windows_give_in_turn_and_each_text_comes_once(watched: Watched) -> None:
    found = lines(watched.export())
    assert [row["key"] for row in found] == ["a-3", "b-2", "a-1", "b-1"]
    assert found[0] == {
        "key": "a-3",
        "text": 'three, with a "quote"\nand a line',
        "expression": "x",
        "fullft_window": found[0]["fullft_window"],
        "distance": 2.0,
    }
    assert [row["key"] for row in lines(watched.export(most=2))] == ["a-3", "b-2"]
    assert [row["key"] for row in lines(watched.export(num_windows=1))] == ["b-2", "b-1"]
    watched.see("c", ["four"], [1])
    assert [row["key"] for row in lines(watched.export())] == ["a-3", "b-2", "a-1", "b-1"]


def test_each_format_has_the_same_texts_and_ids(watched: Watched) -> None:
    rows = list(csv.DictReader(watched.export("csv").splitlines(keepends=True)))
    assert [row["key"] for row in rows] == ["a-3", "b-2", "a-1", "b-1"]
    manifest = lines(watched.export("ground_truth"))
    assert [(line["source"], line["key"]) for line in manifest] == [(row["text"], row["key"]) for row in rows]
    assert [task["data"] | {"distance": "2.0"} for task in json.loads(watched.export("label_studio"))] == rows


def test_a_table_has_no_formulas_and_comes_back_with_its_ids_and_texts(tmp_path: Path) -> None:
    watched, texts = (
        Watched(tmp_path),
        ["=HYPERLINK(1)", "- a list", "@SUM(A1)", "+1", "'=quoted", "'plain", "\ttab"],
    )
    watched.see("=w", texts, list(range(1, 8)))
    table = watched.export("csv").splitlines(keepends=True)
    rows = [{**row, "kind": "notice"} for row in csv.DictReader(table)]
    assert not [cell for row in rows for cell in row.values() if cell[0] in "=+-@\t\r"]
    (watched.project.documents / "labelled.csv").write_text(as_csv(rows), newline="")
    workbook([list(rows[0]), *(list(row.values()) for row in rows)]).save(
        watched.project.documents / "labelled.xlsx"
    )
    batch = documents.look(watched.store, watched.project.use_case(), now=2e9).cut[-1]
    made = documents.keep(watched.store, watched.project.use_case(), batch.name)
    read = pq.read_table(
        watched.store.folder(made) / "documents.parquet", columns=["source", "id", "text"]
    ).to_pylist()
    assert {(row["source"], row["id"]): row["text"] for row in read if row["id"].startswith("=w-")} == {
        (source, f"=w-{number}"): text
        for source in ("labelled.csv", "labelled.xlsx")
        for number, text in enumerate(texts, start=1)
    }


def test_what_was_erased_is_neither_exported_nor_named(watched: Watched) -> None:
    erasure.erase(watched.store, CASE, ["a-3"])
    # The list of a window that an erased document was in goes as a whole.
    assert [row["key"] for row in lines(watched.export())] == ["b-2", "b-1"]
    places = [
        (each.source, each.row)
        for report in watched.store.artifacts(CASE, "drift_report")
        for each in monitoring.read_far(watched.store.folder(report) / monitoring.FAR)
    ]
    assert sorted(places) == [("b.jsonl", 1), ("b.jsonl", 2)]


def test_without_such_documents_one_line_says_so(tmp_path: Path) -> None:
    with pytest.raises(FullftError, match="no document .* 3 windows "):
        Watched(tmp_path).export()


def of_label_studio(out: Path, task: str) -> list[dict[str, Any]]:
    """Return Label Studio's JSON export of what was imported, answered in the interface of the export."""
    text, control = ElementTree.parse(f"{out}.xml").getroot()
    assert [text.get("value"), *(choice.get("value") for choice in control)] == ["$text", *LABELS]
    assert control.get("choice") == {"classification": "single", "multi_label": "multiple"}.get(task)
    names = {"from_name": control.get("name"), "to_name": text.get("name"), "type": control.tag.lower()}
    annotation = {"completed_by": 1, "result": [{**names, "value": value} for value in ANSWERS[task][2]]}
    return [
        {"id": 7, **row, "annotations": [annotation]} for row in json.loads(out.read_text(encoding="utf-8"))
    ]


def of_argilla(out: Path, task: str) -> list[dict[str, Any]]:
    """Return Argilla's `Dataset.records.to_json` of what was imported, answered."""
    [question] = json.loads((out / ".argilla" / "settings.json").read_text(encoding="utf-8"))["questions"]
    assert [option["value"] for option in question["settings"]["options"]] == LABELS
    responses = {question["name"]: [{"value": ANSWERS[task][1], "user_id": "5c"}]}
    more = {"suggestions": {}, "responses": responses, "vectors": {}, "_server_id": "0f"}
    return [{**record, **more} for record in json.loads((out / "records.json").read_text(encoding="utf-8"))]


@pytest.mark.parametrize("task", ANSWERS)
@pytest.mark.parametrize("tool", [of_label_studio, of_argilla])
def test_answers_of_a_tool_are_labels_of_the_same_documents(watched: Watched, task: str, tool: Any) -> None:
    watched.configure(task)
    out, name = watched.project.root / "project", tool.__name__.removeprefix("of_")
    export(watched.project.use_case(), watched.store, out, format_name=name, most=9, num_windows=3)
    (watched.project.documents / "answered.json").write_text(json.dumps(tool(out, task)), encoding="utf-8")
    assert watched.answers(ANSWERS[task][0])[0] == dict.fromkeys(IDS, ANSWERS[task][1])


TEAM = "arn:aws:sagemaker:eu-west-1:111122223333:workteam/private-crowd/readers"
PUBLIC = "arn:aws:sagemaker:eu-west-1:394669845002:workteam/public-crowd/default"


@pytest.fixture
def ground_truth(
    s3_env: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watched: Watched
) -> Iterator[SageMaker]:
    monkeypatch.setenv("DAGSTER_HOME", str(watched.project.home))
    with aws_double.serve(SageMaker, tmp_path / "aws", s3_env.env) as double:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", double.env["AWS_ENDPOINT_URL_SAGEMAKER"])
        yield double


def job(watched: Watched, out: str, *options: str) -> int:
    return main(
        ["export", CASE, out, "--format", "ground_truth", "--role", aws_double.ROLE, *options]
        + ["--defs", str(watched.project.yaml_path.parents[1])]
    )


@pytest.mark.parametrize("task", ANSWERS)
def test_the_output_of_a_labelling_job_is_the_next_delivery(
    watched: Watched, ground_truth: SageMaker, s3_env: S3Server, task: str, capsys: Any
) -> None:
    column, answer, _, value, about = ANSWERS[task]
    bucket = s3_env.make_bucket(f"job-{column}")
    watched.configure(task, f"s3://{bucket.name}/labelled")
    out, *options = f"s3://{bucket.name}/labelled/2026 --team {TEAM} --annotators 3 --kms-key k1".split()
    assert job(watched, out, *options) == 0 and capsys.readouterr().out.startswith("4 documents of letters")
    [(name, request)] = ground_truth.labelling.items()
    assert (
        request["HumanTaskConfig"].items()
        >= {"WorkteamArn": TEAM, "NumberOfHumanWorkersPerDataObject": 3}.items()
    )
    assert request["StoppingConditions"] == {"MaxHumanLabeledObjectCount": 4}
    assert request["OutputConfig"] == {"S3OutputPath": out, "KmsKeyId": "k1"}
    assert json.loads((bucket / "labelled" / "2026" / f".{name}" / "labels.json").read_text())["labels"] == [
        {"label": label} for label in LABELS
    ]
    assert documents.look(watched.store, watched.project.use_case(), now=2e9).cut == []
    assert job(watched, out, *options) == 1 and "already exists" in capsys.readouterr().err
    ground_truth.label(name, value, about)
    assert watched.answers(column) == (
        dict.fromkeys(IDS, answer),
        [f"2026/{name}/manifests/output/output.manifest"],
    )


def test_the_public_workforce_has_a_price_and_sees_no_personal_data(
    watched: Watched, ground_truth: SageMaker, s3_env: S3Server, capsys: Any
) -> None:
    out = f"s3://{s3_env.make_bucket('job-public').name}"
    watched.configure(path=out, pii="mask")
    # A line of a manifest has 100,000 characters at most.
    watched.see("c", ["x" * 100_001], [1])
    assert job(watched, out, "--team", PUBLIC, "--usd", "1.036") == 0
    [request] = ground_truth.labelling.values()
    assert request["StoppingConditions"] == {"MaxHumanLabeledObjectCount": 4}
    assert request["HumanTaskConfig"]["PublicWorkforceTaskPrice"] == {
        "AmountInUsd": {"Dollars": 1, "Cents": 3, "TenthFractionsOfACent": 6}
    }
    for options, problem, settings in (
        ([], "takes --format ground_truth, --team and --role", {}),
        (["--team", PUBLIC, "--usd", "0.1"], "must not see personal data: set examples.pii: mask", {}),
        (["--team", PUBLIC], "--usd is the price of an answer", {}),
        (["--team", TEAM, "--usd", "0.1"], "--usd is the price of an answer", {}),
        (["--team", TEAM.replace("eu-west-1", "eu-south-1")], "not the ARN of a work team in us-east-1", {}),
        (["--team", TEAM], "Ground Truth takes no label attribute `doc_kind`", {"label": "doc_kind"}),
        (["--team", TEAM], f"{out} is not in documents.path ({out}/labelled)", {"path": f"{out}/labelled"}),
    ):
        watched.configure(**{"path": out, **settings})
        assert job(watched, out, *options) == 1 and problem in capsys.readouterr().err
    assert len(ground_truth.labelling) == 1
