"""The launcher `kubernetes` against a double that runs the pods: followed, attached to, cancelled, preempted,
refused.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import kubernetes_validate
import pytest
import torch
import yaml
from probe_workloads.definitions import probe_job
from pydantic import ValidationError
from safetensors.torch import load_file

from fullft_assets.errors import SettingsError, WorkloadError
from fullft_assets.launch import Launcher, LaunchSpec, Status, Unreachable, kubernetes, records
from fullft_assets.launch.container import MODULE, Options
from fullft_assets.launch.local import LocalLauncher
from fullft_assets.launch.supervisor import is_alive
from fullft_assets.resources import driver
from fullft_assets.settings import KubernetesLauncherSettings, LauncherSettings
from fullft_assets.store import Manifest
from tests.kubernetes_double import IMAGE, NAMESPACE, Cluster, role
from tests.launch_scenes import NAME, SECONDS, TESTS, process, run_stage, spec, train, wait_for
from tests.machine import ARITHMETIC
from tests.prepared import Prepared, prepare


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(kubernetes, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(kubernetes, "_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(driver, "_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(driver, "RETRY_SECONDS", 0.1)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(map(str, [TESTS.parent, TESTS])),
        "PYTHONUNBUFFERED": "1",
        **ARITHMETIC,
        "HF_HUB_OFFLINE": "1",
        "FULLFT_CACHE": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }
    (tmp_path / "cluster").mkdir()
    with Cluster(tmp_path / "cluster", environment, role()).serving() as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        yield cluster


def launcher(**changes: object) -> kubernetes.KubernetesLauncher:
    settings = {
        "namespace": NAMESPACE,
        "image": IMAGE,
        "python": sys.executable,
        "gpus": False,
        "grace_seconds": 20,
    }
    return kubernetes.KubernetesLauncher(KubernetesLauncherSettings.model_validate(settings | changes))


@pytest.mark.slow
def test_a_workload_runs_there_and_its_progress_output_and_failures_arrive(
    cluster, tmp_path, capfd, monkeypatch
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    chosen = launcher(max_hours=1)
    failure, messages = run_stage(chosen, "writes", tmp_path)
    assert failure is None and [each for each in messages if each == "reading the rows"] == [
        "reading the rows"
    ]
    assert "step 1/1,000 (0%), loss 0.25" in messages and "] reading the rows\n" in capfd.readouterr().out
    failure, _ = run_stage(chosen, "refuses", tmp_path)
    assert failure == "documents/a.csv:3: no field `label`; name it in examples.label [data]"
    failure, _ = run_stage(chosen, "is_killed", tmp_path)
    assert re.search(r"killed by SIGKILL.* \[infrastructure\]$", str(failure))
    store = probe_job(tmp_path, "writes")[1]
    assert {launch.stage: (launch.state, launch.place) for launch in records.launches(store, "probe")} == {
        "writes": ("succeeded", "fullft@1a2b3c4d"),
        "refuses": ("failed", "fullft@1a2b3c4d"),
        "is_killed": ("failed", "fullft@1a2b3c4d"),
    }
    assert cluster.jobs == {}, "nothing is kept there"
    assert "planted-secret" not in json.dumps(cluster.created)
    # What the Role does not allow is refused; and nothing in it is idle.
    granted = {
        (group, name, verb)
        for rule in role()
        for group in rule["apiGroups"]
        for name in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == cluster.used


@pytest.mark.fault("the backend throttles, fails or does not answer", "kubernetes")
@pytest.mark.fault("the answer to a submission is lost", "kubernetes")
def test_lost_and_refused_answers_neither_fail_a_run_nor_start_a_second_job(cluster, tmp_path):
    cluster.fail("POST", "/jobs", "lost")
    cluster.fail("GET", "/pods", 503, times=3)
    cluster.fail("GET", "/jobs/", 429, times=2)
    cluster.fail("GET", "/log", "reset", times=8)
    cluster.fail("DELETE", "/jobs/", 500)
    failure, messages = run_stage(launcher(), "writes", tmp_path)
    assert failure is None and [each for each in messages if each == "reading the rows"] == [
        "reading the rows"
    ]
    assert [fault.times for fault in cluster.faults] == [0] * 5
    assert len(cluster.created) == 1 and cluster.jobs == {}
    assert any("asking once more" in message for message in messages)


@pytest.mark.parametrize(
    ("what", "reason", "failure"),
    [
        ("run_out_of_memory", "was killed: it took more than launcher.memory_gb; raise it", "out_of_memory"),
        ("lose_node", "lost its node node-0, which does not answer", "preemption"),
    ],
)
@pytest.mark.fault("the machine or node is lost", "kubernetes")
@pytest.mark.fault("memory runs out", "kubernetes")
def test_what_happened_to_a_pod_is_its_failure(cluster, tmp_path, what, reason, failure):
    chosen = launcher()
    chosen.submit(spec(tmp_path, "waits"))
    process(tmp_path, "workload0")
    assert chosen.poll(NAME).state == "running"
    getattr(cluster, what)(NAME)
    status = chosen.poll(NAME, SECONDS)
    assert (status.state, status.reason, status.failure) == ("failed", reason, failure)
    chosen.logs(NAME, "")
    chosen.stop(NAME)
    assert chosen.poll(NAME).state == "gone"


def test_a_job_is_stopped_when_its_time_is_up(cluster, tmp_path):
    chosen = launcher(max_hours=2 / 3600)
    chosen.submit(spec(tmp_path, "works"))
    status = chosen.poll(NAME, SECONDS)
    assert status.reason.startswith("reached launcher.max_hours") and status.failure == "settings"
    assert cluster.created[0]["spec"]["activeDeadlineSeconds"] == 2 + 3600 + 35


@pytest.mark.fault("output is lost, late or cut", "kubernetes")
def test_output_is_read_on_from_the_cursor_each_line_once(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(kubernetes, "_MAX_CHARACTERS", 200)
    chosen, cursor, lines = launcher(), "", []
    chosen.submit(spec(tmp_path, "prints"))

    def has_read_all() -> bool:
        nonlocal cursor
        is_over = chosen.poll(NAME).is_over
        logs = chosen.logs(NAME, cursor)
        lines.extend(logs.stdout.splitlines())
        cursor = logs.cursor
        return is_over and not logs.is_more

    wait_for(has_read_all, "all output is read")
    (pod,) = cluster.pods(NAME)
    stamps = [stamp for stamp, _ in pod.lines]
    assert lines == [line.decode().rstrip("\n") for _, line in pod.lines] and len(lines) >= 400
    assert len(set(stamps)) < len(stamps) / 2, "lines with the same stamp"


@pytest.mark.fault("clock skew of hours", "kubernetes")
@pytest.mark.parametrize("hours", [-2, 2])
def test_the_clock_of_the_api_server_takes_no_line_and_ends_no_job(cluster, tmp_path, monkeypatch, hours):
    monkeypatch.setattr(kubernetes, "_MAX_CHARACTERS", 2_000)
    cluster.clock_seconds = hours * 3600
    chosen, cursor, lines = launcher(pending_minutes=1), "", []
    chosen.submit(spec(tmp_path, "prints"))
    wait_for(lambda: chosen.poll(NAME).is_over, "it ended")
    time.sleep(2)  # what a node is asked for by a wrong clock is no longer there
    while (logs := chosen.logs(NAME, cursor)).stdout or logs.is_more:
        lines += logs.stdout.splitlines()
        cursor = logs.cursor
    (pod,) = cluster.pods(NAME)
    assert chosen.poll(NAME).state == "succeeded"
    assert lines == [line.decode().rstrip("\n") for _, line in pod.lines] and len(lines) >= 400


class TestQueue:
    def test_a_job_that_a_queue_holds_back_is_pending_without_a_limit(self, cluster, tmp_path):
        cluster.is_queueing = True
        chosen = launcher(
            pending_minutes=2 / 60,
            pod={
                "metadata": {
                    "labels": {"kueue.x-k8s.io/queue-name": "gpus"},
                    "annotations": {"example.com/team": "nlp"},
                }
            },
        )
        chosen.submit(spec(tmp_path, "waits"))
        assert chosen.poll(NAME, 4).state == "pending"
        (job,) = cluster.created
        for metadata in (job["metadata"], job["spec"]["template"]["metadata"]):
            assert (
                metadata["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
                and metadata["annotations"]["example.com/team"] == "nlp"
            )
        cluster.admit()
        first = process(tmp_path, "workload0")
        assert chosen.poll(NAME).state == "running"
        cluster.admit(is_admitted=False)
        wait_for(lambda: not is_alive(first), "the queue takes the node back")
        assert chosen.poll(NAME).state == "pending"
        cluster.admit()
        (tmp_path / "go").touch()
        assert (
            chosen.poll(NAME, SECONDS).state == "succeeded"
            and (tmp_path / "starts").read_text() == "started\n" * 2
        )

    def test_pods_without_a_node_are_a_lost_machine_after_the_limit(self, cluster, tmp_path):
        cluster.has_room = False
        failure, _ = run_stage(launcher(pending_minutes=2 / 60, max_retries=0), "writes", tmp_path)
        assert re.search(
            r"launcher\.pending_minutes \(0\.0333333\): 0/3 .* nvidia\.com/gpu.* \[infrastructure\]$", failure
        )
        assert cluster.jobs == {}, "it does not start later, unseen"


class TestRefused:
    def of(self, cluster: Cluster, folder: Path, **changes: object) -> str:
        """Return the line with which a job is refused, which leaves nothing."""
        failure, _ = run_stage(launcher(**changes), "writes", folder)
        assert failure is not None and "\n" not in failure and failure.endswith("[settings]")
        assert cluster.jobs == {}
        return failure

    @pytest.mark.fault("the image, version or Python is another one", "kubernetes")
    def test_an_image_that_is_not_there_is_one_line_at_once(self, cluster, tmp_path):
        line = self.of(cluster, tmp_path, image=IMAGE.replace("fullft@", "other@"))
        assert re.search(" ErrImagePull: .*; set launcher.image", line)

    def test_a_secret_that_is_not_there_is_one_line_and_its_value_reaches_the_pod_alone(
        self, cluster, tmp_path
    ):
        line = self.of(cluster, tmp_path, secrets=["store"])
        assert re.search(' CreateContainerConfigError: .* "store" .*; set launcher.secrets', line)
        cluster.secrets["store"] = {"PROBE_VARIABLE": "planted-secret"}
        chosen = launcher(secrets=["store"], folder=str(tmp_path))
        chosen.submit(spec(tmp_path, "looks"))
        assert chosen.poll(NAME, SECONDS).state == "succeeded"
        found = probe_job(tmp_path, "looks")[1].find("probe", "looks", "k1")
        assert found.metadata == {
            "root": str(tmp_path),
            "variable": "planted-secret",
        }
        assert "planted-secret" not in json.dumps(cluster.created)

    @pytest.mark.fault("the image, version or Python is another one", "kubernetes")
    def test_another_version_and_a_python_that_is_not_there_are_one_line(
        self, cluster, tmp_path, monkeypatch
    ):
        line = self.of(cluster, tmp_path, python="/nowhere/python")
        assert " cannot start: exec: /nowhere/python: " in line
        monkeypatch.setattr("importlib.metadata.version", lambda _: "9.9.9")
        line = self.of(cluster, tmp_path)
        assert re.search(r" fullft_assets \S+, and 9\.9\.9 .*; set launcher\.image ", line)

    def test_what_the_cluster_refuses_is_one_line(self, cluster, tmp_path):
        line = self.of(cluster, tmp_path, pod={"spec": {"tolerations": [{"kei": "nvidia.com/gpu"}]}})
        assert re.match("Kubernetes/fullft: .* spec.template.spec.tolerations.0: ", line)
        cluster.rules = [rule for rule in cluster.rules if "jobs" not in rule["resources"]]
        line = self.of(cluster, tmp_path)
        assert re.match("Kubernetes/fullft: jobs is forbidden.* deploy/helm/manifests.yaml", line)

    @pytest.mark.fault("two runs launch the same", "kubernetes")
    def test_a_job_of_this_name_that_runs_is_left_as_it_is(self, cluster, tmp_path):
        launcher().submit(spec(tmp_path, "waits"))
        for is_seen in (True, False):  # by the look before the creation; else the creation's answer is 409
            cluster.fail("GET", f"/jobs/{NAME}", 404, times=not is_seen)
            launcher().submit(spec(tmp_path, "waits"))
        assert len(cluster.created) == 1
        cluster.fail("GET", f"/jobs/{NAME}", 404, times=2)
        with pytest.raises(Unreachable, match="is being deleted"):
            launcher().submit(spec(tmp_path, "waits"))
        process(tmp_path, "workload0")
        assert launcher().poll(NAME).state == "running"

    def test_a_cluster_that_is_not_there_is_one_line(self, cluster, tmp_path, monkeypatch):
        line = self.of(cluster, tmp_path, context="other")
        assert re.match("no Kubernetes cluster: .* KUBECONFIG and launcher.context", line)
        monkeypatch.setitem(sys.modules, "kubernetes", None)
        with pytest.raises(SettingsError, match="^launcher.kind: kubernetes needs kubernetes; "):
            launcher().poll(NAME)
        monkeypatch.undo()
        cluster.kubeconfig.write_text(
            re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:1", cluster.kubeconfig.read_text())
        )
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        monkeypatch.setattr(kubernetes, "_BACKOFF_SECONDS", 0.01)
        with pytest.raises(Unreachable, match="Kubernetes/fullft: MaxRetryError: "):
            launcher().poll(NAME)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"image": "registry.example.com/fullft:1.0"}, "image\n  String should match pattern"),
        ({"pod": {"spec": {"containers": []}}}, "spec.containers is not for a YAML to set"),
        ({"pod": {"spec": {"volumes": []}}}, "spec.volumes is not for a YAML to set"),
        (
            {"pod": {"spec": {"securityContext": {"runAsNonRoot": False}}}},
            "spec.securityContext.runAsNonRoot is not for a YAML to set",
        ),
        ({"pod": {"spec": []}}, "spec is not a section with keys"),
        ({"run_as": 1234}, "`run_as` was removed; set pod: {spec: {securityContext: {runAsUser"),
        ({"environment": {"AWS_SECRET_ACCESS_KEY": "x"}}, "AWS_SECRET_ACCESS_KEY is a secret"),
        ({"environment": {"STORE": "http://user:word@host"}}, "STORE is a secret"),
        ({"nodes": 2, "processes": 3}, "launcher.processes (3) must be a multiple of it"),
        ({"namespace": "Not_One"}, "namespace"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_yaml(changes, line):
    with pytest.raises(ValidationError, match=re.escape(line)):
        launcher(**changes)


class TestStatus:
    """What the API's answers mean, as documented and as seen in clusters."""

    NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)

    def pod(
        self,
        index: int = 0,
        phase: str = "Failed",
        *,
        end: dict | None = None,
        waiting: dict | None = None,
        **status: object,
    ) -> dict:
        state = (
            {"terminated": {"finishedAt": "2026-11-27T11:00:00Z", **end}}
            if end
            else {"waiting": waiting}
            if waiting
            else {}
        )
        annotations = {"batch.kubernetes.io/job-completion-index": str(index)}
        found = {"phase": phase, "containerStatuses": [{"name": "workload", "state": state}], **status}
        return {
            "metadata": {"name": f"pod-{index}", "annotations": annotations},
            "spec": {"nodeName": "n1"},
            "status": found,
        }

    def of(
        self,
        pods: list[dict],
        reason: str | None = "BackoffLimitExceeded",
        *,
        started: str | None = None,
        completions: int = 1,
        is_deleted: bool = False,
    ):
        conditions = (
            []
            if reason is None
            else [{"type": "Failed", "status": "True", "reason": reason, "message": "as the cluster says"}]
        )
        metadata = {"deletionTimestamp": "2026-11-27T12:00:00Z"} if is_deleted else {}
        status = {"conditions": conditions} | ({} if started is None else {"startTime": started})
        return kubernetes.status_of(
            {"metadata": metadata, "spec": {"completions": completions}, "status": status},
            pods,
            self.NOW,
            launcher(pending_minutes=30).settings,
        )

    def said(self, line: str, failure: str) -> str:
        return json.dumps(asdict(Status("failed", line, failure, is_own_line=True)))

    @pytest.mark.parametrize("reason", ["Evicted", "Preempted", "NodeShutdown", "Terminated"])
    def test_what_the_cluster_took_away_is_preempted(self, reason):
        found = self.of([self.pod(reason=reason, message="Low on memory.", end={"exitCode": 137})])
        assert (found.failure, found.reason) == (
            "preemption",
            f"was preempted: {reason}: Low on memory.",
        )

    @pytest.mark.parametrize(
        ("reason", "said", "at_once", "failure"),
        [
            ("ErrImagePull", "failed with status code 429 Too Many Requests", False, "infrastructure"),
            ("ErrImagePull", "unexpected status: 401 Unauthorized", False, "settings"),
            ("ImagePullBackOff", 'Back-off pulling image "r"', False, "infrastructure"),
            ("ImagePullBackOff", 'Back-off pulling image "r": ErrImagePull: r: not found', True, "settings"),
            ("CreateContainerConfigError", "timed out waiting for the condition", False, "infrastructure"),
            ("CreateContainerConfigError", 'secret "s" not found', True, "settings"),
            ("CreateContainerError", "no running task found: task: not found", False, "infrastructure"),
            ("InvalidImageName", "couldn't parse image reference", True, "settings"),
        ],
    )
    def test_what_may_pass_is_said_and_has_the_time_that_a_pod_may_wait(self, reason, said, at_once, failure):
        waits = self.pod(0, "Pending", waiting={"reason": reason, "message": said})
        early = self.of([waits], None, started="2026-11-27T11:40:00Z")
        late = self.of([waits], None, started="2026-11-27T11:20:00Z")
        assert (
            said in early.reason
            and said in late.reason
            and early.state == ("failed" if at_once else "pending")
        )
        assert (late.state, late.failure) == ("failed", failure)

    def test_why_there_is_no_node_is_said_while_a_pod_waits(self):
        message = 'persistentvolumeclaim "models" not found'
        condition = {"type": "PodScheduled", "status": "False", "message": message}
        found = self.of(
            [self.pod(0, "Pending", conditions=[condition])], None, started="2026-11-27T11:59:00Z"
        )
        assert (found.state, found.reason) == ("pending", message)

    def test_of_several_pods_the_first_failure_is_the_cause(self):
        cause = {"exitCode": 3, "message": self.said("a.csv:3: no label", "data")}
        stopped = {"exitCode": 3, "message": self.said("stopped at step 7", "preemption")}
        later = {
            "exitCode": 1,
            "message": self.said("lost rank 1", "unknown"),
            "finishedAt": "2026-11-27T11:00:01Z",
        }
        for ends in ([stopped, cause], [later, cause], [cause, later]):
            assert (
                self.of([self.pod(index, end=end) for index, end in enumerate(ends)]).reason
                == "a.csv:3: no label"
            )

    def test_a_pod_whose_memory_ran_out_is_the_cause_also_if_it_ends_last(self):
        lost = {"exitCode": 1, "message": self.said("lost a rank", "infrastructure")}
        killed = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-11-27T11:00:01Z"}
        for ends in ([lost, killed], [killed, lost]):
            assert (
                self.of([self.pod(index, end=end) for index, end in enumerate(ends)], completions=2).failure
                == "out_of_memory"
            )

    @pytest.mark.parametrize(
        ("end", "reason", "failure"),
        [
            ({"exitCode": 137}, "was killed by SIGKILL (out of memory?)", "infrastructure"),
            (
                {"exitCode": 137, "reason": "OOMKilled"},
                "was killed: it took more than launcher.memory_gb; raise it",
                "out_of_memory",
            ),
            ({"exitCode": 1, "message": "not ours"}, "ended with exit code 1", "unknown"),
        ],
    )
    def test_a_container_without_last_words_is_known_by_its_exit_code(self, end, reason, failure):
        found = self.of([self.pod(end=end)])
        assert (found.reason, found.failure) == (reason, failure)

    def test_pods_that_are_gone_are_a_lost_machine_and_a_deadline_is_the_limit(self):
        assert (
            self.of([]).failure == "infrastructure"
            and "lost its pods (BackoffLimitExceeded" in self.of([]).reason
        )
        assert self.of([], "DeadlineExceeded").reason.startswith("reached launcher.max_hours")

    def test_what_a_job_says_as_somebody_deletes_it_is_not_its_end(self):
        stopped = self.pod(end={"exitCode": 3, "message": self.said("stopped at step 7", "preemption")})
        assert (self.of([stopped]).failure, self.of([stopped], is_deleted=True).state) == (
            "preemption",
            "running",
        )

    def test_the_pending_limit_counts_where_a_pod_is_missing_or_waits(self):
        running, waiting = (
            self.pod(0, "Running"),
            self.pod(1, "Pending", waiting={"reason": "ContainerCreating"}),
        )
        early, late = "2026-11-27T11:45:00Z", "2026-11-27T11:15:00Z"
        assert self.of([running, waiting], None, started=early, completions=2).state == "running"
        for pods in ([running, waiting], [running], []):
            found = self.of(pods, None, started=late, completions=2)
            assert (found.state, found.failure) == ("failed", "infrastructure")
        assert (
            self.of([running, self.pod(1, "Running")], None, started=late, completions=2).state == "running"
        )
        assert self.of([waiting], None, started=early).state == "pending"

    def test_the_line_of_an_evicted_training_is_shown(self):
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "EvictionByEvictionAPI",
            "message": "m",
        }
        line = "stopped at step 7 of 9"
        found = self.of(
            [self.pod(conditions=[condition], end={"exitCode": 3, "message": self.said(line, "preemption")})],
            "PodFailurePolicy",
        )
        assert (found.reason, found.failure, found.is_own_line) == (line, "preemption", True)


def test_a_training_on_two_nodes_asks_for_what_the_yaml_says():
    chosen = launcher(
        processes=8,
        nodes=2,
        gpus=True,
        cpu=16,
        memory_gb=200,
        max_hours=2,
        claims={"fullft-models": "/models"},
        secrets=["store"],
        pod={
            "spec": {
                "imagePullSecrets": [{"name": "registry"}],
                "nodeSelector": {"gpu": "h100"},
                "serviceAccountName": "fullft-run",
                "securityContext": {"runAsUser": 1234},
                "tolerations": [
                    {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
                    {"key": "spot", "tolerationSeconds": 60},
                ],
            }
        },
    )
    body = kubernetes.manifest(
        LaunchSpec(NAME, "m", ("--job", "s3://b/j"), 8, {"DAGSTER_PIPES_CONTEXT": "x"}), chosen.settings
    )
    kubernetes_validate.validate(body, "1.33", strict=True)
    job, pod = body["spec"], body["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (job["completions"], job["parallelism"], job["backoffLimit"], job["activeDeadlineSeconds"]) == (
        2,
        2,
        0,
        7200 + 3600 + 35,
    )
    assert container["resources"] == {
        "requests": {"cpu": "16", "memory": "204800Mi"},
        "limits": {"memory": "204800Mi", "nvidia.com/gpu": "4"},
    }
    assert pod["terminationGracePeriodSeconds"] == 35 and not pod["automountServiceAccountToken"]
    user = pod["securityContext"]
    assert (user["runAsUser"], user["runAsGroup"], user["runAsNonRoot"]) == (1234, 10_001, True)
    assert chosen.settings.target["node_selector"] == {"gpu": "h100"}
    options = json.loads(container["args"][container["args"].index(MODULE) + 1])
    assert options["hosts"] == [f"{NAME}-0.fullft-pods", f"{NAME}-1.fullft-pods"]
    assert (
        options["gpus"],
        options["processes"],
    ) == (4, 4)
    assert options["patience"] > chosen.settings.pending_minutes * 60
    assert (pod["nodeSelector"], len(pod["tolerations"]), pod["serviceAccountName"]) == (
        {"gpu": "h100"},
        2,
        "fullft-run",
    )
    one = kubernetes.manifest(LaunchSpec(NAME, "m", ("--job", "s3://b/j")), chosen.settings)["spec"]
    assert (
        one["completions"],
        one["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"],
    ) == (1, "1")


def last_words(folder: Path, environment: dict[str, str], **chosen: object) -> tuple[int, Status]:
    """Run a pod's first process; return its exit code, and what it left."""
    words = folder / "words"
    options = Options(importlib.metadata.version("fullft-assets"), 1.0, message=str(words), **chosen)
    command = [sys.executable, "-m", MODULE, json.dumps(asdict(options)), "-m", "probe_workloads.probe"]
    environment = {**os.environ, "JOB_COMPLETION_INDEX": "1", "FULLFT_LAUNCH_ID": NAME, **environment}
    code = subprocess.run(command, env=environment, timeout=SECONDS, check=False).returncode
    return code, Status(**json.loads(words.read_text()))


@pytest.mark.parametrize(
    ("seen", "todo"), [(0, "build the image with a torch for CUDA"), (1, "lower launcher.processes")]
)
def test_an_image_whose_torch_sees_fewer_gpus_than_the_pod_asked_for_is_refused(tmp_path, seen, todo):
    (tmp_path / "torch.py").write_text(
        f"class accelerator:\n    device_count = staticmethod(lambda: {seen})\n"
    )
    code, found = last_words(
        tmp_path, {"PYTHONPATH": os.pathsep.join(map(str, [tmp_path, TESTS.parent, TESTS]))}, gpus=2
    )
    assert (code, found.failure, found.is_own_line) == (3, "settings", True)
    assert re.fullmatch(rf"torch .* {seen} GPUs, and 2 .*; {todo}.*", found.reason)


def test_pods_that_do_not_find_each_other_lost_their_machine(tmp_path):
    code, found = last_words(tmp_path, {}, hosts=["127.0.0.1", "127.0.0.2"], port=1, patience=1)
    assert code == 1 and found.failure == "infrastructure" and "the other hosts" in found.reason


@pytest.mark.parametrize(
    "spec",
    [
        None,
        {"clusterIP": "10.0.0.7", "selector": {"app.kubernetes.io/managed-by": "fullft"}},
        {"clusterIP": "None"},
    ],
)
def test_a_namespace_needs_the_service_that_names_its_pods_and_the_cluster(cluster, spec):
    cluster.services = {} if spec is None else {"fullft-pods": {"spec": spec}}
    with pytest.raises(
        WorkloadError,
        match=r"^Kubernetes/fullft: launcher\.kind: .* Service `fullft-pods`",
    ):
        _ = launcher().place
    assert ("", "services", "get") in cluster.used


STAGE = "finetuned_checkpoint"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    training = {
        "checkpoint_every_steps": 2,
        "learning_rate": 1e-3,
        "precision": "fp32",
        "micro_batch_size": 4,
    }
    return prepare(tmp_path_factory.mktemp("kubernetes"), tiny=True, training=training)


@pytest.fixture
def training_cluster(cluster: Cluster, prepared: Prepared) -> Cluster:
    cluster.environment = {**prepared.project.env(), **cluster.environment}
    return cluster


def trained(prepared: Prepared, key: str, chosen: Launcher) -> Manifest:
    job = prepared.job(STAGE, key)
    job = job.model_copy(update={"settings": job.settings.model_copy(update={"launcher": chosen.settings})})
    return train(chosen, job, prepared.store)


def assert_same(prepared: Prepared, key: str, found: Manifest, processes: int = 1) -> None:
    """Compare the weights with those of a training through `local`."""
    expected = trained(prepared, f"{key}-here", LocalLauncher(LauncherSettings(processes=processes)))
    weights = [
        load_file(prepared.store.folder(each) / "model" / "model.safetensors") for each in (expected, found)
    ]
    assert (
        weights[0].keys() == weights[1].keys()
        and [name for name, weight in weights[0].items() if not torch.equal(weight, weights[1][name])] == []
    )


@pytest.mark.long
@pytest.mark.fault("spot capacity is taken away", "kubernetes")
def test_an_evicted_training_of_two_pods_goes_on_from_its_checkpoint(training_cluster, prepared):
    chosen, key, evicted = launcher(grace_seconds=60, processes=2, nodes=2), "evicted", []
    folder = prepared.store.work_folder(prepared.use_case.name, STAGE, key)

    def poll(name: str, wait_seconds: float = 0.0):
        if not evicted and list(folder.glob("checkpoint-*")):
            evicted.append(name)
            training_cluster.evict(name)
        return kubernetes.KubernetesLauncher.poll(chosen, name, min(wait_seconds, 0.2))

    chosen.poll = poll
    found = trained(prepared, key, chosen)
    assert (
        found.metadata["resumed_from_step"] > 0 and len(evicted) == 1 and len(training_cluster.created) == 2
    )
    assert_same(prepared, key, found, processes=2)
    job = training_cluster.created[0]
    assert (job["spec"]["completions"], job["spec"]["template"]["spec"]["subdomain"]) == (2, "fullft-pods")


def test_a_cluster_is_the_same_place_by_every_name_and_another_one_is_not(cluster, monkeypatch):
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["contexts"].append({**config["contexts"][0], "name": "by-another-name"})
    cluster.kubeconfig.write_text(yaml.safe_dump(config))
    assert launcher(context="by-another-name").place == launcher().place == "fullft@1a2b3c4d"
    cluster.services["fullft-pods"]["metadata"]["uid"] = "5ec0d000"
    assert launcher().place == "fullft@5ec0d000"
