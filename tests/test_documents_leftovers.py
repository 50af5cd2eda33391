"""documents: files that no format reads are counted by a check; files about a data set are no documents."""

from pathlib import Path

import pytest

from fullft_assets import documents
from fullft_assets.documents import names
from fullft_assets.documents.sources import Folder
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store
from tests import project as projects

pytestmark = pytest.mark.quick


def outcome(project: projects.Project, use_case: UseCase):
    store = Store(str(project.home / "store"))
    documents.look(store, use_case, now=2e9)
    return documents.check_leftovers(store, project.name)


def test_files_that_no_format_reads_are_counted_by_ending(tmp_path: Path) -> None:
    project = projects.create(tmp_path, rows=10)
    use_case = project.use_case()
    assert outcome(project, use_case).passed
    for number in range(30):
        (project.documents / f"{number}.doc").write_text("x")
    (project.documents / "a.odt").write_text("x")
    found = outcome(project, use_case)
    assert (found.passed, found.severity) == (False, "warn")
    assert found.description == "31 of 32 files are not read: 30 .doc, 1 .odt; convert or remove them"
    assert found.metadata == {
        "num_read": 1,
        "num_not_read": 31,
        "not_read_by_ending": {".doc": 30, ".odt": 1},
    }


def test_it_is_an_error_where_nothing_is_read(tmp_path: Path) -> None:
    project = projects.create(tmp_path, rows=10)
    use_case = project.use_case()
    for path in project.documents.glob("*.jsonl"):
        path.rename(path.with_suffix(".doc"))
    found = outcome(project, use_case)
    assert (found.passed, found.severity, found.metadata["num_read"]) == (False, "error", 0)


def test_files_about_a_data_set_are_no_documents(tmp_path: Path) -> None:
    about = (
        "README.md",
        "LICENSE.txt",
        "dataset_infos.json",
        "data/dataset_infos.json",
        "data/README.md",
        "data/a.jsonl",
        "data/sub/LICENSE.txt",
    )
    projects.write_files(tmp_path, dict.fromkeys(about, "{}"))
    source = Folder(tmp_path)
    # Below the top such names are often the documents themselves.
    assert [file.path for file in source.files()] == [
        "data/README.md",
        "data/a.jsonl",
        "data/sub/LICENSE.txt",
    ]
    assert source.others == []
    assert not names.is_about("readme_of_the_patient.txt")


@pytest.mark.parametrize(
    ("paths", "kinds"),
    [
        (["train/a.txt", "train/b/c.txt", "test/a.txt"], "train train test"),
        (["x/train.csv", "x/dev.csv", "x/test.csv.gz"], "train validation test"),
        (["data/train-00000-of-00002.parquet", "data/validation-00000-of-00001.parquet"], "train validation"),
        (["imdb_train.jsonl", "imdb_test.jsonl"], "train test"),
        (["train/pos/a.txt", "unsup/a.txt", "test/pos/a.txt"], "train None test"),
        (["train.csv", "y/test.csv"], ""),  # not beside each other
        (["imdb_train.jsonl", "sst_test.jsonl"], ""),
        (["train.csv", "training.csv"], ""),
        (["dev/a.txt", "test/a.txt"], ""),
        (["trains.csv", "latest.csv", "testimony.csv", "valid_until.csv"], ""),
    ],
)
def test_a_delivery_that_has_splits_of_its_own(paths: list[str], kinds: str) -> None:
    found = names.splits_of(paths)
    assert (" ".join(str(found.get(path)) for path in paths) if found else "") == kinds
