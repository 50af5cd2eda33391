"""deploy/: what its files must agree on with each other and with the root's settings, and what must not be
open.

`make lint` checks each file's syntax by its own tool; these tests read what the files say.
"""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from fullft_assets.alerts.channels import CloudWatchSettings
from fullft_assets.security.record import FOLDER
from fullft_assets.settings.alerts import Event

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "docker/Dockerfile"
COMPOSE = DEPLOY / "docker/compose.yaml"
SERVICES = ("migrate", "code", "daemon", "webserver")


class Tagged(yaml.SafeLoader):
    """Reads CloudFormation's `!Ref x` as {"!Ref": x}."""


def tagged(loader: yaml.Loader, name: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        return {f"!{name}": node.value}
    if isinstance(node, yaml.SequenceNode):
        return {f"!{name}": loader.construct_sequence(node, deep=True)}
    assert isinstance(node, yaml.MappingNode)
    return {f"!{name}": loader.construct_mapping(node, deep=True)}


Tagged.add_multi_constructor("!", tagged)


def read(path: Path, loader: Any = yaml.SafeLoader) -> dict[str, Any]:
    return yaml.load(path.read_text(), loader)


def copied() -> list[str]:
    """Return the files and folders of the repository that the image is made of."""
    lines = re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE.read_text(), re.M)
    return [source for line in lines for source in line.split()[:-1]]


class TestImage:
    def test_what_it_copies_reaches_the_builder_and_nothing_else_does(self) -> None:
        ignored, *allowed = [
            line
            for line in (ROOT / ".dockerignore").read_text().split("\n")
            if line and not line.startswith("#")
        ]
        assert ignored == "*"
        names = [name.removeprefix("!") for name in allowed if name.startswith("!")]
        for source in copied():
            assert (ROOT / source).exists(), source
            assert any(source == name or source.startswith(f"{name}/") for name in names), source
        assert not [
            name
            for name in names
            if not any(source == name or source.startswith(f"{name}/") for source in copied())
        ]
        assert not fnmatch.filter(names, "*.env*")

    def test_it_installs_extras_that_exist_and_takes_no_secret(self) -> None:
        text = DOCKERFILE.read_text()
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        (named,) = re.findall(r'--editable "\.\[(.*)\]"', text)
        assert set(named.split(",")) <= extras.keys() and {"postgres", "kubernetes"} <= set(named.split(","))
        assert not re.findall(r"^(?:ARG|ENV).*(?:PASSWORD|SECRET|TOKEN)", text, re.M | re.I)


class TestCompose:
    def test_only_the_ui_is_published_and_for_this_machine_alone(self) -> None:
        published = {
            name: service["ports"]
            for name, service in read(COMPOSE)["services"].items()
            if "ports" in service
        }
        assert published == {"webserver": ["127.0.0.1:3000:3000"]}

    def test_every_service_has_the_variables_that_the_instance_reads_and_no_password_is_written_down(
        self,
    ) -> None:
        services = read(COMPOSE)["services"]
        needed = set(re.findall(r"env: (\w+)", (DEPLOY / "dagster/postgres-s3.yaml").read_text()))
        for name in SERVICES:
            assert needed <= services[name]["environment"].keys(), name
        secret = [
            value
            for s in services.values()
            for key, value in s.get("environment", {}).items()
            if re.search("PASSWORD|SECRET", key)
        ]
        assert secret and all(re.fullmatch(r"\$\{\w+:\?.+\}", value) for value in secret)

    def test_the_daemon_sees_the_processes_of_runs_and_everything_that_serves_is_watched(self) -> None:
        services = read(COMPOSE)["services"]
        (server,) = [entry["grpc_server"] for entry in read(DEPLOY / "docker/workspace.yaml")["load_from"]]
        assert services["daemon"]["network_mode"] == services["daemon"]["pid"] == "service:code"
        assert server["host"] == services["code"]["hostname"] == "code"
        assert str(server["port"]) in services["code"]["command"]
        assert [name for name, service in services.items() if "healthcheck" not in service] == ["migrate"]


class TestHelm:
    def test_its_instance_is_the_roots(self) -> None:
        values, local = read(DEPLOY / "helm/values.yaml"), read(ROOT / "dagster.yaml")
        shared = read(DEPLOY / "dagster/postgres-s3.yaml")
        monitoring = values["dagsterDaemon"]["runMonitoring"]
        assert (
            values["concurrency"]["pools"]["defaultLimit"] == local["concurrency"]["pools"]["default_limit"]
        )
        limits = values["concurrency"]["runs"]["tagConcurrencyLimits"]
        for other in (local, shared):
            assert other["concurrency"]["runs"]["tag_concurrency_limits"] == limits
        assert [limit["key"] for limit in limits] == ["delivery/in_order"]
        assert {
            re.sub("[A-Z]", lambda m: f"_{m[0].lower()}", key): value for key, value in monitoring.items()
        } == local["run_monitoring"]
        assert (
            values["postgresql"]["postgresqlScheme"] == shared["storage"]["postgres"]["postgres_db"]["scheme"]
        )
        assert values["telemetry"] == local["telemetry"] and values["additionalInstanceConfig"] == {
            "nux": local["nux"]
        }
        assert f"dagsterHome: {read_env('DAGSTER_HOME')}" in (DEPLOY / "helm/values.yaml").read_text()

    def test_the_ui_stays_in_the_cluster_and_runs_have_no_right_in_it(self) -> None:
        values = read(DEPLOY / "helm/values.yaml")
        manifests = list(yaml.safe_load_all((DEPLOY / "helm/manifests.yaml").read_text()))
        launcher = values["runLauncher"]["config"]["customRunLauncher"]["config"]
        pod = launcher["run_k8s_config"]["pod_spec_config"]
        assert (
            values["ingress"] == {"enabled": False}
            and values["dagsterWebserver"]["service"]["type"] == "ClusterIP"
        )
        assert not pod["automountServiceAccountToken"] and pod["securityContext"]["runAsNonRoot"]
        bound = [m for m in manifests if m["kind"].endswith("RoleBinding")]
        assert [(m["kind"], m["subjects"]) for m in bound] == [
            ("RoleBinding", [{"kind": "ServiceAccount", "name": "fullft-launcher"}])
        ]
        assert launcher["service_account_name"] == "fullft-run"
        (namespace,) = [m for m in manifests if m["kind"] == "Namespace"]
        assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}

    @pytest.mark.heavy
    def test_the_tags_of_a_run_choose_the_resources_of_its_pod_and_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By Dagster's own launcher, which makes the pod."""
        import dagster as dg
        from dagster_k8s.job import construct_dagster_k8s_job

        chosen = read(DEPLOY / "helm/values.yaml")["runLauncher"]["config"]["customRunLauncher"]
        cluster = {
            "clusters": [{"name": "a", "cluster": {"server": "http://localhost"}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        }
        (tmp_path / "kubeconfig").write_text(
            yaml.safe_dump({**cluster, "users": [{"name": "a", "user": {}}], "current-context": "a"})
        )
        chosen["config"] |= {"load_incluster_config": False, "kubeconfig_file": str(tmp_path / "kubeconfig")}
        (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({"run_launcher": chosen}))
        monkeypatch.setenv("DAGSTER_HOME", "/var/lib/fullft/dagster")
        monkeypatch.setenv("DAGSTER_K8S_PIPELINE_RUN_NAMESPACE", "fullft")

        with dg.DagsterInstance.from_config(str(tmp_path)) as instance:

            def pod_of(tag: dict[str, Any]) -> dict[str, Any]:
                run = dg.DagsterRun("letters_model", tags={"dagster-k8s/config": json.dumps(tag)})
                context = instance.run_launcher.get_container_context_for_run(run)
                config = context.get_k8s_job_config("ours", instance.run_launcher)
                job = construct_dagster_k8s_job(
                    config, ["dagster"], "a", user_defined_k8s_config=context.run_k8s_config
                )
                return job.to_dict()["spec"]["template"]["spec"]

            pod = pod_of({"container_config": {"resources": {"limits": {"nvidia.com/gpu": "0"}}}})
            (container,) = pod["containers"]
            assert container["resources"]["limits"] == {"memory": "24Gi", "nvidia.com/gpu": "0"}
            assert (
                container["image"],
                pod["service_account_name"],
                pod["automount_service_account_token"],
            ) == (
                "ours",
                "fullft-run",
                False,
            )
            assert (
                pod["security_context"]["run_as_non_root"]
                and not container["security_context"]["allow_privilege_escalation"]
            )
            assert {each["config_map_ref"]["name"] for each in container["env_from"]} == {
                "fullft-dagster-pipeline-env",
                "fullft",
            }
            for part, fields in (
                ("container_config", {"image": "evil.example/x"}),
                ("container_config", {"command": ["sh"]}),
                ("container_config", {"securityContext": {"privileged": True}}),
                ("container_config", {"env": [{"name": "FULLFT_STORE", "value": "s3://other"}]}),
                ("container_config", {"volumeMounts": [{"name": "host", "mountPath": "/host"}]}),
                ("pod_spec_config", {"serviceAccountName": "fullft-launcher"}),
                ("pod_spec_config", {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}),
                ("pod_template_spec_metadata", {"labels": {"a": "b"}}),
                ("job_spec_config", {"parallelism": 9}),
            ):
                with pytest.raises(Exception, match=f"violated the allowed list: {part}"):
                    pod_of({part: fields})

    def test_every_place_starts_the_webserver_with_the_guard(self) -> None:
        values, program = (
            read(DEPLOY / "helm/values.yaml")["dagsterWebserver"],
            "-m fullft_assets.cli.webserver",
        )
        manifests = {
            m["metadata"]["name"]: m for m in yaml.safe_load_all((DEPLOY / "helm/manifests.yaml").read_text())
        }
        (volume,), (mount,) = values["volumes"], values["volumeMounts"]
        mounted = manifests[volume["configMap"]["name"]]["data"][mount["subPath"]]
        assert f"exec python {program}" in mounted and volume["configMap"]["defaultMode"] == 0o555
        # Where the image has the program that the chart starts.
        assert (
            mount["mountPath"] == "/opt/venv/bin/dagster-webserver"
            and "ENV PATH=/opt/venv/bin:" in DOCKERFILE.read_text()
        )
        assert program in " ".join(read(COMPOSE)["services"]["webserver"]["command"])
        pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/deployment").glob("*.md")]
        documented = "".join(page.read_text() for page in (*pages, DEPLOY / "aws/start.sh"))
        assert documented.count(f"python {program}") == 3 and "\ndagster-webserver" not in documented


def read_env(name: str) -> str:
    (value,) = re.findall(rf"\b{name}=(\S+)", DOCKERFILE.read_text())
    return value


class TestAws:
    BUCKETS = ("Artifacts", "Logs", "Documents")

    @pytest.fixture(scope="class")
    def storage(self) -> dict[str, Any]:
        return read(DEPLOY / "aws/storage.yaml", Tagged)["Resources"]

    @pytest.mark.parametrize("name", BUCKETS)
    def test_a_bucket_is_private_encrypted_and_forgets_unfinished_uploads(
        self, storage: dict[str, Any], name: str
    ) -> None:
        bucket = storage[name]["Properties"]
        (rule,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        unfinished = bucket["LifecycleConfiguration"]["Rules"][0]["AbortIncompleteMultipartUpload"]
        assert (
            all(bucket["PublicAccessBlockConfiguration"].values())
            and len(bucket["PublicAccessBlockConfiguration"]) == 4
        )
        assert rule["ServerSideEncryptionByDefault"] == {
            "SSEAlgorithm": "aws:kms",
            "KMSMasterKeyID": {"!GetAtt": "Key.Arn"},
        }
        assert unfinished == {"DaysAfterInitiation": 7}
        assert storage[name]["DeletionPolicy"] == "Retain"

    @pytest.mark.parametrize("name", BUCKETS)
    def test_its_policy_denies_what_is_not_tls_or_another_key(
        self, storage: dict[str, Any], name: str
    ) -> None:
        policy = storage[f"{name}Policy"]["Properties"]
        statements = {s["Sid"]: s for s in policy["PolicyDocument"]["Statement"]}
        assert policy["Bucket"] == {"!Ref": name}
        assert {s["Effect"] for s in statements.values()} == {"Deny"}
        assert statements["TlsOnly"]["Condition"] == {"Bool": {"aws:SecureTransport": False}}
        assert statements["TlsOnly"]["Resource"] == [
            {"!GetAtt": f"{name}.Arn"},
            {"!Sub": f"${{{name}.Arn}}/*"},
        ]
        of_all = {"TlsOnly", "Tls12", "NoOtherKey", "NoOtherEncryption"}
        of_the_record = {"RecordIsAddedTo", "RecordStays"} if name == "Artifacts" else set()
        assert statements.keys() == of_all | of_the_record
        for sid in of_the_record:
            assert statements[sid]["Resource"] == {"!Sub": f"${{Artifacts.Arn}}/store/{FOLDER}/*"}

    def test_a_machine_counts_alerts_of_the_channel_and_only_reads_documents(self) -> None:
        statements = policies("platform")["MachinePolicy"]
        assert statements["CountAlerts"]["Condition"] == {
            "StringEquals": {"cloudwatch:namespace": CloudWatchSettings().namespace}
        }
        assert statements["ReadDocuments"]["Action"] == ["s3:GetObject"]

    def test_what_stops_the_platform_is_an_alarm_on_the_metric_of_the_channel(self) -> None:
        platform = read(DEPLOY / "aws/platform.yaml", Tagged)["Resources"]
        alarms = [
            each["Properties"] for each in platform.values() if each["Type"] == "AWS::CloudWatch::Alarm"
        ]
        own = {
            each["Dimensions"][0]["Value"]: each
            for each in alarms
            if each["Namespace"] == CloudWatchSettings().namespace
        }
        assert own.keys() == set(get_args(Event))
        for alarm in own.values():
            assert alarm["AlarmActions"] == [{"!Ref": "AlarmTopic"}]
            assert (alarm["MetricName"], [each["Name"] for each in alarm["Dimensions"]]) == (
                "Alerts",
                ["Event"],
            )
            assert (alarm["Statistic"], alarm["Threshold"], alarm["TreatMissingData"]) == (
                "Sum",
                1,
                "notBreaching",
            )

    @pytest.mark.parametrize(
        ("service", "with_them", "of_everything"),
        [
            # What is part of CreateTrainingJob and of RunTask.
            ("sagemaker", {"sagemaker:AddTags", "iam:PassRole"}, []),
            ("ecs", {"ecs:TagResource", "iam:PassRole"}, ["ListTasks"]),
        ],
    )
    def test_who_launches_may_ask_for_what_the_launcher_asks_for_and_no_more(
        self, service: str, with_them: set[str], of_everything: list[str]
    ) -> None:
        code = "".join((ROOT / f"fullft_assets/launch/{name}.py").read_text() for name in ("aws", service))
        requests = re.findall(r'\.ask\(\s*"(\w+)",\s*"(\w+)"', code)
        asked = {f"{api}:{name.title().replace('_', '')}" for api, name in requests}
        statements = policies(service)["LauncherPolicy"]
        allowed = {action for s in statements.values() for action in s["Action"]}
        assert asked | with_them == allowed and len(asked) >= 5
        assert [sid for sid, s in statements.items() if s["Resource"] == "*"] == of_everything

    def test_a_job_outside_the_network_or_with_another_key_or_without_limit_cannot_be_launched(
        self,
    ) -> None:
        condition = policies("sagemaker")["LauncherPolicy"]["LaunchInThisNetworkWithTheseKeys"]["Condition"]
        lists = condition["ForAllValues:StringEquals"]
        assert (
            lists.keys()
            == condition["Null"].keys()
            == {f"sagemaker:{key}" for key in ("InstanceTypes", "VpcSubnets", "VpcSecurityGroupIds")}
        )
        assert not any(condition["Null"].values()), "a list that is not given has to be refused as well"
        assert condition["Bool"] == {"sagemaker:InterContainerTrafficEncryption": True}
        assert condition["StringEquals"].keys() == {"sagemaker:OutputKmsKey"}
        assert condition["NumericLessThanEquals"].keys() == {"sagemaker:MaxRuntimeInSeconds"}

    @pytest.mark.parametrize(
        ("service", "policy", "of_everything", "services"),
        [
            (
                "platform",
                "MachinePolicy",
                ["CountAlerts", "LogInToTheRegistry"],
                {"s3", "kms", "secretsmanager", "ecr", "cloudwatch"},
            ),
            (
                "sagemaker",
                "JobsPolicy",
                ["LookAtTheNetworkAndLogInToTheRegistry"],
                {"s3", "kms", "ecr", "logs", "ec2"},
            ),
            ("ecs", "TasksPolicy", [], {"s3", "kms"}),
            ("ecs", "ExecutionPolicy", ["LogInToTheRegistry"], {"ecr", "logs"}),
            ("ecs", "InstancePolicy", ["FindTheService"], {"ecs"}),
        ],
    )
    def test_a_machine_and_a_container_may_do_no_more_than_they_need_and_launch_nothing(
        self, service: str, policy: str, of_everything: list[str], services: set[str]
    ) -> None:
        statements = policies(service)[policy]
        assert [sid for sid, s in statements.items() if s["Resource"] == "*"] == of_everything
        actions = [action for s in statements.values() for action in s["Action"]]
        assert not [action for action in actions if "*" in action or action == "ecs:RunTask"]
        assert {action.split(":")[0] for action in actions} == services
        of_data = [s for s in statements.values() if any(a.startswith(("s3:", "kms:")) for a in s["Action"])]
        assert all("Condition" in s for s in of_data)

    @pytest.mark.parametrize(("service", "policy"), [("sagemaker", "JobsPolicy"), ("ecs", "TasksPolicy")])
    def test_a_container_decides_nothing_and_changes_no_record(self, service: str, policy: str) -> None:
        statement = policies(service)[policy]["LeaveWhatDecides"]
        patterns = [resource["!Sub"][0].replace("${Arn}", "a") for resource in statement["Resource"]]
        names = ["pointers/c/champion.json", "pointers/c/decisions/k.json", "pointers/latest/c/x/all.json"]
        names += ["pointers/record.json", "record/00000001.json"]
        for name in names:
            assert any(fnmatch.fnmatchcase(f"a/store/{name}", pattern) for pattern in patterns), name
        for name in (
            "pointers/leases/x.json",
            "pointers/store.json",
            "c/training_snapshot/k/1/manifest.json",
        ):
            assert not any(fnmatch.fnmatchcase(f"a/store/{name}", pattern) for pattern in patterns), name
        assert statement["Effect"] == "Deny" and set(statement["Action"]) == {
            "s3:PutObject",
            "s3:DeleteObject",
        }

    @pytest.mark.parametrize("service", ["sagemaker", "ecs"])
    def test_only_a_container_of_the_data_stages_may_read_documents_and_no_other(self, service: str) -> None:
        found = policies(service)
        statements = found.pop("DocumentsPolicy")
        attached = read(DEPLOY / f"aws/{service}.yaml", Tagged)["Resources"]["DocumentsPolicy"]["Properties"][
            "RoleName"
        ]
        assert attached == {"!Ref": "IngestionRole"} and "Documents" not in str(found)
        assert {action for s in statements.values() for action in s["Action"]} == {
            "s3:GetObject",
            "s3:ListBucket",
        }
        assert all("Documents" in str(s["Resource"]) and "Condition" in s for s in statements.values())

    def test_a_task_runs_in_this_cluster_alone(self) -> None:
        statements = policies("ecs")["LauncherPolicy"]
        for sid in ("StartInThisCluster", "FollowAndStop", "ListTasks"):
            assert statements[sid]["Condition"] == {"ArnEquals": {"ecs:cluster": {"!GetAtt": "Cluster.Arn"}}}
        assert statements["GiveTheTasksTheirRoles"]["Resource"] == [
            {"!GetAtt": "TaskRole.Arn"},
            {"!GetAtt": "IngestionRole.Arn"},
            {"!GetAtt": "ExecutionRole.Arn"},
        ]

    def test_the_roles_of_sagemaker_are_given_to_it_alone(self) -> None:
        assert policies("sagemaker")["LauncherPolicy"]["GiveTheContainersTheirRoles"]["Resource"] == [
            {"!GetAtt": "ContainerRole.Arn"},
            {"!GetAtt": "IngestionRole.Arn"},
        ]

    def test_the_database_is_encrypted_private_and_takes_only_tls(self) -> None:
        platform = read(DEPLOY / "aws/platform.yaml", Tagged)["Resources"]
        database = platform["Database"]["Properties"]
        assert (
            database["StorageEncrypted"]
            and database["ManageMasterUserPassword"]
            and not database["PubliclyAccessible"]
        )
        assert platform["DatabaseParameters"]["Properties"]["Parameters"] == {"rds.force_ssl": "1"}

    def test_a_rotated_password_reaches_the_services_and_nothing_else_starts_them_again(
        self, tmp_path: Path
    ) -> None:
        log, password = tmp_path / "log", tmp_path / "password"
        programs = {
            "aws": f"""case $1 in secretsmanager) printf '{{"password": "%s"}}' "$(cat {password})";; esac""",
            "docker": f"""echo "$@" >> {log}; [ $1 != ps ] || printf '1\\n2\\n3\\n'""",
        }
        for name, body in programs.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / name).chmod(0o700)
        (tmp_path / "fullft.env").write_text("FULLFT_STORE=s3://bucket/store\n")
        image = "1.dkr.ecr.eu-central-1.amazonaws.com/fullft@sha256:00"
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "FULLFT_RUN": str(tmp_path / "run")}

        def started() -> list[str]:
            log.write_text("")
            command = ["sh", str(DEPLOY / "aws/start.sh"), image, "arn", str(tmp_path / "fullft.env")]
            subprocess.run(command, env=environment, check=True)
            lines = log.read_text().splitlines()
            assert not any("pa%ss" in line for line in lines)
            return [line.split("--name ")[1].split()[0] for line in lines if "--name" in line]

        services = ["fullft-code", "fullft-daemon", "fullft-webserver"]
        password.write_text("pa%ss$1")
        assert started() == services and started() == []
        variables = tmp_path / "run/services.env"
        assert "DAGSTER_POSTGRES_PASSWORD=pa%ss$1\n" in variables.read_text()
        assert variables.stat().st_mode & 0o777 == 0o600
        password.write_text("pa%ss$2")
        assert started() == services and started() == []


#: The statements of a template's policies, by the policy's name and their own.
Policies = dict[str, dict[str, dict[str, Any]]]


def policies(service: str) -> Policies:
    resources = read(DEPLOY / f"aws/{service}.yaml", Tagged)["Resources"]
    found = {
        name: each["Properties"]["PolicyDocument"]["Statement"]
        for name, each in resources.items()
        if each["Type"] in ("AWS::IAM::RolePolicy", "AWS::IAM::ManagedPolicy")
    }
    return {
        name: {s["Sid"]: {**s, "Action": as_list(s["Action"])} for s in statements}
        for name, statements in found.items()
    }


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
