"""The launcher `ecs` against a double that runs the containers, with a store on a real S3 server."""

import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from botocore.exceptions import ClientError
from pydantic import ValidationError

from fullft_assets.errors import WorkloadError
from fullft_assets.launch import Status, Unreachable, aws
from fullft_assets.launch.container import MODULE
from fullft_assets.launch.ecs import EcsLauncher, status_of, task_definition
from fullft_assets.settings import EcsLauncherSettings, PlanningSettings
from fullft_assets.store import Store
from tests.aws_double import IMAGE, ROLE
from tests.ecs_double import CLUSTER, PROVIDER, SECRET, Ecs
from tests.launch_scenes import (
    NAME,
    process,
    recorded,
    run_stage,
    serving,
    spec,
    url as url,
    wait_for,
)
from tests.s3_server import S3Server

SETTINGS = {
    "kind": "ecs",
    "cluster": CLUSTER,
    "capacity_provider": PROVIDER,
    "image": IMAGE,
    "python": sys.executable,
    "gpus": False,
    "memory_gb": 2,
    "task_role_arn": ROLE,
    "execution_role_arn": ROLE,
    "grace_seconds": 10,
    "max_retries": 1,
}


@pytest.fixture
def service(s3_env: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ecs]:
    with serving(Ecs, EcsLauncher, s3_env, tmp_path, monkeypatch) as double:
        yield double


def launcher(**changes: Any) -> EcsLauncher:
    return EcsLauncher(EcsLauncherSettings.model_validate({**SETTINGS, **changes}))


def ended(chosen: EcsLauncher) -> Status:
    wait_for(lambda: chosen.poll(NAME).is_over, "the task ended")
    return chosen.poll(NAME)


@pytest.mark.slow
@pytest.mark.fault("the backend throttles, fails or does not answer", "ecs")
@pytest.mark.fault("the answer to a submission is lost", "ecs")
@pytest.mark.fault("output is lost, late or cut", "ecs")
def test_through_throttling_errors_lost_and_late_answers_one_task_runs_and_what_it_says_arrives(
    service, url, capfd, monkeypatch
):
    monkeypatch.setenv("TRACKING_PASSWORD", "planted-secret")
    service.throttled.update(RunTask=1, DescribeTasks=2, GetLogEvents=1)
    service.broken.update(ListTasks=1, DescribeLogStreams=1, RegisterTaskDefinition=1)
    service.lost.update(RunTask=1)
    service.unseen_seconds = service.late_seconds = 1.0
    failure, messages = run_stage(launcher(), "writes", url)
    assert failure is None
    assert len(service.tasks) == 1
    assert service.calls["RunTask"] >= 3
    assert [each for each in messages if each == "reading the rows"] == [
        "reading the rows"
    ] and "step 1/1,000 (0%), loss 0.25" in messages
    output = capfd.readouterr().out
    assert "] reading the rows\n" in output
    assert "fullft: the container" not in output, "output that came late is waited for"
    launch = recorded(Store(url))
    assert (launch.state, launch.attempt, launch.place) == ("succeeded", 1, "111122223333/us-east-1/fullft")
    failure, _ = run_stage(launcher(), "refuses", url)
    assert failure == "documents/a.csv:3: no field `label`; name it in examples.label [data]"
    assert "planted-secret" not in json.dumps(list(service.definitions.values()))


@pytest.mark.fault("two runs launch the same", "ecs")
def test_a_second_submission_attaches_by_name_and_by_token(service, url):
    chosen = launcher()
    chosen.submit(spec(url, "waits"))
    process(service.folder, "workload0")
    launcher(grace_seconds=5).submit(spec(url, "waits", run_id="r2"))
    service.unseen_seconds = 3600.0  # the list does not have it yet: the token does
    other = launcher()
    other.submit(spec(url, "waits", run_id="r2"))
    assert other.poll(NAME).state == "pending" and len(service.tasks) == 1
    service.unseen_seconds = 0.0
    assert other.poll(NAME).state == "running"
    (service.folder / "go").touch()
    assert ended(chosen).state == "succeeded" and (service.folder / "starts").read_text() == "started\n"


@pytest.mark.long
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("SpotInterruption", "Your Spot Task was interrupted."),
        ("TerminationNotice", "Host EC2 (instance i-0a1b) terminated."),
    ],
)
@pytest.mark.fault("spot capacity is taken away", "ecs")
@pytest.mark.fault("the machine or node is lost", "ecs")
def test_a_task_that_lost_its_instance_is_launched_again_and_resumes(service, url, code, reason):
    chosen, lost = launcher(), []

    def poll(name: str, wait_seconds: float = 0.0) -> Status:
        if not lost and (service.folder / "workload0.pid").exists():
            lost.append(name)
            service.lose_host(code, reason)
            (service.folder / "go").touch()
        return EcsLauncher.poll(chosen, name, wait_seconds)

    chosen.poll = poll
    failure, messages = run_stage(chosen, "waits", url)
    assert failure is None and (recorded(Store(url)).attempt, len(service.tasks)) == (2, 2)
    assert any(
        f"was preempted: {reason}" in each and "[preemption]; retry 1 of 1" in each for each in messages
    )


@pytest.mark.long
def test_a_task_that_was_just_started_is_stopped_although_it_is_not_listed_yet(service, url):
    service.unseen_seconds = 1.0
    chosen = launcher()
    chosen.submit(spec(url, "works"))
    chosen.stop(NAME)
    assert [task.last_status for task in service.tasks] == ["STOPPED"]
    status = chosen.poll(NAME)
    assert status.reason.startswith("was stopped in ECS") and status.failure == "unknown"
    chosen.stop("fullft-unknown")


def test_a_task_without_an_instance_is_a_lost_machine_after_the_limit(service, url):
    service.has_room = False
    failure, _ = run_stage(launcher(pending_minutes=1 / 60, max_retries=0), "writes", url)
    assert re.search(
        r" launcher\.pending_minutes \(0\.0166667\): no instance .* \[infrastructure\]$", str(failure)
    )
    assert [task.last_status for task in service.tasks] == ["STOPPED"], "it does not start later, unseen"
    with pytest.raises(
        WorkloadError,
        match=f"no instance takes {NAME} .RESOURCE:GPU.; wait",
    ):
        launcher(capacity_provider=None).submit(spec(url, "writes"))


@pytest.mark.long
def test_secrets_reach_the_container_alone(service, url):
    service.secrets[SECRET] = "planted-secret"
    chosen = launcher(secrets={"PROBE_VARIABLE": SECRET})
    chosen.submit(spec(url, "looks"))
    assert ended(chosen).state == "succeeded"
    found = Store(url).find("probe", "looks", "k1")
    assert found is not None and found.metadata == {"root": str(service.folder), "variable": "planted-secret"}
    assert "planted-secret" not in json.dumps(list(service.definitions.values()))


@pytest.mark.long
class TestRefused:
    def of(self, url: str, **changes: Any) -> str:
        failure, _ = run_stage(launcher(**changes), "writes", url)
        assert "\n" not in failure
        assert failure.endswith("[settings]")
        return failure

    @pytest.mark.fault("the image, version or Python is another one", "ecs")
    def test_an_image_a_python_and_a_secret_that_are_not_there_are_one_line_each(self, service, url):
        line = self.of(url, image=IMAGE.replace("fullft@", "other@"))
        assert re.search(" CannotPullContainerError: .*; set launcher.image and launcher.exec", line)
        line = self.of(url, python="/nowhere/python")
        assert re.search("CannotStartContainerError.*; set launcher.python and", line)
        assert "; set launcher.secrets and launcher.execution_role_arn" in self.of(
            url, secrets={"TRACKING": SECRET}
        )

    def test_what_aws_refuses_is_one_line(self, service, url):
        assert re.fullmatch(
            r"ECS 111122223333/us-east-1/other: list_tasks: .* \(ClusterNotFoundException\) \[settings\]",
            self.of(url, cluster="other"),
        )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"nodes": 2, "processes": 2},
            "the processes of a training share one instance of ECS; set 1",
        ),
        (
            {"environment": {"HF_TOKEN": "hf_abc"}},
            (
                "HF_TOKEN is a secret, which everybody who may describe the job would see; put it into"
                " Secrets Manager"
            ),
        ),
        ({"subnets": ["subnet-1"]}, "launcher.subnets and launcher.security_groups belong together"),
        ({"image": "fullft:latest"}, "image"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_yaml(changes, line):
    with pytest.raises(ValidationError, match=line):
        launcher(**changes)


def test_what_is_asked_for_is_what_the_yaml_says(service, url):
    chosen = launcher(
        processes=4,
        gpus=True,
        cpu=16,
        memory_gb=60.5,
        instance_type="g5.12xlarge",
        subnets=["subnet-1"],
        security_groups=["sg-1"],
        tags={"team": "nlp"},
        environment={"A": "b"},
        secrets={"C": SECRET},
    )
    definition = task_definition(
        spec(url, "writes", processes=4, environment={"DAGSTER_PIPES_CONTEXT": "x" * 6000}),
        chosen.settings,
        "us-east-1",
    )
    service.has_room = False
    request = chosen._request(
        spec(url, "writes"),
        chosen.ask("ecs", "register_task_definition", **definition)["taskDefinition"]["taskDefinitionArn"],
    )
    chosen.ask("ecs", "run_task", **request)  # the double checks both as AWS does
    (container,) = definition["containerDefinitions"]
    assert (definition["networkMode"], definition["requiresCompatibilities"]) == ("awsvpc", ["EC2"])
    assert (container["cpu"], container["memory"], container["stopTimeout"]) == (16_384, 61_952, 25)
    assert container["linuxParameters"] == {"sharedMemorySize": 30_976, "capabilities": {"drop": ["ALL"]}}
    assert container["resourceRequirements"] == [{"type": "GPU", "value": "4"}] and container["secrets"] == [
        {"name": "C", "valueFrom": SECRET}
    ]
    assert {"name": "A", "value": "b"} in container["environment"]
    assert {
        "name": "AWS_DEFAULT_REGION",
        "value": "us-east-1",
    } in container["environment"]
    assert container["logConfiguration"]["options"]["awslogs-group"] == f"/ecs/{chosen.settings.cluster}"
    line = container["command"]
    options = json.loads(line[line.index(MODULE) + 1])
    assert (options["gpus"], options["grace"], options["seconds"]) == (4, 10.0, 86_400.0) and line[
        line.index("--nproc_per_node") + 1
    ] == "4"
    assert (
        request["capacityProviderStrategy"] == [{"capacityProvider": PROVIDER, "weight": 1}]
        and "launchType" not in request
    )
    assert request["placementConstraints"] == [
        {"type": "memberOf", "expression": "attribute:ecs.instance-type == g5.12xlarge"}
    ]
    assert request["networkConfiguration"]["awsvpcConfiguration"]["assignPublicIp"] == "DISABLED"
    assert request["tags"] == [{"key": "team", "value": "nlp"}, {"key": "fullft:run", "value": "r1"}]
    assert (request["startedBy"], request["clientToken"]) == (NAME, NAME)
    own = launcher(capacity_provider=None)
    assert own._request(spec(url, "writes"), "d")["launchType"] == "EC2"
    plain = task_definition(spec(url, "writes"), own.settings, "us-east-1")
    assert (plain["networkMode"], plain["requiresCompatibilities"]) == ("bridge", ["EC2"])
    assert not {"resourceRequirements", "cpu"} & plain["containerDefinitions"][0].keys()
    assert chosen.hourly_usd(PlanningSettings(), 4) == 5.672 and own.hourly_usd(PlanningSettings(), 4) is None


@pytest.mark.parametrize(
    ("code", "status", "said", "failure"),
    [
        ("ThrottlingException", 400, "Rate exceeded", None),
        ("InternalFailure", 500, "", None),
        ("InvalidSignatureException", 403, "Signature expired: 1 is now earlier than 2", None),
        ("InvalidSignatureException", 403, "Signature not yet current: 2 is still later than 1", None),
        ("InvalidSignatureException", 403, "The request signature does not match", "settings"),
        ("ResourceLimitExceeded", 400, "The account-level service limit", "infrastructure"),
        ("ExpiredTokenException", 400, "The security token is expired", "infrastructure"),
        ("AccessDeniedException", 400, "is not authorized", "settings"),
    ],
)
@pytest.mark.fault("clock skew of hours", "ecs", "sagemaker")
def test_an_answer_is_asked_for_again_or_is_one_line(code, status, said, failure):
    chosen = launcher(region="us-east-1")
    error = ClientError(
        {"Error": {"Code": code, "Message": said}, "ResponseMetadata": {"HTTPStatusCode": status}}, "StopTask"
    )
    chosen.__dict__["_clients"] = {"ecs": SimpleNamespace(stop_task=Mock(side_effect=error))}
    with pytest.raises(WorkloadError, match=rf"{said} \({code}\)" if said else code) as raised:
        chosen.ask("ecs", "stop_task")
    assert isinstance(raised.value, Unreachable) == (failure is None) and raised.value.failure == (
        failure or "infrastructure"
    )


class TestStatus:
    """What the API's answers mean, as documented."""

    def of(self, words: Status | None = None, *, seconds: float = 60, **task: Any) -> Status:
        container = {"name": "workload", **task.pop("container", {})}
        return status_of(
            {"lastStatus": "STOPPED", "containers": [container], **task},
            words,
            seconds,
            launcher(pending_minutes=30).settings,
        )

    @pytest.mark.parametrize(
        ("state", "seconds", "found"),
        [
            ("PROVISIONING", 1700, "pending"),
            ("PROVISIONING", 1900, "failed"),
            ("PENDING", 1900, "failed"),
            ("RUNNING", 1900, "running"),
            ("DEACTIVATING", 1900, "running"),
            ("DEPROVISIONING", 1900, "running"),
        ],
    )
    def test_the_pending_limit_counts_until_the_container_runs(self, state, seconds, found):
        assert self.of(lastStatus=state, seconds=seconds).state == found

    @pytest.mark.parametrize(
        ("code", "reason", "said", "failure"),
        [
            ("SpotInterruption", "Your Spot Task was interrupted.", "", "preemption"),
            ("InfrastructureHealth", "Task stopped: unhealthy instance", "", "preemption"),
            ("", "Host EC2 (instance i-0a1b) stopped.", "", "preemption"),
            ("ServiceSchedulerInitiated", "Task stopped during instance draining", "", "preemption"),
            ("TaskFailedToStart", "TaskFailedToStart: EMPTY CAPACITY PROVIDER", "", "infrastructure"),
            (
                "TaskFailedToStart",
                "Task failed to start",
                "CannotPullContainerError: pull access denied for fullft",
                "settings",
            ),
            (
                "TaskFailedToStart",
                "Task failed to start",
                "CannotPullContainerError: toomanyrequests: Rate exceeded",
                "infrastructure",
            ),
            (
                "TaskFailedToStart",
                "Task failed to start",
                "CannotPullContainerError: dial tcp: i/o timeout",
                "infrastructure",
            ),
            (
                "TaskFailedToStart",
                "ResourceInitializationError: AccessDeniedException: not authorized; access denied",
                "",
                "settings",
            ),
            (
                "TaskFailedToStart",
                (
                    "Fetching secret data from AWS Secrets Manager in region us-east-1:"
                    " ResourceNotFoundException: Secrets Manager can't find the specified secret."
                ),
                "",
                "settings",
            ),
            (
                "TaskFailedToStart",
                "Task failed to start",
                "CannotStartContainerError: failed to initialize logging driver: log group does not exist",
                "settings",
            ),
            (
                "EssentialContainerExited",
                "Essential container in task exited",
                "OutOfMemoryError: Container killed",
                "out_of_memory",
            ),
            ("EssentialContainerExited", "Essential container in task exited", "", "infrastructure"),
            ("UserInitiated", "Stopped by user", "", "unknown"),
        ],
    )
    @pytest.mark.fault("memory runs out", "ecs")
    def test_a_task_without_last_words_is_classified_by_why_it_stopped(self, code, reason, said, failure):
        found = self.of(stopCode=code, stoppedReason=reason, container={"reason": said})
        assert found.state == "failed" and found.failure == failure
        assert "\n" not in found.reason

    def test_one_empty_look_is_no_end(self, monkeypatch):
        chosen = launcher()
        task = {"taskArn": "arn:aws:ecs:us-east-1:1:task/fullft/0a1b", "lastStatus": "RUNNING"}
        looks = [[], [task], [], [], []]
        monkeypatch.setattr(aws, "LATE_SECONDS", 0.0)
        monkeypatch.setattr(chosen, "_tasks", lambda _: looks.pop(0))
        assert chosen.poll(NAME).state == "running"
        assert chosen.poll(NAME).state == "gone"
        assert looks == []

    def test_last_words_count_unless_ecs_knows_better(self):
        own, killed = (
            Status("failed", "a.csv:3: no label", "data", is_own_line=True),
            Status("failed", "was killed by SIGKILL", "infrastructure"),
        )
        exited = {
            "stopCode": "EssentialContainerExited",
            "stoppedReason": "Essential container in task exited",
        }
        assert (
            self.of(own, **exited, container={"exitCode": 3}) == own
            and self.of(killed, **exited, container={"exitCode": 137}) == killed
        )
        assert self.of(own, stopCode="SpotInterruption", stoppedReason="x", container={"exitCode": 3}) == own
        assert (
            self.of(
                killed, stopCode="SpotInterruption", stoppedReason="x", container={"exitCode": 137}
            ).failure
            == "preemption"
        )
        assert (
            self.of(own, stopCode="UserInitiated", stoppedReason="x", container={"exitCode": 3}).failure
            == "unknown"
        )
        assert self.of(None, **exited, container={"exitCode": 1}).reason == "ended with exit code 1"
        assert self.of(None, **exited, container={"exitCode": 0}).state == "succeeded"

    def test_of_two_tasks_of_one_name_the_running_one_counts(self, monkeypatch):
        chosen, now = launcher(), datetime.now(UTC)
        chosen._now = now
        tasks = [
            {"taskArn": "old", "lastStatus": "STOPPED", "createdAt": now - timedelta(hours=25)},
            {"taskArn": "runs", "lastStatus": "RUNNING", "createdAt": now - timedelta(hours=2)},
            {"taskArn": "new", "lastStatus": "STOPPED", "createdAt": now - timedelta(hours=1)},
        ]
        monkeypatch.setattr(chosen, "_tasks", lambda _: tasks)
        assert chosen._task(NAME) == tasks[1]
        del tasks[1]
        assert chosen._task(NAME) == tasks[1]
