"""The launcher `sagemaker` against a double that runs the containers, with a store on a real S3 server."""

import importlib.metadata
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from probe_workloads.definitions import probe_job

from fullft_assets.errors import StoreError, WorkloadError
from fullft_assets.job import Job
from fullft_assets.launch import Launcher, LaunchSpec, Status, sagemaker, sagemaker_container
from fullft_assets.launch.local import LocalLauncher
from fullft_assets.launch.records import Launch
from fullft_assets.launch.supervisor import is_alive
from fullft_assets.settings import LauncherSettings, PlanningSettings, SageMakerLauncherSettings
from fullft_assets.store import Store
from tests import launch_scenes, manifests, s3_server as s3_servers
from tests.aws_double import IMAGE, ROLE
from tests.launch_scenes import (
    NAME,
    process,
    run_probe,
    run_stage,
    serving,
    spec,
    trained_in_bucket,
    url as url,
    wait_for,
)
from tests.machine import free_port
from tests.prepared import Prepared, prepare
from tests.project import write_files
from tests.sagemaker_double import SageMaker

SETTINGS = {
    "kind": "sagemaker",
    "instance_type": "ml.m5.xlarge",
    "image": IMAGE,
    "role_arn": ROLE,
    "grace_seconds": 10,
    "max_retries": 1,
}


@pytest.fixture
def service(
    s3_env: s3_servers.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SageMaker]:
    with serving(SageMaker, sagemaker.SageMakerLauncher, s3_env, tmp_path, monkeypatch) as double:
        yield double


def launcher(**changes: Any) -> sagemaker.SageMakerLauncher:
    return sagemaker.SageMakerLauncher(SageMakerLauncherSettings.model_validate({**SETTINGS, **changes}))


def recorded(url: str) -> Launch:
    return launch_scenes.recorded(Store(url))


def ended(sage: sagemaker.SageMakerLauncher, job: LaunchSpec) -> Status:
    sage.submit(job)
    wait_for(lambda: sage.poll(job.name).is_over, "the job ended")
    return sage.poll(job.name)


def two_hosts(service: SageMaker) -> dict[str, Any]:
    """Have each job of two instances run on two addresses of this machine; return what a launcher needs for
    that.
    """
    service.host_names = lambda count: [f"127.0.0.{number + 1}" for number in range(count)]
    return {"nodes": 2, "environment": {"MASTER_PORT": str(free_port())}}


@pytest.mark.slow
@pytest.mark.fault("output is lost, late or cut", "sagemaker")
def test_a_workload_runs_there_and_its_progress_output_cost_and_failures_arrive(service, url, capfd):
    service.late_seconds = 1.0
    failure, messages = run_stage(launcher(), "writes", url)
    assert failure is None
    assert "reading the rows" in messages
    assert "step 1/1,000 (0%), loss 0.25" in messages
    assert "] reading the rows\n" in capfd.readouterr().out, "output that came late is waited for"
    launch = recorded(url)
    assert (launch.state, launch.place, launch.hourly_usd) == ("succeeded", "111122223333/us-east-1", 0.192)
    assert (
        launch.billed_seconds
        == service._DescribeTrainingJob({"TrainingJobName": launch.name_in(Store(url))})[
            "BillableTimeInSeconds"
        ]
    )
    failure, _ = run_stage(launcher(), "refuses", url)
    assert failure == "documents/a.csv:3: no field `label`; name it in examples.label [data]"
    (job,) = [job for job in service.jobs.values() if job.status == "Failed"]
    assert job.reason == f"AlgorithmError: {failure}, exit code: 3"


@pytest.mark.slow
@pytest.mark.fault("spot capacity is taken away", "sagemaker")
def test_a_spot_job_that_lost_its_instances_for_good_is_launched_again(service, url):
    service.num_without_capacity = 1
    failure, messages = run_stage(launcher(max_retries=2, spot=True), "is_preempted", url)
    assert (failure, recorded(url).attempt) == (None, 3) and any(
        "CapacityError: " in message for message in messages
    )
    assert any(re.match(r"stopped .* 7 of 9.* \[preemption\]; retry 2 of 2", said) for said in messages)
    stopping = next(iter(service.jobs.values())).request["StoppingCondition"]
    assert stopping == {"MaxRuntimeInSeconds": 86_400, "MaxWaitTimeInSeconds": 2 * 86_400}


@pytest.mark.slow
@pytest.mark.parametrize("returns", [False, True], ids=["preempted", "started again by SageMaker"])
@pytest.mark.fault("spot capacity is taken away", "sagemaker")
def test_spot_interruption(service, url, returns):
    service.spot_returns = returns
    sage = launcher(spot=True)
    sage.submit(spec(url, "waits"))
    wait_for((service.folder / "starts").exists, "the workload started")
    wait_for(lambda: "waiting" in sage.logs(NAME, "").stdout, "its output arrived")
    service.interrupt(NAME)
    if not returns:
        wait_for(lambda: sage.poll(NAME).is_over, "the job ended")
        status = sage.poll(NAME)
        assert status.failure == "preemption" and "longer than 24 hours" in status.reason
        return
    wait_for(lambda: (service.folder / "starts").read_text() == "started\n" * 2, "it was started again")
    (service.folder / "go").touch()
    wait_for(lambda: sage.poll(NAME).is_over, "the job ended")
    assert sage.poll(NAME).state == "succeeded" and sage.logs(NAME, "").stdout.count("waiting") == 2


def test_a_stopped_job_writes_its_checkpoint_and_leaves_no_process(service, url):
    sage = launcher()
    sage.submit(spec(url, "works"))
    processes = [process(service.folder, f"{name}0") for name in ("workload", "helper")]
    sage.stop(NAME)
    assert (service.folder / "checkpoint0").read_text() == "complete" and not any(map(is_alive, processes))
    assert "stopped in SageMaker" in sage.poll(NAME).reason
    sage.stop(NAME)
    sage.stop("fullft-unknown")


def test_a_job_is_stopped_when_its_time_is_up(service, url):
    status = ended(launcher(max_hours=3 / 3600), spec(url, "works"))
    assert status.reason.startswith("reached launcher.max_hours") and status.failure == "settings"


@pytest.mark.fault("two runs launch the same", "sagemaker")
def test_a_name_that_exists_is_attached_to(service, url):
    sage = launcher()
    sage.submit(spec(url, "writes"))
    sage.submit(spec(url, "writes", run_id="r2"))
    assert len(service.jobs) == 1


def test_what_is_asked_for_is_what_the_yaml_says(service, url, monkeypatch):
    monkeypatch.setenv("FULLFT_KMS_KEY", "alias/o")
    sage = launcher(
        nodes=2,
        processes=16,
        volume_gb=500,
        subnets=["subnet-1"],
        security_groups=["sg-1"],
        volume_kms_key="alias/v",
        tags={"team": "nlp"},
        environment={"A": "b"},
        max_hours=None,
        instance_type="ml.p4d.24xlarge",
    )
    request = sage._request(
        spec(url, "writes", processes=16, environment={"DAGSTER_PIPES_CONTEXT": "x" * 6000})
    )
    service.num_without_capacity = 1
    sage.ask("sagemaker", "create_training_job", **request)  # the double checks it as AWS does
    assert request["ResourceConfig"] == {
        "InstanceType": "ml.p4d.24xlarge",
        "InstanceCount": 2,
        "VolumeSizeInGB": 500,
        "VolumeKmsKeyId": "alias/v",
    }
    assert request["VpcConfig"] == {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    assert request["OutputDataConfig"] == {"S3OutputPath": f"{url}/sagemaker", "KmsKeyId": "alias/o"}
    assert (
        request["StoppingCondition"] == {"MaxRuntimeInSeconds": 28 * 86_400}
        and request["EnableInterContainerTrafficEncryption"]
    )
    assert request["Tags"] == [{"Key": "team", "Value": "nlp"}, {"Key": "fullft:run", "Value": "r1"}]
    assert request["Environment"] == {
        "AWS_DEFAULT_REGION": "us-east-1",
        "FULLFT_CACHE": "/tmp/fullft",
        "A": "b",
    }
    assert (request["HyperParameters"]["processes"], request["HyperParameters"]["gpus"]) == ("8", "8")
    elsewhere = launcher(region="eu-west-1")._request(spec(url, "writes"))
    assert elsewhere["Environment"]["AWS_DEFAULT_REGION"] == "eu-west-1"
    alone = sage._request(spec(url, "writes"))
    assert alone["ResourceConfig"]["InstanceCount"] == 1 and alone["HyperParameters"]["processes"] == "1"
    assert elsewhere["HyperParameters"]["gpus"] == "0", "a type without GPUs"
    assert sage.hourly_usd(PlanningSettings(), 16) == pytest.approx(2 * 21.957642)
    assert launcher(instance_type="ml.g5.xlarge").hourly_usd(PlanningSettings(), 1) == 1.006
    assert launcher(instance_type="ml.m5.large").hourly_usd(PlanningSettings(), 1) == pytest.approx(0.096)
    assert launcher(instance_type="ml.r5.large").hourly_usd(PlanningSettings(), 1) is None


class TestNetworkIsolation:
    """The container has neither a network nor the bucket's address and credentials."""

    @pytest.fixture
    def job(self, url: str, service: SageMaker) -> Job:
        given = manifests.write(Store(url), "probe", "given", files={"question.txt": "6 * 7 ="})
        return probe_job(Path("/nowhere"), "reads", url)[0].model_copy(
            update={"inputs": {"given": given.ref}}
        )

    def test_inputs_come_by_channels_and_what_it_wrote_is_found_in_the_store(self, service, url, job):
        store = Store(url)
        failure, messages = run_probe(launcher(network_isolation=True), job, store)
        assert failure is None and "reading the input" in messages
        made = store.find("probe", "reads", "k1")
        assert made is not None and made.metadata["store"].endswith("/model")
        assert (store.folder(made) / "answer.txt").read_text() == "6 * 7 = 42"
        (created,) = service.jobs.values()
        assert (
            created.request["EnableNetworkIsolation"]
            and created.request["OutputDataConfig"]["CompressionType"] == "NONE"
        )
        assert [each["InputMode"] for each in created.request["InputDataConfig"]] == ["FastFile", "File"]
        assert created.channels == {"store": f"{url}/probe/", "job": f"{url}/jobs/probe/reads/k1/"}
        assert created.request["CheckpointConfig"]["S3Uri"] == f"{url}/checkpoints/probe/reads/k1/sagemaker"
        assert launcher(network_isolation=True).poll(recorded(url).name_in(store)).state == "succeeded", (
            "there is nothing left to move"
        )
        assert not store.names("sagemaker") and not store.names("checkpoints"), (
            "what was brought to its place is in one place"
        )
        assert [each.stage for each in store.artifacts("probe", "given")] == ["given"], (
            "an input is not written again"
        )

    def test_why_it_failed_arrives_and_nothing_of_it_counts(self, service, url, job):
        failure, _ = run_probe(
            launcher(network_isolation=True), job.model_copy(update={"stage": "refuses"}), Store(url)
        )
        assert failure == "documents/a.csv:3: no field `label`; name it in examples.label [data]"
        assert Store(url).find("probe", "refuses", "k1") is None and not Store(url).names("sagemaker")

    @pytest.mark.parametrize("is_stopped", [False, True], ids=["poll", "stop"])
    @pytest.mark.parametrize("state", ["Completed", "Failed", "Stopped"])
    def test_what_it_left_is_moved_or_removed_at_its_end(self, tmp_path, monkeypatch, state, is_stopped):
        job, store = probe_job(tmp_path, "reads")
        asked = {"job": json.dumps(job.arguments(store))}
        ended = {
            "TrainingJobName": "j",
            "EnableNetworkIsolation": True,
            "TrainingJobStatus": state,
            "SecondaryStatus": state,
        }
        sage = launcher()
        monkeypatch.setattr(sage, "_describe", lambda _: {**ended, "HyperParameters": asked})
        left, place = "sagemaker/j/output/model/probe/reads/k1/a/answer.txt", "probe/reads/k1/a/answer.txt"
        store.write_bytes(left, b"42")
        (tmp_path / "store" / place).parent.mkdir(parents=True)  # as no folder of a bucket has to be made
        sage.stop("j") if is_stopped else sage.poll("j")
        assert store.read_bytes(left) is None and (store.read_bytes(place) == b"42") == (state == "Completed")
        asked["job"] = json.dumps([*job.arguments(store)[:3], "0" * 64])
        with pytest.raises(StoreError, match="was changed after"):
            sage.poll("j")

    def test_a_file_that_leads_out_of_the_use_case_is_not_taken(self, url, service):
        store = Store(url)
        for name in ("other_case/a/manifest.json", "pointers/champion.json"):
            store.write_bytes(f"sagemaker/j/output/model/{name}", b"{}")
            with pytest.raises(StoreError, match="the use case probe"):
                store.adopt("sagemaker/j/output/model", "probe")
            store.remove_folder("sagemaker")


@pytest.mark.fault("memory runs out", "sagemaker")
def test_a_workload_that_ran_out_of_memory_is_not_tried_again_and_says_what_to_do(service, url, tmp_path):
    (tmp_path / "count").write_text("oom_kill 0\n")
    failure, _ = run_stage(
        launcher(max_retries=2, environment={"FULLFT_OOM_COUNT": str(tmp_path / "count")}),
        "runs_out_of_memory",
        url,
    )
    assert failure.endswith(" launcher.processes [out_of_memory]") and len(service.jobs) == 1


class TestRefused:
    def test_a_store_that_a_container_cannot_reach(self, service, tmp_path):
        with pytest.raises(
            WorkloadError,
            match=r"launcher\.kind: sagemaker .* /\S+ is not; set `store`",
        ):
            launcher().submit(spec(str(tmp_path / "store"), "writes"))

    def test_what_aws_refuses_is_one_line(self, service, url):
        with pytest.raises(
            WorkloadError,
            match=r"SageMaker 111122223333/us-east-1: create_training_job: .* \(ValidationException\)$",
        ) as raised:
            launcher(subnets=["not a subnet"], security_groups=["sg-1"]).submit(spec(url, "writes"))
        assert raised.value.failure == "settings" and "\n" not in str(raised.value)

    @pytest.mark.fault("the image, version or Python is another one", "sagemaker")
    def test_an_image_of_another_version(self, service, url, monkeypatch):
        monkeypatch.setattr(sagemaker.importlib.metadata, "version", lambda _: "9.9")
        status = ended(launcher(), spec(url, "writes"))
        assert " fullft_assets 0.1.0, and 9.9 " in status.reason and status.failure == "settings"

    def test_a_workload_that_was_killed(self, service, url):
        status = ended(launcher(), spec(url, "is_killed"))
        assert status.failure == "infrastructure" and "killed by SIGKILL" in status.reason


def test_why_it_failed_fits_into_what_sagemaker_keeps_with_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = {"version": importlib.metadata.version("fullft-assets"), "gpus": "0"}
    write_files(
        tmp_path / "input/config",
        {
            "hyperparameters.json": json.dumps(asked),
            "resourceconfig.json": json.dumps({"hosts": ["algo-1"], "current_host": "algo-1"}),
        },
    )
    monkeypatch.setenv("FULLFT_OPT_ML", str(tmp_path))
    monkeypatch.setattr(
        sagemaker_container,
        "_run",
        lambda *_: (3, Status("failed", "Größe " * 300, "data", is_own_line=True)),
    )
    assert sagemaker_container.main() == 3
    kept = (tmp_path / "output/failure").read_bytes()[:1024].decode()
    assert kept.startswith("Größe Größe ") and kept.endswith(" [data]")


@pytest.mark.parametrize(
    ("reason", "line", "failure"),
    [
        ("InternalServerError: We encountered an internal error.  Please try again.", None, "infrastructure"),
        ("ClientError: Cannot pull the image", None, "settings"),
        ("AlgorithmError: , exit code: 137", None, "out_of_memory"),
        ("AlgorithmError: , exit code: 143", None, "infrastructure"),
        (
            "ClientError: Please use an instance type with more memory, or reduce the size of training data",
            None,
            "out_of_memory",
        ),
        ("AlgorithmError: , exit code: 1", None, "unknown"),
        (
            "AlgorithmError: loss is nan [at step 3] [divergence], exit code: 3",
            "loss is nan [at step 3]",
            "divergence",
        ),
        ("", None, "unknown"),
    ],
)
def test_the_class_of_a_failure(reason, line, failure):
    status = sagemaker._status(
        {"TrainingJobStatus": "Failed", "SecondaryStatus": "Failed", "FailureReason": reason}
    )
    assert (status.failure, status.is_own_line) == (failure, line is not None) and (
        line is None or status.reason == line
    )
    assert status.reason and "\n" not in status.reason


@pytest.mark.parametrize(("later", "failure"), [((), "preemption"), (("Starting", "Training"), "unknown")])
def test_a_job_that_somebody_stops_is_lost_to_spot_only_while_it_waits_for_instances(later, failure):
    changes = [
        {"Status": each} for each in ("Starting", "Training", "Interrupted", *later, "Stopping", "Stopped")
    ]
    status = sagemaker._status(
        {"TrainingJobStatus": "Stopped", "SecondaryStatus": "Stopped", "SecondaryStatusTransitions": changes}
    )
    assert status.failure == failure


class TestTraining:
    """A classifier with two narrow layers is really trained, from a snapshot in the bucket."""

    STAGE = "finetuned_checkpoint"

    @pytest.fixture(scope="class")
    def prepared(self, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
        return prepare(
            tmp_path_factory.mktemp("project"),
            tiny=True,
            training={"checkpoint_every_steps": 3, "learning_rate": 1e-3},
        )

    @pytest.fixture
    def train(
        self, service: SageMaker, s3_env: s3_servers.S3Server, prepared: Prepared, tmp_path: Path
    ) -> Callable[..., bytes]:
        def train(launcher: Launcher, name: str, /, **sections: Any) -> bytes:
            return trained_in_bucket(
                launcher, prepared, self.STAGE, s3_env.root / tmp_path.name, name, **sections
            )

        return train

    @pytest.mark.long
    @pytest.mark.fault("spot capacity is taken away", "sagemaker")
    def test_without_a_network_the_second_attempt_resumes_from_what_sagemaker_saved(
        self, train, prepared, service, capfd
    ):
        def interrupt() -> None:
            wait_for(
                lambda: any(service.folder.glob("*/1/algo-1/checkpoints/**/checkpoint-*")),
                "a checkpoint is written",
            )
            service.interrupt(next(iter(service.jobs)))

        threading.Thread(target=interrupt, daemon=True).start()
        longer = {"training": {"epochs": 3}}
        there = train(
            launcher(folder=str(prepared.project.root), spot=True, network_isolation=True), "there", **longer
        )
        assert [job.secondary for job in service.jobs.values()] == [
            "MaxWaitTimeExceeded",
            "Completed",
        ]
        assert "resuming at step " in capfd.readouterr().out
        assert there == train(LocalLauncher(LauncherSettings()), "here", **longer)

    @pytest.mark.long
    def test_two_instances_give_the_weights_of_two_local_processes(self, train, prepared, service):
        two = {"training": {"micro_batch_size": 4}, "launcher": {"processes": 2}}
        sage = launcher(folder=str(prepared.project.root), processes=2, **two_hosts(service))
        there = train(sage, "there", **two)
        assert sorted(stream.split("/")[1][:7] for stream in service.streams) == ["algo-1-", "algo-2-"]
        assert there == train(LocalLauncher(LauncherSettings(processes=2)), "here", **two)
