"""The resource `aws` of a code location: all that speaks to AWS follows it, while the environment says what
is wrong.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest
from dagster_aws.s3 import S3Resource
from dagster_aws.utils import ResourceWithBoto3Configuration

from fullft_assets.alerts.channels import read_secret
from fullft_assets.assets import security
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.automation import INGEST
from fullft_assets.aws import account_of
from fullft_assets.component import FullFineTune
from fullft_assets.errors import SettingsError
from tests import project as projects
from tests.machine import set_environment
from tests.s3_server import S3Server

#: Of another account, at an address where nobody answers.
WRONG = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
    "AWS_ENDPOINT_URL_SECRETS_MANAGER": "http://127.0.0.1:9",
    "AWS_DEFAULT_REGION": "eu-north-1",
    "AWS_PROFILE": "other",
    "AWS_ACCESS_KEY_ID": "wrong",
    "AWS_SECRET_ACCESS_KEY": "wrong",
    "AWS_SESSION_TOKEN": "wrong",
}
COMPONENT = """\
type: dagster_aws.S3ResourceComponent
attributes:
  resource_key: aws
  credentials:
    region_name: us-east-1
    endpoint_url: "{{ env.TEAM_ENDPOINT }}"
    aws_access_key_id: "{{ env.TEAM_KEY }}"
    aws_secret_access_key: "{{ env.TEAM_SECRET }}"
"""


def aws_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """The AWS variables of a process of another account."""
    (tmp_path / "profiles").write_text("[profile other]\nregion = eu-north-1\n")
    for name in aws_variables():
        monkeypatch.delenv(name)
    set_environment(monkeypatch, WRONG | {"AWS_CONFIG_FILE": str(tmp_path / "profiles")})
    return aws_variables()


@pytest.fixture
def letters(
    s3_server: S3Server, wrong: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> projects.Project:
    """A project with documents and a store in a bucket, whose ingestion is launched."""
    bucket = s3_server.make_bucket(f"team-{os.getpid()}-{len(list(s3_server.root.iterdir()))}")
    for name, value in {
        "TEAM_ENDPOINT": s3_server.endpoint,
        "TEAM_KEY": s3_server.access_key,
        "TEAM_SECRET": s3_server.secret_key,
        "FULLFT_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    projects.write_rows(bucket / "documents" / "a.jsonl", projects.licence_rows(400))
    return projects.create(
        tmp_path / "project",
        rows=0,
        documents={"path": f"s3://{bucket.name}/documents"},
        compute={"ingestion": {"kind": "local"}},
        store=f"s3://{bucket.name}/store",
    )


@pytest.mark.slow
def test_commands_and_the_code_server_follow_it(letters: projects.Project) -> None:
    path = letters.yaml_path.parents[1] / "account" / "defs.yaml"
    projects.write_files(path.parent, {path.name: COMPONENT})
    letters.succeed("ingest", "letters")
    assert "a.jsonl" in letters.succeed("files", "letters")
    path.unlink()
    assert letters.fullft("files", "letters").returncode == 1


def test_sensors_assets_and_launched_jobs_follow_it(
    letters: projects.Project, wrong: dict[str, str], s3_server: S3Server
) -> None:
    team = S3Resource(
        region_name="us-east-1",
        endpoint_url=dg.EnvVar("TEAM_ENDPOINT"),
        aws_access_key_id=dg.EnvVar("TEAM_KEY"),
        aws_secret_access_key=dg.EnvVar("TEAM_SECRET"),
    )
    definitions = dg.Definitions.merge(
        FullFineTune(letters.use_case()).build_defs(),
        dg.Definitions(resources={"aws": team}, executor=dg.in_process_executor),
    )
    with dg.DagsterInstance.from_config(str(letters.home)) as instance:
        with dg.build_sensor_context(instance=instance, resources=definitions.resources) as context:
            (request,) = definitions.resolve_sensor_def("letters_new_documents")(context).run_requests
        instance.add_dynamic_partitions("letters/batch", [request.partition_key])
        run = definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=[dg.AssetKey(["letters", asset]) for asset in INGEST],
            partition_key=request.partition_key,
            instance=instance,
        )
        assert run.success and aws_variables() == wrong
    url = letters.use_case().settings.store
    assert url is not None and (s3_server.root / url[len("s3://") :] / "pointers/launches/letters").is_dir()


def test_a_secret_of_an_alert_and_the_audit_follow_it(
    aws: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    boto3.Session().client("secretsmanager").create_secret(Name="hook", SecretString="https://example.com")
    boto3.Session().client("s3").create_bucket(Bucket="audited")
    account = ResourceWithBoto3Configuration(
        endpoint_url=os.environ["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="k",
        aws_secret_access_key="s",
    )
    request.getfixturevalue("wrong")
    monkeypatch.setenv("FULLFT_STORE", "s3://audited/store")
    project = projects.create(tmp_path / "project", rows=5)
    with dg.build_resources({**CaseGraph(project.use_case()).resources(), "aws": account}):
        assert read_secret("secret:hook") == "https://example.com"
    audit = dg.Definitions.merge(
        security.build(project.yaml_path.parents[1]), dg.Definitions(resources={"aws": account})
    )
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        assert audit.resolve_job_def("audit_security").execute_in_process(instance=instance).success
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(SettingsError, match="127.0.0.1:9"):
        read_secret("secret:hook")


def test_the_logs_of_steps_stay_where_the_instance_says(
    letters: projects.Project, wrong: dict[str, str]
) -> None:
    manager = {"module": "dagster_aws.s3.compute_log_manager", "class": "S3ComputeLogManager"}
    (letters.home / "dagster.yaml").write_text(
        json.dumps({"compute_logs": {**manager, "config": {"bucket": "logs"}}})
    )
    resources = {**CaseGraph(letters.use_case()).resources(), "aws": S3Resource(endpoint_url="http://s3:1")}
    with (
        dg.DagsterInstance.from_config(str(letters.home)) as instance,
        dg.build_resources(resources, instance=instance),
    ):
        assert os.environ["AWS_ENDPOINT_URL_S3"] == "http://s3:1"
        assert (
            vars(instance.compute_log_manager)["_s3_session"].meta.endpoint_url
            == wrong["AWS_ENDPOINT_URL_S3"]
        )


def test_what_it_has_wins_as_a_whole_and_the_rest_stays(wrong: dict[str, str]) -> None:
    by_profile = S3Resource(profile_name="team", endpoint_url="http://s3:1")
    with account_of(by_profile), account_of(by_profile):
        assert aws_variables() == {
            "AWS_CONFIG_FILE": wrong["AWS_CONFIG_FILE"],
            "AWS_PROFILE": "team",
            "AWS_DEFAULT_PROFILE": "team",
            "AWS_DEFAULT_REGION": "eu-north-1",
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
            "AWS_ENDPOINT_URL_S3": "http://s3:1",
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": "http://127.0.0.1:9",
            "AWS_MAX_ATTEMPTS": "5",
        }
        with pytest.raises(SettingsError, match="follows another one"), account_of(S3Resource()):
            pass
        assert os.environ["AWS_PROFILE"] == "team"
    with account_of(ResourceWithBoto3Configuration(endpoint_url="http://all:1", region_name="us-west-2")):
        assert {aws_variables()[name] for name in wrong if "ENDPOINT" in name} == {"http://all:1"}
        assert (os.environ["AWS_REGION"], os.environ["AWS_ACCESS_KEY_ID"]) == ("us-west-2", "wrong")
    assert aws_variables() == wrong


@pytest.mark.parametrize(
    "resource",
    [
        object(),
        S3Resource(use_ssl=False),
        S3Resource(use_unsigned_session=True),
        ResourceWithBoto3Configuration(verify=False),
    ],
)
def test_what_no_variable_says_is_refused(resource: Any, wrong: dict[str, str]) -> None:
    with (
        pytest.raises(
            SettingsError, match=rf"^resource aws: give .* not {type(resource).__name__}, with use_ssl"
        ),
        account_of(resource),
    ):
        pass
    assert aws_variables() == wrong


def test_without_it_definitions_load_no_library_of_aws(tmp_path: Path) -> None:
    project = projects.create(tmp_path, rows=5)
    code = (
        "import sys\nfrom pathlib import Path\nfrom fullft_assets.component import FullFineTune\n"
        "from fullft_assets.checking.validation import load_use_case\n"
        f"FullFineTune(load_use_case(Path({str(project.yaml_path)!r}))).build_defs().get_repository_def()\n"
        "print([name for name in ('boto3', 'botocore', 'dagster_aws', 'obstore') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
