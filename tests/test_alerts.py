"""Alerts: from finished runs, decisions and silent feeds, by real servers, each once."""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster_shared.error import SerializableErrorInfo

from fullft_assets import automation, documents
from fullft_assets.alerts import Alert, AlertError, deliver, open_channels
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.checking.validation import load_use_case
from fullft_assets.errors import FullftError, SettingsError
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.monitoring import Status
from fullft_assets.resources import ARTIFACT, open_store
from fullft_assets.retraining import Decision, RecordedDecision, Signals
from fullft_assets.settings import AlertsSettings
from fullft_assets.store import CheckOutcome, Manifest, Store
from tests import manifests, project as projects, test_retraining as policy
from tests.asset_runs import definitions
from tests.serving import Handler, serving

NOW = 1_800_000_000.0


def alert(number: int = 1, event: Any = "run_failed") -> Alert:
    return Alert(
        event,
        "letters",
        f"{event}/{number}",
        f"run {number} failed",
        "open the run",
        f"http://localhost:3000/runs/{number}",
        NOW,
    )


class Hook:
    """A real HTTP server that keeps what is posted and answers with a status."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.status = 200
        self.raw: bytes | None = None
        hook = self

        class Posted(Handler):
            def do_POST(self) -> None:
                hook.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                if hook.raw is not None:
                    self.wfile.write(hook.raw)
                    return
                self.reply(hook.status)

        self.server = HTTPServer(("127.0.0.1", 0), Posted)
        self.url = f"http://127.0.0.1:{self.server.server_port}/planted-token"

    def values(self, *names: str) -> list[tuple[Any, ...]]:
        return [tuple(body[name] for name in names) for body in self.bodies]


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    made = Hook()
    monkeypatch.setenv("ALERT_HOOK", made.url)
    with serving(made.server):
        yield made


def send(channels: dict[str, dict[str, Any]], *alerts: Alert) -> None:
    for channel in open_channels(AlertsSettings(channels=channels)).values():
        for each in alerts:
            channel.send(each)


class TestChannels:
    def test_a_webhook_and_a_service_of_apprise_get_it(
        self, hook: Hook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SERVICE", hook.url.replace("http://", "json://"))
        send({"webhook": {"url": "env:ALERT_HOOK"}, "apprise": {"url": "env:SERVICE"}}, alert())
        plain, service = hook.bodies
        assert (plain["key"], plain["url"]) == ("run_failed/1", "http://localhost:3000/runs/1")
        assert service["title"] == "[letters] run 1 failed" and "Next: open" in service["message"]

    @pytest.mark.parametrize(
        ("address", "error"),
        [
            ("planted-token", "env:SERVICE is no address of a service that apprise knows"),
            ("json://127.0.0.1:1/planted-token", "env:SERVICE: the service did not take the message"),
        ],
    )
    def test_a_service_that_takes_nothing_is_one_line_without_its_address(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, address: str, error: str
    ) -> None:
        monkeypatch.setenv("SERVICE", address)
        with pytest.raises(FullftError) as raised:
            send({"apprise": {"url": "env:SERVICE"}}, alert())
        assert str(raised.value) == error and "planted" not in caplog.text

    @pytest.mark.parametrize(
        ("url", "raw", "error"),
        [
            (None, b"planted nonsense\r\n\r\n", "BadStatusLine"),
            ("http://127.0.0.1/planted token", None, "InvalidURL"),
        ],
    )
    def test_a_webhook_that_answers_nonsense_or_has_no_address_is_one_line_without_the_address(
        self, hook: Hook, monkeypatch: pytest.MonkeyPatch, url: str | None, raw: bytes | None, error: str
    ) -> None:
        hook.raw = raw
        if url is not None:
            monkeypatch.setenv("ALERT_HOOK", url)
        with pytest.raises(AlertError) as raised:
            send({"webhook": {"url": "env:ALERT_HOOK"}}, alert())
        assert str(raised.value) == f"env:ALERT_HOOK cannot be reached ({error})"

    def test_sns_and_cloudwatch_get_it(self, aws: None) -> None:
        topic = boto3.client("sns").create_topic(Name="alerts")["TopicArn"]
        queue = boto3.client("sqs").create_queue(QueueName="alerts")["QueueUrl"]
        arn = boto3.client("sqs").get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])[
            "Attributes"
        ]["QueueArn"]
        boto3.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
        send({"sns": {"topic_arn": topic}, "cloudwatch": {}}, alert())
        (message,) = boto3.client("sqs").receive_message(QueueUrl=queue)["Messages"]
        assert "Next: open" in json.loads(message["Body"])["Message"]
        metrics = boto3.client("cloudwatch").list_metrics(Namespace="fullft_assets")["Metrics"]
        dimensions = [{d["Name"]: d["Value"] for d in metric["Dimensions"]} for metric in metrics]
        assert sorted(dimensions, key=len) == [
            {"Event": "run_failed"},
            {"UseCase": "letters", "Event": "run_failed"},
        ]

    def test_a_secret_comes_from_secrets_manager(self, aws: None, hook: Hook) -> None:
        boto3.client("secretsmanager").create_secret(Name="hook", SecretString=hook.url)
        send({"webhook": {"url": "secret:hook"}}, alert())
        assert len(hook.bodies) == 1


class TestProblems:
    @pytest.mark.parametrize(
        ("channels", "expected"),
        [
            ({"webhok": {}}, "did you mean `webhook`?"),
            ({"webhook": {"url": "https://hooks.example.org/token"}}, "alerts.channels.webhook: url"),
            ({"email": {"host": "h"}}, "`email` was removed; use `apprise`"),
            ({"prometheus": {"path": "a.prom"}}, "`prometheus` was removed; use `webhook`"),
            ({"apprise": {"url": "slack://token"}}, "alerts.channels.apprise: url"),
            ({"webhook": {"url": "env:X", "style": "slack"}}, "`style` was removed; use a channel `apprise`"),
            ({"sns": {"topic": "x"}}, "alerts.channels.sns: topic"),
        ],
    )
    def test_a_wrong_channel_is_one_line_of_the_check(
        self, tmp_path: Path, channels: dict[str, Any], expected: str
    ) -> None:
        project = projects.create(tmp_path / "p", rows=5, alerts={"channels": channels})
        with pytest.raises(SettingsError) as raised:
            load_use_case(project.yaml_path)
        (line,) = str(raised.value).splitlines()
        assert expected in line


class TestDelivery:
    def delivery(self, store: Store, alerts: list[Alert], **settings: Any) -> Any:
        chosen = AlertsSettings(channels={"webhook": {"url": "env:ALERT_HOOK"}}, **settings)
        return deliver(store, "letters", alerts, open_channels(chosen), chosen, NOW)

    def test_a_channel_that_fails_is_tried_again_and_keeps_no_other_from_its_alerts(
        self, tmp_path: Path, hook: Hook
    ) -> None:
        store = Store(str(tmp_path / "store"))
        settings = AlertsSettings(channels={"webhook": {"url": "env:ALERT_HOOK"}, "log": {}})
        hook.status = 500
        first = deliver(store, "letters", [alert()], open_channels(settings), settings, NOW)
        assert re.match("alerts.channels.webhook: env:ALERT_HOOK .* 500 ", *first.failures)
        hook.status = 200
        second = deliver(store, "letters", [alert()], open_channels(settings), settings, NOW + 60)
        assert (list(first.sent), list(second.sent)) == (["log"], ["webhook"])

    def test_of_a_flood_ten_are_sent_and_one_summary(self, tmp_path: Path, hook: Hook) -> None:
        store = Store(str(tmp_path))
        for _ in range(2):
            self.delivery(store, [alert(number) for number in range(14)])
        assert [body["title"] for body in hook.bodies] == [
            *(f"run {number} failed" for number in range(10)),
            "4 more alerts: 4 run_failed",
        ]

    def test_a_damaged_ledger_begins_anew_and_that_is_said_once(self, tmp_path: Path, hook: Hook) -> None:
        store, file = Store(str(tmp_path)), tmp_path / "pointers/letters/alerts.json"
        self.delivery(store, [alert(1)])
        file.write_text('{"channels": {"webh')
        (note,) = self.delivery(store, []).notes
        assert "letters/alerts.json could not" in note and self.delivery(store, [alert(1)]).notes == []
        assert [body["key"] for body in hook.bodies] == ["run_failed/1"] * 2

    def test_a_channel_with_a_fault_fails_alone_and_without_its_message(
        self, tmp_path: Path, hook: Hook
    ) -> None:
        class Faulty:
            def send(self, alert: Alert) -> None:
                raise RuntimeError("planted-token")

        settings = AlertsSettings(channels={"webhook": {"url": "env:ALERT_HOOK"}})
        (line,) = deliver(
            Store(str(tmp_path)),
            "letters",
            [alert()],
            {"pager": Faulty(), **open_channels(settings)},
            settings,
            NOW,
        ).failures
        assert re.match("alerts.channels.pager: .* RuntimeError at ", line) and "planted" not in line
        assert len(hook.bodies) == 1

    def test_only_chosen_events_are_sent(self, tmp_path: Path, hook: Hook) -> None:
        self.delivery(Store(str(tmp_path)), [alert(1), alert(2, "drift")], events=["drift"])
        assert [body["event"] for body in hook.bodies] == ["drift"]


@dg.op
def fails() -> None:
    raise dg.Failure("planted-text")


@dg.op
def works() -> None:
    pass


class TestSensor:
    @pytest.fixture
    def graph(self, tmp_path: Path, hook: Hook) -> CaseGraph:
        project = projects.create(
            tmp_path / "p",
            rows=5,
            alerts={"channels": {"webhook": {"url": "env:ALERT_HOOK"}}, "silent_hours": 1000},
        )
        return CaseGraph(project.use_case())

    @pytest.fixture
    def instance(
        self, graph: CaseGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[dg.DagsterInstance]:
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "p" / ".home"))
        (tmp_path / "dagster").mkdir()
        with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as made:
            yield made

    def tick(
        self, graph: CaseGraph, instance: dg.DagsterInstance, cursor: str | None = None
    ) -> tuple[Any, str | None]:
        (sensor,) = automation.build_alert_sensor(graph)
        context = dg.build_sensor_context(instance=instance, resources=graph.resources(), cursor=cursor)
        return sensor(context), context.cursor

    def artifact(
        self,
        graph: CaseGraph,
        instance: dg.DagsterInstance,
        stage: str,
        partition: str | None = None,
        *,
        key: str = "k",
        metadata: Mapping[str, Any] | None = None,
        failed_check: str = "",
    ) -> Manifest:
        """Write an artifact without files, the newest of its partition where one is given."""
        store = open_store(graph.use_case, instance)
        manifest = manifests.write(
            store,
            graph.name,
            stage,
            key,
            metadata,
            checks=[CheckOutcome(name=failed_check, passed=False)] if failed_check else [],
        )
        if partition is not None:
            store.write_pointer(f"latest/{graph.name}/{stage}/{partition}", {"ref": manifest.ref})
        return manifest

    def decide(
        self,
        graph: CaseGraph,
        instance: dg.DagsterInstance,
        decision: Decision,
        age: float = 0.0,
        **measured: Any,
    ) -> None:
        now = time.time()
        signals = Signals(
            now=now, month_start=now, num_examples=0, data_version="", estimated_hours=0.0, **measured
        )
        entry = RecordedDecision(
            case=graph.name,
            time=now - age,
            signals=signals,
            decision=decision,
        )
        open_store(graph.use_case, instance).write_pointer(
            f"{graph.name}/retraining_decisions/{int(entry.time * 1000):014d}", entry.model_dump(mode="json")
        )

    def state(
        self,
        instance: dg.DagsterInstance,
        name: str,
        status: InstigatorStatus = InstigatorStatus.RUNNING,
    ) -> InstigatorState:
        """Record that a sensor is on."""
        origin = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(python_file="x.py"), "x")
        state = InstigatorState(
            RemoteInstigatorOrigin(RemoteRepositoryOrigin(origin, "r"), name),
            InstigatorType.SENSOR,
            status,
            SensorInstigatorData(min_interval=60),
        )
        instance.add_instigator_state(state)
        return state

    def run(
        self, graph: CaseGraph, instance: dg.DagsterInstance, stage: str, op: Any = works, **tags: str
    ) -> str:
        job = dg.GraphDefinition(name=f"{graph.name}_{stage}", node_defs=[op]).to_job(
            tags={"use_case": graph.name, **tags}
        )
        return job.execute_in_process(instance=instance, raise_on_error=False).run_id

    def materializes(self, graph: CaseGraph, manifest: Manifest, partition: str | None = None) -> Any:
        """Return the step of an asset that made this artifact."""

        @dg.op(name=f"{graph.name}__{manifest.stage}")
        def step(context) -> None:
            about = {"metadata": {ARTIFACT: manifest.ref}, "partition": partition}
            context.log_event(dg.AssetMaterialization(graph.key(manifest.stage), **about))

        return step

    def test_the_key_figures_of_a_use_case_are_metrics(
        self, instance: dg.DagsterInstance, tmp_path: Path, aws: None
    ) -> None:
        project = projects.create(tmp_path / "kept", rows=5, alerts={"channels": {"cloudwatch": {}}})
        graph = CaseGraph(project.use_case())
        for asset, metadata in (
            ("raw_documents", {}),
            ("drift_report", {"status": "alarm"}),
            ("live_quality", {"accuracy": 0.75}),
            ("retraining_decisions", {"usd_spent_this_month": 12.5}),
        ):
            instance.report_runless_asset_event(dg.AssetMaterialization(graph.key(asset), metadata=metadata))
        manifests.promote(open_store(graph.use_case, instance), graph.name, "c", score=0.5)
        self.tick(graph, instance)
        client = boto3.client("cloudwatch")
        names = {metric["MetricName"] for metric in client.list_metrics(Namespace="fullft_assets")["Metrics"]}
        day = timedelta(days=1)
        figures = {
            name: client.get_metric_statistics(
                Namespace="fullft_assets",
                MetricName=name,
                Dimensions=[{"Name": "UseCase", "Value": graph.name}],
                StartTime=datetime.now(UTC) - day,
                EndTime=datetime.now(UTC) + day,
                Period=86_400,
                Statistics=["Maximum"],
            )["Datapoints"][0]["Maximum"]
            for name in names
        }
        assert 0 <= figures.pop("DataAge") < 0.01
        assert figures == {
            "Score": 0.5,
            "LiveAccuracy": 0.75,
            "Drift": 1.0,
            "UsdThisMonth": 12.5,
            "RunningJobs": 0.0,
        }
        # What the dashboard of the template shows.
        template = (Path(__file__).parents[1] / "deploy" / "aws" / "platform.yaml").read_text()
        assert {*re.findall(r'MetricName=\\"(\w+)', template)} == {*figures, "DataAge"}

    def test_a_failed_run_is_sent_once_with_its_link(
        self, graph: CaseGraph, instance: dg.DagsterInstance, hook: Hook
    ) -> None:
        run_id = self.run(graph, instance, "model", fails)
        self.run(graph, instance, "ingest", fails, **{"dagster/will_retry": "true"})
        instance.report_run_canceled(instance.get_run_by_id(self.run(graph, instance, "evaluate", fails)))
        _, cursor = self.tick(graph, instance)
        self.tick(graph, instance, cursor)
        self.tick(graph, instance)
        (body,) = hook.bodies
        assert body["event"] == "run_failed" and body["url"].endswith(f"/runs/{run_id}")
        assert "planted-text" not in json.dumps(body)

    def test_the_title_of_a_run_of_assets_names_them(
        self, graph: CaseGraph, instance: dg.DagsterInstance, hook: Hook
    ) -> None:
        asset = dg.AssetsDefinition.from_op(fails, key_prefix=graph.name)
        job = dg.Definitions(assets=[asset]).resolve_implicit_global_asset_job_def()
        instance.report_run_failed(
            instance.create_run_for_job(job, asset_selection={asset.key}, tags={"use_case": graph.name})
        )
        self.tick(graph, instance)
        assert [body["title"].split(" failed")[0] for body in hook.bodies] == ["the run fails"]

    @pytest.mark.parametrize(
        ("stage", "tags", "failure", "is_on", "sent_of"),
        [
            # Asked for again five times, and by nobody where the sensor was turned off, or the failure is one
            # of the data.
            ("ingest", {"delivery/run_key": "b1-v"}, "infrastructure", True, [6]),
            ("ingest", {"delivery/run_key": "b1-v"}, "infrastructure", False, [1, 2]),
            ("ingest", {"delivery/run_key": "b1-v"}, "data", True, [1, 2]),
            # Resumed three times; then the decision says that a person is needed.
            ("model", {"retraining/evidence": "e"}, "preemption", True, []),
            ("model", {"retraining/evidence": "e"}, "settings", True, [1, 2]),
            # Of no retrain and no delivery, such as an evaluation.
            ("evaluate", {}, "infrastructure", True, [1, 2]),
        ],
    )
    def test_a_run_that_is_started_again_by_itself_is_sent_once_no_other_follows(
        self,
        graph: CaseGraph,
        instance: dg.DagsterInstance,
        hook: Hook,
        stage: str,
        tags: dict[str, str],
        failure: str,
        is_on: bool,
        sent_of: list[int],
    ) -> None:
        @dg.op
        def fails_in_a_way() -> None:
            raise dg.Failure("planted-text", metadata={"failure": failure})

        launcher = f"{graph.name}_launcher"
        self.state(instance, launcher, status=InstigatorStatus.RUNNING if is_on else InstigatorStatus.STOPPED)
        sent, cursor = [], None
        for number in range(1, max(sent_of, default=3) + 1):
            by_itself = {"dagster/sensor_name": launcher, "dagster/run_key": f"k{number}", **tags}
            self.run(graph, instance, stage, fails_in_a_way, **by_itself)
            _, cursor = self.tick(graph, instance, cursor)
            sent += [number] * (len(hook.bodies) - len(sent))
        assert sent == sent_of
        # Nobody starts again what a person has launched.
        self.run(
            graph,
            instance,
            stage,
            fails_in_a_way,
            **{key: value for key, value in tags.items() if key == "delivery/run_key"},
        )
        self.tick(graph, instance, cursor)
        assert len(hook.bodies) == len(sent) + 1

    @pytest.mark.parametrize(
        ("job", "is_cancelled"), [("letters_ingest", False), ("letters_ingest", True), ("__ASSET_JOB", False)]
    )
    def test_a_batch_that_a_red_check_holds_back_is_sent_once_however_its_run_ended(
        self, graph: CaseGraph, instance: dg.DagsterInstance, hook: Hook, job: str, is_cancelled: bool
    ) -> None:
        projects.Project(graph.use_case.project_root, graph.name).deliver(
            "unlabelled.jsonl", [{**row, "kind": None} for row in projects.licence_rows(40, skip=100)]
        )
        [batch] = documents.look(
            open_store(graph.use_case, instance), graph.use_case, now=time.time() + 60
        ).cut
        instance.add_dynamic_partitions(f"{graph.name}/batch", [batch.name])
        self.state(instance, f"{graph.name}_new_documents")
        by_itself = {
            "dagster/sensor_name": f"{graph.name}_new_documents",
            "dagster/run_key": "k",
            "delivery/run_key": "k",
        }
        # A run that is launched on the page of an asset has no tag of the use case.
        is_by_hand = job.startswith("__")
        ran = (
            definitions(graph.use_case)
            .resolve_job_def(job)
            .execute_in_process(
                instance=instance,
                partition_key=batch.name,
                raise_on_error=False,
                tags={} if is_by_hand else by_itself,
                asset_selection=[
                    graph.key(name) for name in ("raw_documents", "labeled_examples", "quarantined_examples")
                ]
                if is_by_hand
                else None,
            )
        )
        assert not ran.success, "a blocking check makes its run fail"
        if is_cancelled:
            instance.report_run_canceled(ran.dagster_run)
        _, cursor = self.tick(graph, instance)
        self.tick(graph, instance, cursor)
        (body,) = hook.bodies
        assert (body["event"], body["key"]) == ("gate_closed", f"gate_closed/{ran.run_id}")
        assert (
            body["title"].startswith(f"batch {batch.name} is held back: ")
            and "quarantined_share_is_bounded" in body["title"]
        )

    @pytest.mark.parametrize(("op", "is_by_hand"), [(works, False), (fails, False), (fails, True)])
    @pytest.mark.parametrize(
        ("statuses", "keys"),
        [
            (
                ("feed_broken", "insufficient_data", "feed_broken", "ok", "feed_broken"),
                ["gate_closed/feed_broken/w0", "gate_closed/feed_broken/w4"],
            ),
            (("confirmed", "alarm", "confirmed", "ok", "confirmed"), ["drift/w0", "drift/w4"]),
            (("warming_up", "warming_up", "ok"), ["drift/novel/"]),
        ],
    )
    def test_a_window_is_sent_once_until_one_is_good_however_its_run_ended(
        self,
        graph: CaseGraph,
        instance: dg.DagsterInstance,
        hook: Hook,
        statuses: tuple[Status, ...],
        keys: list[str],
        op: Any,
        is_by_hand: bool,
    ) -> None:
        for number, status in enumerate(statuses):
            partition = f"w{number}"
            self.artifact(
                graph,
                instance,
                "drift_report",
                partition,
                key=partition,
                metadata=manifests.drift(status),
                failed_check="window_matches_reference" if status != "ok" else "",
            )
            tags = {"dagster/partition": partition}
            if is_by_hand:  # on the page of the asset
                asset = dg.asset(key=graph.key("drift_report"))(lambda: 1 / 0)
                job = dg.Definitions(assets=[asset]).resolve_implicit_global_asset_job_def()
                job.execute_in_process(
                    instance=instance, raise_on_error=False, tags=tags, asset_selection=[asset.key]
                )
            else:
                self.run(graph, instance, "monitor", op, **tags)
            self.tick(graph, instance)
        assert [body["key"] for body in hook.bodies if body["event"] != "run_failed"] == keys

    def test_a_damaged_manifest_is_sent_and_keeps_no_other_alert_back(
        self, graph: CaseGraph, instance: dg.DagsterInstance, hook: Hook, tmp_path: Path
    ) -> None:
        store = open_store(graph.use_case, instance)
        manifest = self.artifact(graph, instance, "labeled_examples")
        Path(store.url, manifest.ref, "manifest.json").write_text('{"case": "planted-text')
        damaged = self.run(
            graph,
            instance,
            "ingest",
            self.materializes(graph, manifest, partition="b1"),
            **{"dagster/partition": "b1"},
        )
        store.write_pointer(f"latest/{graph.name}/drift_report/w2", {"planted-text": ""})
        self.run(graph, instance, "monitor", **{"dagster/partition": "w2"})
        self.run(graph, instance, "model", fails)
        _, cursor = self.tick(graph, instance)
        self.tick(graph, instance, cursor)
        first, second, failed = hook.bodies
        assert failed["event"] == "run_failed" and first["event"] == second["event"] == "sensor_failing"
        assert first["url"].endswith(damaged) and first["action"]
        assert re.search("ingest of b1 .*manifest.json: unreadable", first["title"])
        assert re.search("monitor of w2 .*: KeyError at ", second["title"])
        assert "planted-text" not in json.dumps(hook.bodies)

    def test_more_runs_than_a_tick_looks_at_end_in_one_moment(
        self, graph: CaseGraph, instance: dg.DagsterInstance, hook: Hook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fullft_assets.automation.alerts._MAX_RUNS", 2)
        cursor = None
        for _ in range(5):
            self.run(graph, instance, "model", fails)
        time.sleep(1)
        for _ in range(3):
            _, cursor = self.tick(graph, instance, cursor)
        assert len(hook.bodies) == 5

    def test_a_candidate_that_its_run_judged_is_sent_though_another_run_evaluated_since(
        self, graph: CaseGraph, instance: dg.DagsterInstance, hook: Hook
    ) -> None:
        evaluation, _ = (
            self.artifact(
                graph,
                instance,
                "evaluation_report",
                "all",
                key=key,
                metadata=manifests.evaluation(),
                failed_check=f"gate of {key}",
            )
            for key in ("mine", "of the daily evaluation")
        )
        self.run(graph, instance, "model", self.materializes(graph, evaluation))
        self.run(graph, instance, "model")
        self.tick(graph, instance)
        named = [(event, title.rpartition(": ")[2]) for event, title in hook.values("event", "title")]
        assert named == [("gate_closed", "gate of mine")]

    def test_a_release_that_the_audit_closes_is_sent(
        self, graph: CaseGraph, instance: dg.DagsterInstance, hook: Hook
    ) -> None:
        store = open_store(graph.use_case, instance)
        report = self.artifact(graph, instance, "evaluation_report", metadata=manifests.evaluation())
        key = EvaluationMetadata.of(report).checkpoint.split("/")[2]
        outcome = {"outcome": "kept", "sentence": "Not promoted.", "closed_by": "security_audit"}
        store.write_pointer(f"{graph.name}/decisions/{key}", outcome)
        self.run(graph, instance, "model", self.materializes(graph, report))
        self.tick(graph, instance)
        ((event, title, action),) = hook.values("event", "title", "action")
        assert (event, title.split()[-1], action) == ("gate_closed", "security_audit", "run `fullft audit`")

    @pytest.mark.parametrize("name", ["retraining", "alerts"])
    def test_a_sensor_that_fails_at_each_tick_is_sent_once_a_day(
        self, graph: CaseGraph, instance: dg.DagsterInstance, hook: Hook, name: str
    ) -> None:
        state = self.state(instance, f"{graph.name}_{name}")
        for number, status in enumerate(
            [TickStatus.SKIPPED, *[TickStatus.FAILURE] * 5, TickStatus.STARTED, TickStatus.FAILURE]
        ):
            assert len(hook.bodies) == (number > 5)
            at = time.time() - 1_000 + 60 * number
            error = SerializableErrorInfo("planted", [], None) if status == TickStatus.FAILURE else None
            instance.create_tick(
                TickData(
                    state.instigator_origin_id,
                    state.name,
                    InstigatorType.SENSOR,
                    status,
                    at,
                    error=error,
                    selector_id=state.selector_id,
                )
            )
            self.tick(graph, instance)
        ((event, title),) = hook.values("event", "title")
        assert (event, title.split()[0]) == ("sensor_failing", f"letters_{name}")

    def test_a_decision_that_needs_a_person_is_sent_also_after_the_next_one(
        self, graph: CaseGraph, instance: dg.DagsterInstance, hook: Hook
    ) -> None:
        for age, action, reason in (
            (120, "alert", "the budget: it is too small"),
            (60, "wait", "nothing new"),
        ):
            self.decide(
                graph,
                instance,
                Decision(action=action, reasons=[reason], evidence="budget", instruction="raise it"),
                age,
            )
        self.tick(graph, instance)
        self.tick(graph, instance)
        assert hook.values("event", "title", "action") == [
            (
                "decision_needed",
                "the budget: it is too small",
                "raise it",
            )
        ]

    def test_requests_for_labels_of_two_kinds_have_one_instruction(
        self, graph: CaseGraph, instance: dg.DagsterInstance, hook: Hook
    ) -> None:
        self.decide(
            graph, instance, policy._decide(score_drop=0.1, **policy._windows("confirmed", "confirmed")), 60
        )
        self.tick(graph, instance)
        (body,) = hook.bodies
        assert body["title"].count("only 0 of 100 new") == 2
        assert not re.search("export|label (more|production)", body["title"])
        assert body["action"] == "label production documents that `fullft export CASE FILE --random` draws"

    @pytest.mark.parametrize(
        ("signal", "num_errors", "title"),
        [
            ("live_drop", 0.0, "accuracy is 0.100 lower on labelled production documents than at release"),
            ("score_drop", 2.5, "score fell by 0.100 on newer rows"),
            ("score_drop", 2.4, None),
        ],
    )
    def test_a_drop_is_sent_once_however_its_size_changes_unless_it_may_be_chance(
        self,
        graph: CaseGraph,
        instance: dg.DagsterInstance,
        hook: Hook,
        signal: str,
        num_errors: float,
        title: str | None,
    ) -> None:
        self.decide_on_two_drops(graph, instance, signal, num_drop_errors=num_errors)
        assert hook.values("event", "title") == (
            [] if title is None else [("quality_drop", f"the champion's {title}")]
        )

    @pytest.mark.parametrize(
        ("promoted_ago", "is_in_flight", "num_sent"), [(600, 0, 1), (90, 0, 1), (30, 0, 0), (600, 1, 0)]
    )
    def test_none_is_sent_between_a_checkpoint_and_its_release_nor_of_the_champion_before(
        self,
        graph: CaseGraph,
        instance: dg.DagsterInstance,
        hook: Hook,
        promoted_ago: float,
        is_in_flight: int,
        num_sent: int,
    ) -> None:
        self.artifact(graph, instance, "finetuned_checkpoint", "all")
        signals = {"num_runs_in_flight": is_in_flight}
        self.decide_on_two_drops(
            graph, instance, "live_drop", num_drop_errors=0.0, promoted_ago=promoted_ago, **signals
        )
        assert len(hook.bodies) == num_sent

    def decide_on_two_drops(
        self,
        graph: CaseGraph,
        instance: dg.DagsterInstance,
        signal: str,
        *,
        num_drop_errors: float,
        promoted_ago: float = 600,
        **others: Any,
    ) -> None:
        """Record two decisions whose signal differs in size, each with a tick after it."""
        manifests.promote(
            open_store(graph.use_case, instance), graph.name, "c", promoted_at=time.time() - promoted_ago
        )
        for age, drop in ((120, 0.1), (60, 0.11)):
            measured: dict[str, Any] = {signal: drop, "num_drop_errors": num_drop_errors, **others}
            self.decide(
                graph, instance, Decision(action="wait", reasons=["labels"], evidence=""), age, **measured
            )
            self.tick(graph, instance)

    def test_a_feed_that_fills_a_window_of_many_rows_is_not_silent(
        self, tmp_path: Path, instance: dg.DagsterInstance, hook: Hook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monitoring = {"path": "data/letters/production", "window": {"rows": 300}}
        sections: dict[str, Any] = {"channels": {"webhook": {"url": "env:ALERT_HOOK"}}, "silent_hours": 48}
        project = projects.create(tmp_path / "q", rows=5, alerts=sections, monitoring=monitoring)
        graph = CaseGraph(project.use_case())
        instance.report_runless_asset_event(
            dg.AssetMaterialization(graph.key("production_documents"), partition="w1")
        )
        start, store = time.time(), open_store(graph.use_case, instance)
        for day in (1, 2, 3, 4):
            file = projects.write_rows(
                project.production / f"{day}.jsonl", projects.licence_rows(20, skip=20 * day)
            )
            os.utime(file, (start + day * 24 * 3600,) * 2)
            now = start + (day + 0.5) * 24 * 3600
            assert documents.look(store, graph.use_case, "window", now=now).cut == []
            monkeypatch.setattr("fullft_assets.automation.alerts.time.time", lambda now=now: now)
            self.tick(graph, instance)
        assert hook.bodies == []
        for hours in (47, 49, 50):
            monkeypatch.setattr(
                "fullft_assets.automation.alerts.time.time",
                lambda hours=hours: start + (4 * 24 + hours) * 3600,
            )
            self.tick(graph, instance)
        ((title,),) = hook.values("title")
        assert title.endswith(" data/letters/production for 48 hours")

    def test_a_channel_that_is_down_keeps_the_cursor(
        self, graph: CaseGraph, instance: dg.DagsterInstance, hook: Hook
    ) -> None:
        self.run(graph, instance, "model", fails)
        hook.status = 503
        with pytest.raises(dg.Failure, match="503"):
            self.tick(graph, instance)
        hook.status = 200
        self.tick(graph, instance)
        assert len(hook.bodies) == 2
