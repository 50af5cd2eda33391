"""A user's mistakes, as the terminal shows them: one line with the place and the fix."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fullft_assets.cli.commands import main
from fullft_assets.errors import StoreError, WorkloadError, without_secrets
from fullft_assets.job import Job
from fullft_assets.launch import entry
from fullft_assets.progress import ERROR_FILE, Progress
from fullft_assets.settings import UseCaseSettings
from fullft_assets.store import Store
from tests.project import Project, licence_rows

LETTERS_YAML = "my_project/defs/letters/defs.yaml"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://svc:PLANTED@host:5000/api", "http://***@host:5000/api"),
        ("'https://PLANTED@host/org/name.git'", "'https://***@host/org/name.git'"),
        (
            "postgresql+psycopg2://svc:P%40LANTED@db/x and http://host/a@b",
            "postgresql+psycopg2://***@db/x and http://host/a@b",
        ),
        ("http://svc:PL@NTED@host", "http://***@host"),
        ("http://svc:PL/NT#ED@host/x", "http://***@host/x"),
        ("http://host:8080/who@where and s3://bucket/a@b", "http://host:8080/who@where and s3://bucket/a@b"),
        (
            "https://b.s3/x?X-Amz-Credential=PLANTED&X-Amz-Expires=60&X-Amz-Signature=PLANTED",
            "https://b.s3/x?X-Amz-Credential=***&X-Amz-Expires=60&X-Amz-Signature=***",
        ),
        (
            "/api?a=1&access_token=PLANTED, and /b?sig=PL%2FANTED&se=1",
            "/api?a=1&access_token=*** and /b?sig=***&se=1",
        ),
        (
            "base_model: org/name@0123abc: 3 of 4 shards are missing",
            "base_model: org/name@0123abc: 3 of 4 shards are missing",
        ),
    ],
)
def test_passwords_and_keys_in_addresses_are_hidden(text: str, shown: str) -> None:
    assert without_secrets(text) == str(StoreError(text)) == str(WorkloadError(text, "data")) == shown
    assert len(without_secrets("x" * 190 + text)) < 10_000


def test_a_secret_reaches_neither_a_log_nor_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Planted where libraries put it: into the message of an error, foreseen or not, and into what a workload
    says.
    """
    address, reported = "http://svc:PLANTED@host:5000/api?token=PLANTED", []
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error"))
    monkeypatch.setattr(entry, "listen_for_stop", lambda progress: None)
    settings = UseCaseSettings.model_validate(
        {"base_model": "none", "documents": {"path": "none"}, "examples": {"label": "none"}}
    )
    job = Job(
        case="c",
        stage="s",
        key="k",
        project_root=".",
        store_url=str(tmp_path / "store"),
        settings=settings,
        inputs={},
    )
    errors = (
        StoreError(f"{address} is down"),
        ConnectionError(f"{address} is down"),
        MemoryError(f"out of memory at {address}"),
    )

    def work(job: Job, store: Store, progress: Progress) -> None:
        progress.say(f"asking {address}")
        raise next(left)

    left = iter(errors)
    uri = job.write(job.open_store())
    for _ in errors:
        entry.run_job(work, uri, Progress(reported.append))
        (tmp_path / "error").rename(tmp_path / f"error{len(reported)}")
    printed = "".join(capfd.readouterr())
    kept = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    # Reasons, tracebacks and the job; what was said.
    assert len(kept) == 3 + 2 + 1 and len(reported) == 3
    assert "asking http://***@host:5000/api?token=***" in reported
    assert all("PLANTED" not in text for text in (printed, *reported, *kept.values()))


def assert_one_line(done: subprocess.CompletedProcess[str], line: str) -> None:
    """The command ended with this line alone."""
    assert done.returncode == 1 and done.stderr == line + "\n"
    assert done.stdout == ""


@pytest.fixture
def in_project(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command of the project in this process, for what ends before anything is run; returns its
    status, stdout and stderr.
    """
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("DAGSTER_HOME", str(project.home))

    def run(*arguments: str) -> tuple[int, str, str]:
        return main([*arguments, "--defs", str(project.root / "my_project" / "defs")]), *capsys.readouterr()

    return run


def test_a_wrong_yaml_is_one_line_for_the_check_and_for_the_run(project, in_project):
    project.configure(training={"learning_rat": 1e-5})
    lines = project.yaml_path.read_text().splitlines()
    number = next(n for n, text in enumerate(lines, start=1) if "learning_rat:" in text)
    message = "training.learning_rat: unknown key `learning_rat`; did you mean `learning_rate`?"
    for command in ("check", "run"):
        assert in_project(command, "letters") == (1, "", f"{LETTERS_YAML}:{number}: {message}\n")
    assert not (project.home / "store").exists(), "nothing was run"


def test_a_broken_use_case_beside_stops_no_other_and_is_named_by_the_check_of_all(project):
    other = Project(project.root, "contracts")
    other.deliver("a.jsonl", licence_rows(5))
    other.configure(training={"epoch": 3})
    Project(project.root, "unwritten").configure()
    mistyped = Project(project.root, "mistyped")
    mistyped.configure()
    mistyped.yaml_path.write_text("type: fullft_assets.FullFineTune\nattributes:\n\tname: x\n")
    done = project.fullft("ingest", "letters")
    assert (done.returncode, done.stderr) == (0, "")
    shutil.rmtree(project.documents)  # archived
    again = project.fullft("ingest", "letters")
    assert (again.returncode, again.stderr) == (0, "")
    assert "data/letters/documents; there is no" in again.stdout
    of_all = project.fullft("check")
    assert of_all.returncode == 1
    wrong, removed, syntax, missing = of_all.stderr.splitlines()
    assert syntax.startswith("my_project/defs/mistyped/defs.yaml:3: not YAML: ")
    assert wrong.startswith("my_project/defs/contracts/defs.yaml:") and wrong.endswith(
        "unknown key `epoch`; did you mean `epochs`?"
    )
    assert "defs/letters/defs.yaml" in removed and "defs/unwritten/defs.yaml" in missing


def test_definitions_that_cannot_be_imported_are_one_line(project):
    (project.root / "my_project" / "definitions.py").write_text("import no_such_module\n")
    assert_one_line(
        project.fullft("run", "letters"),
        f"{project.root}: Dagster cannot load the definitions: my_project: ModuleNotFoundError: No module"
        " named 'no_such_module'",
    )


def test_a_project_without_a_workspace_is_one_line(project):
    (project.root / "workspace.yaml").unlink()
    (project.root / "pyproject.toml").write_text('[project]\nname = "my-project"\n')
    done = project.fullft("run", "letters")
    assert_one_line(
        done, f"{project.root}: neither a workspace.yaml nor [tool.dg.project] in pyproject.toml; add either"
    )
