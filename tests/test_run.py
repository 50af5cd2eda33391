"""`fullft run` before its first run: all that was delivered is in the ledger, and a file that was just written to is waited for."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import dagster as dg
import pytest

from fullft_assets import documents, run
from fullft_assets.resources import open_store
from fullft_assets.run import Driver, Screen
from tests import project as projects


@pytest.fixture
def instance(project: projects.Project) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        yield instance


def cut_all(project: projects.Project, instance: dg.DagsterInstance) -> tuple[list[str], str]:
    """Do what a run does first; return the files of the ledger, and what it says."""
    driver = Driver.__new__(Driver)  # without a code location, which takes seconds to load
    driver.use_case, driver.instance, driver.screen = project.use_case(), instance, Screen(io.StringIO())
    driver._cut_all("batch")
    batches = documents.list_batches(open_store(driver.use_case, instance), "letters")
    return [file.path for batch in batches for file in batch.files], driver.screen.stream.getvalue()


def test_a_file_that_was_just_written_to_is_waited_for(
    project: projects.Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.configure(documents={"settle_seconds": 30})
    path = project.documents / "delivery-1.jsonl"
    path.touch()
    monkeypatch.setattr(run.time, "sleep", lambda _: os.utime(path, (1e9, 1e9)))  # the time passes at once
    files, said = cut_all(project, instance)
    assert files == ["delivery-1.jsonl"]
    assert said.endswith(f"{project.documents}: 1 file(s) were just written to; waiting until they are whole\n")


def test_a_long_wait_is_left_to_the_next_run(project: projects.Project, instance: dg.DagsterInstance) -> None:
    project.configure(documents={"settle_seconds": 3_600})
    files, said = cut_all(project, instance)
    assert files == []
    assert said.endswith(f"{project.documents}: 1 file(s) are still being written to; run again for them\n")


def test_all_of_many_files_are_cut(project: projects.Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents.batches, "MAX_CUTS", 2)
    project.configure(documents={"max_batch_files": 1})
    for number in range(2, 6):
        projects.write_rows(project.documents / f"delivery-{number}.jsonl", projects.licence_rows(1, skip=number))
    files, said = cut_all(project, instance)
    assert (len(files), said) == (5, "")
