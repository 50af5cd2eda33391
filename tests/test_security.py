"""What the audit finds, the record's chain, and who may overrule the gates: real files and keys."""

import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from fullft_assets import security
from fullft_assets.cli import commands
from fullft_assets.errors import GateError, SettingsError
from fullft_assets.security import Act, Entry, Person
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store
from tests import project as projects
from tests.test_store import bucket as bucket

pytestmark = pytest.mark.quick

#: Built here, so that no audit of this repository takes it for a key.
AWS_KEY = "AKIA" + "QWERTYUIOPASDFGH"


class Platform:
    """A project with a use case, its model and data, and a home of Dagster, all as they should be."""

    def __init__(self, root: Path):
        self.root, self.home = root / "project", root / "home"
        (self.home / "security").mkdir(parents=True)
        self.home.chmod(0o700)
        self.yaml = self.root / "defs.yaml"
        projects.write_files(
            self.root,
            {
                "model/README.md": "---\nlicense: apache-2.0\n---\n",
                "documents/LICENSE": "MIT License\n",
                "defs.yaml": "type: fullft_assets.FullFineTune\n",
            },
        )
        self.lock(metadata.version("pyyaml"))
        self.vulnerability(modified="2999-01-01T00:00:00Z", introduced="99")
        self.store = Store(str(self.home / "store"))
        self.store.write_pointer("any", {})

    def lock(self, version: str) -> None:
        (self.root / "uv.lock.txt").write_text(f"pyyaml=={version}\n")

    def vulnerability(self, *more: dict[str, Any], modified: str, introduced: str) -> None:
        """Write a list of one vulnerability; more ranges go before its own."""
        events = [{"introduced": introduced}, {"fixed": "999"}]
        advisory = {
            "id": "GHSA-1",
            "modified": modified,
            "database_specific": {"severity": "HIGH"},
            "affected": [
                {
                    "package": {"ecosystem": "PyPI", "name": "PyYAML"},
                    "ranges": [*more, {"type": "ECOSYSTEM", "events": events}],
                }
            ],
        }
        with zipfile.ZipFile(self.home / "security" / "osv.zip", "w") as archive:
            archive.writestr("GHSA-1.json", json.dumps(advisory))

    def use_case(self, **release: object) -> UseCase:
        settings = UseCaseSettings.model_validate(
            {
                "base_model": "model",
                "documents": {"path": "documents"},
                "examples": {"label": "l"},
                "release": release,
            }
        )
        return UseCase("letters", settings, self.yaml, self.root)

    def findings(self) -> list[security.Finding]:
        return security.audit(self.root, self.home, self.store, [self.use_case()])


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    return Platform(tmp_path)


def test_what_is_as_it_should_be_is_no_finding(platform: Platform) -> None:
    secret_files = dict.fromkeys(("secrets.env", ".env.local"), f"KEY={AWS_KEY}\n")
    deliveries = {f"deliveries/{number}.txt": AWS_KEY for number in range(1_001)}
    others = {
        "notes.md": "AKIAIOSFODNN7EXAMPLE\n-----BEGIN PRIVATE KEY-----\n...\n",
        "env/pyvenv.cfg": "",
        "env/key.txt": AWS_KEY,
        "documents/key.txt": AWS_KEY,
        "Dockerfile.bak": b"FROM \xff\xfe",
        "defs.yaml": "type: fullft_assets.FullFineTune\n# cloned from ssh://git@example.com/x\ndocuments:\n"
        '  path: "https://{{ env.U }}:{{ env.P }}@example.com/x?token={{ env.TOKEN }}&sort_key=name"\n',
    }
    projects.write_files(platform.root, deliveries | secret_files | others)
    for name in secret_files:
        (platform.root / name).chmod(0o600)
    assert platform.findings() == []


def test_what_somebody_accepted_closes_no_release(platform: Platform) -> None:
    (platform.root / "upload.py").write_text(f"KEY = '{AWS_KEY}'\n")
    (platform.home / "security" / "accepted.txt").write_text("secret_in_file upload.py  # a key of a test\n")
    (finding,) = platform.findings()
    assert finding.severity == "warning" and finding.evidence.endswith(" (accepted)")
    (platform.root / "uv.lock.txt").unlink()
    (platform.root / "uv.lock").write_text("[[package")
    assert {finding.id for finding in platform.findings()} == {"secret_in_file", "lock_missing"}


def test_a_damaged_head_is_a_finding_and_the_next_entry_is_added(platform: Platform) -> None:
    for about in ("a", "b"):
        security.append(platform.store, Entry(action="promote", case="letters", about=about, reason="r"))
    (Path(platform.store.url) / "pointers" / "record.json").write_text("{")
    assert [finding.id for finding in platform.findings()] == ["record_broken"]
    added = security.append(platform.store, Entry(action="promote", case="letters", about="c", reason="r"))
    assert added.number == 3 and platform.findings() == []


def test_a_range_of_commits_hides_no_other_one(platform: Platform) -> None:
    platform.vulnerability(
        {"type": "GIT", "events": [{"introduced": "0"}, {"fixed": "4f2c"}]},
        modified="2999-01-01T00:00:00Z",
        introduced="0",
    )
    assert [finding.id for finding in platform.findings()] == ["package_vulnerable"]


@pytest.fixture
def open_server(platform: Platform) -> Iterator[None]:
    code = "import socket; s = socket.create_server(('0.0.0.0', 0)); print('open', flush=True); input()"
    server = subprocess.Popen(
        [sys.executable, "-c", code, "fullft_assets.cli.webserver"],
        env={**os.environ, "DAGSTER_HOME": str(platform.home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None and server.stdout.readline() == b"open\n"
    yield
    server.communicate(b"\n")


def test_fourteen_planted_faults_are_found(platform: Platform, open_server: None) -> None:
    platform.home.chmod(0o755)
    Path(platform.store.url).chmod(0o755)
    projects.write_files(
        platform.root,
        {
            "defs.yaml": "documents: {path: https://ann:pa55@example.com/x}\n",
            "upload.py": f"KEY = '{AWS_KEY}'\n",
            "model/modeling.py": "",
            "model/pytorch_model.bin": b"",
            "model/README.md": "---\nlicense: cc-by-nc-4.0\n---\n",
            "documents/LICENSE": "All rights reserved\n",
            "compose.yaml": "services: {}\nx:\n  image: postgres:17\n",
        },
    )
    platform.vulnerability(modified="2020-01-01T00:00:00Z", introduced="0")
    platform.lock("1.2.3")
    for about in ("a", "b", "c"):
        security.append(platform.store, Entry(action="promote", case="letters", about=about, reason="r"))
    (Path(platform.store.url) / "record" / "00000002.json").unlink()
    findings = platform.findings()
    ids = sorted(finding.id for finding in findings)
    expected = ["home_open", "image_by_tag", "licence_unlisted", "licence_unlisted", "lock_differs"]
    expected += ["model_code", "model_pickle", "osv_old", "package_vulnerable", "record_broken"]
    assert ids == [*expected, "secret_in_file", "secret_in_yaml", "store_open", "ui_open"]
    assert not any("pa55" in finding.evidence or AWS_KEY in finding.evidence for finding in findings)
    severities = [finding.severity for finding in findings]
    assert severities == sorted(severities) and severities.count("error") >= 5


def test_a_list_that_cannot_be_read_is_a_finding(platform: Platform) -> None:
    path = platform.home / "security" / "osv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.json", "{}")
    assert [each.id for each in platform.findings()] == ["osv_missing"]
    for content in (b"no zip", b"PK\x05\x06" + bytes(18)):
        path.write_bytes(content)
        assert [each.id for each in platform.findings()] == ["osv_missing"]


def test_what_prowler_found_in_the_account_is_imported(platform: Platform) -> None:
    path = platform.home / "security" / "prowler.ocsf.json"

    def result(code: str, severity: str, status: str = "FAIL") -> dict[str, object]:
        return {
            "metadata": {"event_code": code, "product": {"name": "Prowler"}},
            "severity": severity,
            "status_code": status,
            "status_detail": "S3 Bucket b is open.",
            "resources": [{"uid": "arn:aws:s3:::b"}],
            "remediation": {"desc": "Block it."},
            "time": int(time.time()),
        }

    bad = [result("s3_bucket_public_access", "Critical"), result("s3_bucket_object_versioning", "Low")]
    path.write_text(json.dumps([*bad, result("kms_cmk_rotation_enabled", "High", "PASS")]))
    findings = platform.findings()
    assert [(each.id, each.severity) for each in findings] == [
        ("s3_bucket_public_access", "error"),
        ("s3_bucket_object_versioning", "warning"),
    ]
    assert findings[0][2:] == ("arn:aws:s3:::b: S3 Bucket b is open.", "Block it.")
    for content in ("[", "{}", '[{"status_code": "FAIL"}]'):
        path.write_text(content)
        assert [each.id for each in platform.findings()] == ["prowler_old"]


def test_a_list_of_licences_closes_the_release_to_others(platform: Platform) -> None:
    (platform.home / "security" / "licences.txt").write_text("mit*  # ours\n")
    assert [(each.id, each.severity) for each in platform.findings()] == [("licence_unlisted", "error")]
    reason = security.reason_to_keep(platform.use_case(), platform.home, platform.store)
    assert reason is not None and "licence_unlisted" in reason
    assert security.reason_to_keep(platform.use_case(), platform.home, platform.store) == reason
    # The same findings are recorded once.
    assert [entry.action for entry in security.read_record(platform.store).entries] == ["audit"]


@pytest.mark.parametrize(
    ("place", "number"), [("tmp_path", 100), pytest.param("bucket", 20, marks=pytest.mark.heavy)]
)
def test_writers_at_once_lose_no_entry(request: pytest.FixtureRequest, place: str, number: int) -> None:
    store = Store(str(request.getfixturevalue(place)))
    with ThreadPoolExecutor(4) as pool:
        entries = (Entry(action="freeze", case="c", about=str(n), reason="r") for n in range(number))
        list(pool.map(lambda entry: security.append(store, entry), entries))
    record = security.read_record(store)
    assert record.broken is None and len(record.entries) == number
    assert {entry.about for entry in record.entries} == {str(n) for n in range(number)}


def test_the_first_break_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for n in range(4):
        security.append(store, Entry(action="freeze", case="c", about="x", reason=f"reason {n}"))
    names = [f"record/{number:08d}.json" for number in range(1, 5)]
    contents = {name: (tmp_path / name).read_bytes() for name in names}

    def broken() -> str | None:
        line = security.read_record(store).broken
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
        return line and line.split()[0]

    for name, content in contents.items():
        (tmp_path / name).write_bytes(content.replace(b"reason ", b"reasom "))
        assert broken() == name
        (tmp_path / name).write_bytes(content[:-1])
        assert broken() == name
        (tmp_path / name).unlink()
        assert broken() == name
    (tmp_path / "record/00000005.json").write_bytes(contents[names[3]])
    assert broken() == "record/00000005.json"


@pytest.fixture
def usual_mask() -> Iterator[None]:
    """Whatever a command does with the mask of new files, the next test has its own again."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A key of each of three people."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ann", "ben", "eve"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
        subprocess.run(command, check=True)
    return {name: folder / name for name in ("ann", "ben", "eve")}


def approvers(keys: dict[str, Path]) -> dict[str, str]:
    return {name: keys[name].with_suffix(".pub").read_text().strip() for name in ("ann", "ben")}


def test_without_approvers_an_overrule_is_unverified(platform: Platform) -> None:
    done: list[str] = []
    asked = (Act("rollback", "letters/x", "worse\n on Mondays"), Person("ann", run="r1"))
    assert security.overrule(platform.store, platform.use_case(), *asked, lambda: done.append("x")) is None
    (entry,) = security.read_record(platform.store).entries
    assert done == ["x"] and entry.reason == "worse on Mondays"
    assert (entry.action, entry.person, entry.identity, entry.run) == ("rollback", "ann", "unverified", "r1")


def test_what_fails_is_recorded_as_undone(platform: Platform) -> None:
    def fail() -> None:
        raise GateError("there is no champion")

    with pytest.raises(GateError):
        security.overrule(platform.store, platform.use_case(), Act("rollback", "", "r"), Person("ann"), fail)
    assert [entry.action for entry in security.read_record(platform.store).entries] == [
        "rollback",
        "undone rollback",
    ]


@pytest.mark.parametrize(
    "person",
    [Person("ann"), Person("eve", "proxy"), Person("ann", "proxy")],
    ids=["unverified", "proxy", "the login for one with a key"],
)
def test_nobody_else_may_overrule(platform: Platform, keys: dict[str, Path], person: Person) -> None:
    use_case = platform.use_case(approvers=approvers(keys))
    with pytest.raises(GateError, match=r"^letters: rollback .* release.approvers \(ann, ben\)"):
        security.overrule(platform.store, use_case, Act("rollback", "", "r"), person, list)
    with pytest.raises(SettingsError, match="key of none"):
        security.overrule(
            platform.store, use_case, Act("rollback", "", "r"), Person("ann", key=keys["eve"]), list
        )
    assert security.read_record(platform.store).entries == []
    assert security.overrule(platform.store, use_case, Act("freeze", "", "r"), person, list) is None


@pytest.mark.heavy
@pytest.mark.parametrize("num_acts", [5, pytest.param(201, marks=pytest.mark.long)])
def test_overrules_by_two_people_are_each_in_the_chain(
    platform: Platform, keys: dict[str, Path], num_acts: int
) -> None:
    use_case = platform.use_case(approvers=approvers(keys), approvals=2)
    done: list[int] = []
    for number in range(num_acts):
        act = Act("promote", f"letters/{number}", "needed")
        for name in ("ann", "ann", "ben"):
            if name == "ann" or number:
                security.overrule(
                    platform.store, use_case, act, Person("x", key=keys[name]), partial(done.append, number)
                )
    record = security.read_record(platform.store)
    assert done == list(range(1, num_acts))
    assert record.broken is None
    actions = [(entry.action, entry.person) for entry in record.entries]
    assert actions.count(("promote", "ben")) == num_acts - 1
    assert actions.count(("approve promote", "ann")) == 2 * num_acts
    assert security.audit(platform.root, platform.home, platform.store, [use_case]) == []
    path = Path(platform.store.url) / "record" / "00000012.json"
    path.write_bytes(path.read_bytes().replace(b"needed", b"neaded"))
    assert "record/00000012.json" in (security.read_record(platform.store).broken or "")


def test_a_signature_counts_for_one_entry(platform: Platform, keys: dict[str, Path]) -> None:
    use_case = platform.use_case(approvers=approvers(keys))
    security.overrule(
        platform.store, use_case, Act("promote", "letters/a", "r"), Person("x", key=keys["ann"]), list
    )
    (entry,) = security.read_record(platform.store).entries
    security.append(platform.store, entry)
    security.append(platform.store, entry.model_copy(update={"about": "letters/b", "signature": ""}))
    findings = security.audit(platform.root, platform.home, platform.store, [use_case])
    assert [finding.id for finding in findings] == ["signature_wrong", "signature_wrong"]


@pytest.mark.heavy
def test_the_asset_and_the_command_say_the_same(project: projects.Project) -> None:
    import dagster as dg

    from fullft_assets.assets.security import build

    project.home.chmod(0o700)
    project.configure(release={"approvers": {"ann": "proxy"}})
    project.yaml_path.write_text(f"{project.yaml_path.read_text()}# {AWS_KEY}\n")
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        defs = build(project.root / "my_project" / "defs")
        done = defs.resolve_job_def("audit_security").execute_in_process(instance=instance)
    (check,) = done.get_asset_check_evaluations()
    (event,) = done.get_asset_materialization_events()
    metadata = event.materialization.metadata
    assert not check.passed and metadata["num_errors"].value == 1
    printed = project.fullft("audit")
    lines = printed.stdout.splitlines()
    assert printed.returncode == 1 and len(lines) == metadata["num_findings"].value + 1
    assert lines[0].startswith(f"error  secret_in_yaml: {project.yaml_path}:")
    assert "1 entries, whole" in lines[-1]


@pytest.mark.heavy
def test_an_erasure_at_a_terminal_is_signed(
    project: projects.Project,
    keys: dict[str, Path],
    usual_mask: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    project.configure(release={"approvers": approvers(keys), "approvals": 2})
    (project.root / "list.txt").write_text("no-such-id\n")
    arguments = ["erase", "letters", str(project.root / "list.txt"), "--reason", "asked for", "--defs"]
    arguments.append(str(project.root / "my_project" / "defs"))
    monkeypatch.setenv("DAGSTER_HOME", str(project.home))
    assert [commands.main([*arguments, *more]) for more in ([], ["--key", str(keys["ann"])])] == [1, 0]
    assert "another approver (ben)" in capsys.readouterr().out
    assert commands.main([*arguments, "--key", str(keys["ben"])]) == 1  # the id is not there
    store = Store(str(project.home / "store"))
    entries = [(entry.action, entry.person, entry.identity) for entry in security.read_record(store).entries]
    assert entries == [("approve erase", "ann", "ssh"), ("erase", "ben", "ssh")]


def test_a_home_of_the_projects_own_is_kept_from_others_and_a_named_one_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usual_mask: None
) -> None:
    (tmp_path / "shared").mkdir()
    for named, rights in ((str(tmp_path / "shared"), 0o755), (str(tmp_path / ".home"), 0o700), (None, 0o700)):
        monkeypatch.delenv("DAGSTER_HOME", raising=False)
        if named is not None:
            monkeypatch.setenv("DAGSTER_HOME", named)
        commands._use_home(tmp_path)
        home = Path(os.environ["DAGSTER_HOME"])
        (home / "run.log").touch()
        assert home.stat().st_mode & 0o777 == rights
        assert (home / "run.log").stat().st_mode & 0o777 == (0o644 if rights == 0o755 else 0o600)
