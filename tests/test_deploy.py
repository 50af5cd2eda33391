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

import botocore.session
import jmespath
import pytest
import yaml
from botocore import xform_name
from botocore.validate import ParamValidator

from fullft_assets import artifacts
from fullft_assets.alerts.channels import CloudWatchSettings
from fullft_assets.security.record import FOLDER
from fullft_assets.settings.alerts import Event

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "docker/Dockerfile"
COMPOSE = DEPLOY / "docker/compose.yaml"
SERVICES = ("migrate", "code", "daemon", "webserver", "viewer")


STAGES = {
    value
    for name, value in vars(artifacts).items()
    if name.isupper() and isinstance(value, str) and not name.endswith(("_FILE", "_PAGE", "_COLUMN"))
}
#: What the workloads `planning`, `training`, `evaluation`, `monitoring` and `prediction` write.
OF_TRAINING = {"feasibility_plan", "cheaper_baselines", "pilot_run", "baseline_model", "finetuned_checkpoint"}
OF_TRAINING |= {"evaluation_report", "drift_scale", "drift_report", "batch_predictions"}


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
        assert text.count("pip install ") == text.count("--constraint uv.lock.txt") >= 2


class TestCompose:
    def test_only_the_ui_is_published_and_for_this_machine_alone(self) -> None:
        published = {
            name: service["ports"]
            for name, service in read(COMPOSE)["services"].items()
            if "ports" in service
        }
        assert published == {
            "webserver": ["127.0.0.1:3000:3000"],
            "viewer": ["127.0.0.1:3001:3000"],
            "login": ["127.0.0.1:4180:4180"],
        }
        assert "--read-only" in read(COMPOSE)["services"]["viewer"]["command"]

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
        commands = [s.get(key) for s in services.values() for key in ("command", "entrypoint", "healthcheck")]
        assert not re.search(r"\$\{?\w*(PASSWORD|SECRET|KEY)", str(commands)), "every user may read arguments"

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
        assert re.findall(r"\bDAGSTER_HOME=(\S+)", DOCKERFILE.read_text()) == [
            values["global"]["dagsterHome"]
        ]

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
        assert [(m["kind"], m["subjects"]) for m in bound] == 2 * [
            ("RoleBinding", [{"kind": "ServiceAccount", "name": "fullft-launcher"}])
        ]
        assert launcher["service_account_name"] == "fullft-run"
        accounts = [m["metadata"]["name"] for m in manifests if m["kind"] == "ServiceAccount"]
        accounts += [each["serviceAccount"]["name"] for each in (values, values["dagster-user-deployments"])]
        # EKS gives each of them a role.
        of_roles = [
            r["Properties"].get("ServiceAccount")
            for r in read(DEPLOY / "aws/eks.yaml", Tagged)["Resources"].values()
        ]
        assert sorted(accounts) == sorted(filter(None, of_roles))
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


class TestAws:
    @pytest.mark.parametrize("name", ["Artifacts", "Logs", "Documents"])
    def test_a_bucket_is_private_and_takes_tls_and_its_own_key_alone(self, name: str) -> None:
        storage = read(DEPLOY / "aws/storage.yaml", Tagged)["Resources"]
        bucket = storage[name]["Properties"]
        by_key = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": {"!GetAtt": "Key.Arn"}}
        (rule,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        assert rule == {"BucketKeyEnabled": True, "ServerSideEncryptionByDefault": by_key}
        assert [*bucket["PublicAccessBlockConfiguration"].values()] == [True] * 4
        unfinished = bucket["LifecycleConfiguration"]["Rules"][0]["AbortIncompleteMultipartUpload"]
        assert (unfinished, storage[name]["DeletionPolicy"]) == ({"DaysAfterInitiation": 7}, "Retain")
        policy = storage[f"{name}Policy"]["Properties"]
        statements = {s.pop("Sid"): s for s in policy["PolicyDocument"]["Statement"]}
        assert policy["Bucket"] == {"!Ref": name} and {s["Effect"] for s in statements.values()} == {"Deny"}
        assert statements["TlsOnly"] == {
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": [{"!GetAtt": f"{name}.Arn"}, {"!Sub": f"${{{name}.Arn}}/*"}],
            "Condition": {"Bool": {"aws:SecureTransport": False}},
        }
        of_record = {sid: s for sid, s in statements.items() if sid.startswith("Record")}
        assert statements.keys() - of_record.keys() == {"TlsOnly", "Tls12", "NoOtherKey", "NoOtherEncryption"}
        for_all = {
            "Effect": "Deny",
            "Principal": "*",
            "Resource": {"!Sub": f"${{Artifacts.Arn}}/store/{FOLDER}/*"},
        }
        # Added once under a name, and neither written again nor removed.
        added = {"Action": "s3:PutObject", "Condition": {"Null": {"s3:if-none-match": True}}}
        stays = {"Action": ["s3:DeleteObject", "s3:DeleteObjectVersion"]}
        expected = {"RecordIsAddedTo": for_all | added, "RecordStays": for_all | stays}
        assert of_record == (expected if name == "Artifacts" else {})

    def test_a_machine_counts_alerts_of_the_channel_and_only_reads_documents(self) -> None:
        statements = policies("platform")["MachinePolicy"]
        assert statements["CountAlerts"]["Condition"] == {
            "StringEquals": {"cloudwatch:namespace": CloudWatchSettings().namespace}
        }
        assert statements["ReadDocuments"]["Action"] == ["s3:GetObject"]

    def test_what_stops_the_platform_is_an_alarm_on_the_metric_of_the_channel(self) -> None:
        platform = read(DEPLOY / "aws/platform.yaml", Tagged)["Resources"]
        own = {
            dimension["Value"]: each["Properties"]
            for each in platform.values()
            for dimension in each["Properties"].get("Dimensions", ())
            if dimension["Name"] == "Event"
        }
        assert own.keys() == set(get_args(Event))
        of_all = {"Namespace": CloudWatchSettings().namespace, "MetricName": "Alerts", "Statistic": "Sum"}
        of_all |= {
            "Threshold": 1,
            "TreatMissingData": "notBreaching",
            "AlarmActions": [{"!Ref": "AlarmTopic"}],
        }
        for event, alarm in own.items():
            assert alarm == alarm | of_all | {"Dimensions": [{"Name": "Event", "Value": event}]}

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
        lists = {f"sagemaker:{key}" for key in ("InstanceTypes", "VpcSubnets", "VpcSecurityGroupIds")}
        # A list that is not given has to be refused as well.
        assert condition["Null"] == dict.fromkeys(lists, False)
        bools = {"sagemaker:InterContainerTrafficEncryption": True}
        assert condition["Bool"] == bools | {"sagemaker:NetworkIsolation": {"!Ref": "NetworkIsolation"}}
        # Where nothing else is said, a container that reaches a network is refused.
        assert (
            read(DEPLOY / "aws/sagemaker.yaml", Tagged)["Parameters"]["NetworkIsolation"]["Default"] == "true"
        )
        assert {kind: {*keys} for kind, keys in condition.items()} == {
            "ForAllValues:StringEquals": lists,
            "Null": lists,
            "Bool": {*bools, "sagemaker:NetworkIsolation"},
            "StringEqualsIfExists": {"sagemaker:OutputKmsKey", "sagemaker:OutputKmsKeyArn"},
            "NumericLessThanEquals": {"sagemaker:MaxRuntimeInSeconds"},
        }

    @pytest.mark.parametrize(
        ("service", "policy", "of_everything", "services"),
        [
            (
                "platform",
                "MachinePolicy",
                ["CountAlerts", "LogInToTheRegistry"],
                {"s3", "kms", "secretsmanager", "ecr", "cloudwatch"},
            ),
            ("platform", "SessionsPolicy", ["HoldSessions"], {"ssm", "ssmmessages"}),
            (
                "sagemaker",
                "JobsPolicy",
                ["LookAtTheNetworkAndLogInToTheRegistry"],
                {"ecr", "logs", "ec2"},
            ),
            ("jobs", "ArtifactsPolicy", [], {"s3", "kms"}),
            ("jobs", "DocumentsPolicy", [], {"s3"}),
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

    @pytest.mark.parametrize("use_case", ["c", "*"])
    def test_a_container_decides_nothing_and_changes_no_record(self, use_case: str) -> None:
        denied = policies("jobs")["ArtifactsPolicy"]["LeaveWhatDecides"]
        others = policies("jobs")["TrainingPolicy"]["WriteNothingElse"]
        for statement in (denied, others):
            assert statement["Effect"] == "Deny"
            assert set(statement["Action"]) == {"s3:PutObject", "s3:DeleteObject"}

        def in_stack(variable: re.Match[str]) -> str:
            return {"Arn": "a", "UseCase": use_case}[variable[1]]

        def writers(name: str) -> str:
            def is_of(resources: list[Any]) -> bool:
                patterns = [re.sub(r"\$\{(\w+)}", in_stack, resource["!Sub"][0]) for resource in resources]
                return any(fnmatch.fnmatchcase(f"a/store/{name}", pattern) for pattern in patterns)

            return (
                "machines"
                if is_of(denied["Resource"])
                else "training too"
                if is_of(others["NotResource"])
                else "data stages"
            )

        objects = {
            "machines": ["pointers/c/champion.json", "pointers/c/decisions/k.json"]
            + ["pointers/latest/c/finetuned_checkpoint/all.json", "pointers/record.json"]
            + ["pointers/launches/c/finetuned_checkpoint/k.json", "record/00000001.json"]
            + ["jobs/c/finetuned_checkpoint/k/1.json"],
            "data stages": ["pointers/c/read/raw_documents/a.json", "pointers/c/runs.json"]
            + [f"c/{stage}/k/1/manifest.json" for stage in STAGES - OF_TRAINING],
            "training too": ["pointers/leases/checkpoints/c/finetuned_checkpoint/k.json"]
            + ["pointers/store.json", "checkpoints/c/finetuned_checkpoint/k/checkpoint-4/model.safetensors"]
            + [f"c/{stage}/k/1/manifest.json" for stage in OF_TRAINING],
        }
        assert {who: [name for name in names if writers(name) != who] for who, names in objects.items()} == {
            who: [] for who in objects
        }
        # Where stacks are for one use case, a training of it writes no artifact of another one.
        of_another = writers("other/finetuned_checkpoint/k/1/manifest.json")
        assert of_another == ("training too" if use_case == "*" else "data stages")

    def test_an_endpoint_lets_through_what_the_roles_may_ask_for_and_no_more(self) -> None:
        let_through: dict[str, set[str]] = {}
        of_roles: dict[str, set[str]] = {}
        for service in ("network", "platform", "sagemaker", "ecs", "eks"):
            resources = read(DEPLOY / f"aws/{service}.yaml", Tagged)["Resources"]
            assert ":iam::aws:policy/" not in str(resources)
            for statements in policies(service).values():
                add_actions(of_roles, [s for s in statements.values() if s["Effect"] == "Allow"])
            for each in resources.values():
                # S3 has a gateway, which lets through buckets.
                if each["Properties"].get("VpcEndpointType") == "Interface":
                    (statement,) = each["Properties"]["PolicyDocument"]["Statement"]
                    add_actions(let_through, [statement])
                    assert statement["Condition"] == {
                        "StringEquals": {"aws:PrincipalAccount": {"!Ref": "AWS::AccountId"}}
                    }
        # Asked by the add-on of EKS, with the role of a node.
        assert let_through.pop("eks-auth") == {"eks-auth:AssumeRoleForPodIdentity"}
        assert "*" not in str([let_through, of_roles])
        # The others are asked by AWS itself.
        assert let_through == {name: of_roles[name] for name in of_roles.keys() - {"s3", "kms", "ec2", "iam"}}

    def test_only_the_data_stages_may_read_documents_and_all_others_train(self) -> None:
        attached: dict[str, set[str]] = {}
        for service in ("sagemaker", "ecs", "eks"):
            for name, each in read(DEPLOY / f"aws/{service}.yaml", Tagged)["Resources"].items():
                if "JobsStack" in str(policies_of := each["Properties"].get("ManagedPolicyArns")):
                    attached[f"{service}.{name}"] = set(re.findall(r"JobsStack}-(\w+)", str(policies_of)))
        of_training = {"sagemaker.ContainerRole", "ecs.TaskRole", "eks.TrainingRole"}
        of_data = {"sagemaker.IngestionRole", "ecs.IngestionRole", "eks.DataRole"}
        assert attached == dict.fromkeys(of_training, {"ArtifactsPolicy", "TrainingPolicy"}) | dict.fromkeys(
            of_data, {"ArtifactsPolicy", "DocumentsPolicy"}
        )
        assert all(
            "Documents" in str(s["Resource"]) and "Condition" in s
            for s in policies("jobs")["DocumentsPolicy"].values()
        )

    def test_a_task_runs_in_this_cluster_alone(self) -> None:
        statements = policies("ecs")["LauncherPolicy"]
        for sid in ("StartInThisCluster", "FollowAndStop", "ListTasks"):
            assert statements[sid]["Condition"] == {"ArnEquals": {"ecs:cluster": {"!GetAtt": "Cluster.Arn"}}}

    @pytest.mark.parametrize(
        ("service", "statement", "roles"),
        [
            ("sagemaker", "GiveTheContainersTheirRoles", ["ContainerRole", "IngestionRole"]),
            ("ecs", "GiveTheTasksTheirRoles", ["TaskRole", "IngestionRole", "ExecutionRole"]),
        ],
    )
    def test_a_launcher_gives_its_jobs_these_roles_alone(
        self, service: str, statement: str, roles: list[str]
    ) -> None:
        assert policies(service)["LauncherPolicy"][statement]["Resource"] == [
            {"!GetAtt": f"{role}.Arn"} for role in roles
        ]

    def test_the_database_is_encrypted_private_and_takes_only_tls(self) -> None:
        platform = read(DEPLOY / "aws/platform.yaml", Tagged)["Resources"]
        database = platform["Database"]["Properties"]
        assert database["StorageEncrypted"]
        assert database["ManageMasterUserPassword"]
        assert not database["PubliclyAccessible"]
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
            subprocess.run(
                ["sh", str(DEPLOY / "aws/start.sh"), image, "arn", str(tmp_path / "fullft.env")],
                env=environment,
                check=True,
            )
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


#: What somebody who deploys reads and types.
PAGES = [ROOT / "docs/deployment.md", *sorted((ROOT / "docs/deployment").glob("*.md"))]
PAGES += [DEPLOY / "aws/start.sh", DEPLOY / "aws/network.yaml"]
#: Commands of the AWS CLI's own, which are no operations of a service, and their options.
OF_CLI = {
    "deploy": {"stack-name", "template-file", "parameter-overrides", "capabilities"},
    "get-login-password": set(),
    "sync": set(),
}
COMMANDS = [
    command.partition(" |")[0]
    for page in PAGES
    for command in re.findall(
        r"(?<![\w./-])aws (?=[a-z0-9-]+ [a-z-])[^`#\n]*",
        re.sub(r"\\\n|\n +(?=--)", " ", page.read_text()),
    )
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: "_".join(command.split()[1:3]))
def test_a_command_of_aws_exists_and_takes_what_it_is_given(command: str) -> None:
    head, *parts = command.split(" --")
    _, service, operation, *_ = head.split()
    options = {name: value.strip(" '\"") for name, _, value in (part.partition(" ") for part in parts)}
    jmespath.compile(options.pop("query", "@"))
    assert options.pop("output", "text") == "text"
    if operation in OF_CLI:
        assert options.keys() <= OF_CLI[operation]
    else:
        model = botocore.session.get_session().get_service_model(service.removesuffix("api"))
        operations = {xform_name(name, "-"): name for name in model.operation_names}
        shape = model.operation_model(operations[operation]).input_shape
        members = {xform_name(name, "-"): member for name, member in shape.members.items()}
        # The CLI starts one machine unless another number is given.
        required = {xform_name(name, "-") for name in shape.required_members} - {"min-count", "max-count"}
        assert required <= options.keys() <= members.keys()
        for option, value in options.items():
            if value.startswith("file://"):
                content = json.loads((ROOT / value.removeprefix("file://")).read_text())
                assert not ParamValidator().validate(content, members[option]).has_errors()
            elif members[option].type_name == "structure":
                assert {part.partition("=")[0] for part in value.split(",")} <= members[option].members.keys()
    if operation == "deploy":
        template = read(ROOT / options["template-file"], Tagged)
        needed = {name for name, each in template["Parameters"].items() if "Default" not in each}
        assert needed == {word.partition("=")[0] for word in options.get("parameter-overrides", "").split()}
        types = {each["Type"] for each in template["Resources"].values()}
        assert any(each.startswith("AWS::IAM::") for each in types) == (
            options.get("capabilities") == "CAPABILITY_IAM"
        )


def test_what_other_commands_name_exists() -> None:
    text = "".join(page.read_text() for page in PAGES)
    files = {*re.findall(r"\bdeploy/[\w./-]*\w", text)}
    assert len(files) > 10 and not [f for f in files if not ((ROOT / f).exists() or f.endswith(".env"))]
    # The chart of Helm is of the release of Dagster that the image has.
    assert re.findall(r"--version ([\d.]+)", text) == re.findall(
        r"^dagster==(\S+)", (ROOT / "uv.lock.txt").read_text(), re.M
    )
    assert "--build-arg TORCH_INDEX_URL=" in text and "ARG TORCH_INDEX_URL=" in DOCKERFILE.read_text()


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
        name: {s["Sid"]: {**s, "Action": actions_of(s)} for s in statements}
        for name, statements in found.items()
    }


def actions_of(statement: dict[str, Any]) -> list[str]:
    return [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]


def add_actions(actions: dict[str, set[str]], statements: list[dict[str, Any]]) -> None:
    """Add the actions of these statements to the others, by the prefix of their service."""
    for action in (action for statement in statements for action in actions_of(statement)):
        actions.setdefault(action.split(":")[0], set()).add(action)
