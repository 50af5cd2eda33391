"""What all assets of one use case share: keys, partitions, group, resources, and how a manifest is shown."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypedDict

import dagster as dg

from fullft_assets.assets.shown_metadata import MODELS, outside_the_store
from fullft_assets.chunks import ingestion
from fullft_assets.jobs import Job
from fullft_assets.launchers.driver import LaunchDriver
from fullft_assets.markdown import escape_name
from fullft_assets.resources import ARTIFACT, launcher_resource, manifest_io_manager, store_resource
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import CheckOutcome, Manifest, Store, digest
from fullft_assets.store.checks import CheckSpec
from fullft_assets.task import task_of

#: Every context of Dagster that carries our resources.
Context = (
    dg.OpExecutionContext
    | dg.AssetExecutionContext
    | dg.AssetCheckExecutionContext
    | dg.SensorEvaluationContext
    | dg.ScheduleEvaluationContext
)

#: Dagster shows Markdown and JSON inline below this many characters, else as a link.
_INLINE_CHARACTERS = 1_000
#: A table of metadata grows as wide as its longest path, past the edge of the page; a sentence is wrapped
#: before that.
_SENTENCE_CHARACTERS = 44


class AssetArguments(TypedDict):
    """Arguments of `dg.asset` that all assets of a use case have."""

    group_name: str
    io_manager_key: str
    required_resource_keys: set[str]


@dataclass(frozen=True)
class Case:
    """One use case as Dagster sees it."""

    use_case: UseCase

    @property
    def name(self) -> str:
        """Name of the use case: first part of its asset keys, and its group."""
        return self.use_case.name

    @property
    def settings(self) -> UseCaseSettings:
        """The use case's settings."""
        return self.use_case.settings

    @property
    def batches(self) -> dg.DynamicPartitionsDefinition:
        """Partitions of the data stages; the name is global to an instance, so it starts with the case."""
        return dg.DynamicPartitionsDefinition(name=f"{self.name}/batch")

    @property
    def windows(self) -> dg.DynamicPartitionsDefinition:
        """Partitions of the monitoring stage."""
        return dg.DynamicPartitionsDefinition(name=f"{self.name}/window")

    @property
    def freshness(self) -> dg.FreshnessPolicy | None:
        """When Dagster shows what is delivered as overdue: after `alerts.silent_hours`, when a silent feed is
        reported, too.
        """
        hours = self.settings.alerts.silent_hours
        # Dagster takes no less than a minute.
        return (
            None
            if hours is None
            else dg.FreshnessPolicy.time_window(fail_window=timedelta(minutes=max(1.0, 60 * hours)))
        )

    @property
    def look_seconds(self) -> int:
        """Seconds between two ticks of the sensors that look at what runs have made."""
        return min(180, 6 * self.settings.documents.poll_seconds)

    @property
    def has_windows(self) -> bool:
        """Return whether production delivers documents."""
        return self.settings.monitoring.path is not None

    @property
    def is_monitored(self) -> bool:
        """Return whether production documents are compared with what a model learned on: only some tasks can
        detect drift.
        """
        return task_of(self.settings.examples).detects_drift and self.has_windows

    @property
    def last_of_window(self) -> str:
        """Name of the asset with which a window is done."""
        return "drift_report" if self.is_monitored else "batch_predictions"

    @property
    def store_key(self) -> str:
        """Resource key of this use case's store."""
        return f"{self.name}_store"

    @property
    def launcher_key(self) -> str:
        """Resource key of what runs this use case's workloads."""
        return f"{self.name}_launcher"

    @property
    def io_key(self) -> str:
        """Resource key of the IO manager of this use case's store."""
        return f"{self.name}_artifacts"

    def resources(self) -> dict[str, dg.ResourceDefinition]:
        """Return the resources as the YAML chooses them, by key; a test or a deployment may put others in
        their place.
        """
        return {
            self.store_key: store_resource(self.use_case),
            self.launcher_key: launcher_resource(self.settings),
            self.io_key: manifest_io_manager(self.name, self.store_key),
        }

    def store(self, context: Context) -> Store:
        """Return the store that is injected for this use case."""
        return getattr(context.resources, self.store_key)

    def launcher(self, context: Context) -> LaunchDriver:
        """Return the driver of launchers that is injected for this use case."""
        return getattr(context.resources, self.launcher_key)

    def key(self, asset: str) -> dg.AssetKey:
        """Return the key of one of the use case's assets."""
        return dg.AssetKey([self.name, asset])

    def shared(self, *, launches: bool = False) -> AssetArguments:
        """Return the arguments that every asset of this use case has.

        Args:
            launches: whether the asset launches a workload.
        """
        return {
            "group_name": self.name,
            "io_manager_key": self.io_key,
            "required_resource_keys": {self.store_key, self.launcher_key} if launches else {self.store_key},
        }

    def code_version(self, version: str, *sections: str) -> str:
        """Return a stage's code version: a YAML edit of its sections makes its assets stale in the UI."""
        chosen = self.settings.model_dump(
            include={*sections, "base_model", "trust_remote_code", "seed"}, mode="json"
        )
        return f"{version}-{digest(chosen)[:8]}"

    def checks(self, asset: str, specs: Sequence[CheckSpec]) -> list[dg.AssetCheckSpec]:
        """Return the checks of an asset for Dagster."""
        return [
            dg.AssetCheckSpec(
                name=spec.name, asset=self.key(asset), description=spec.description, blocking=spec.blocking
            )
            for spec in specs
        ]

    def job(
        self, stage: str, key: str, store: Store, inputs: dict[str, Manifest], batch: str | None = None
    ) -> Job:
        """Return the job file's content for a workload that writes this stage's artifact."""
        return Job(
            case=self.name,
            stage=stage,
            key=key,
            project_root=str(self.use_case.project_root),
            store_url=store.url,
            kms_key=store.kms_key,
            settings=self.settings,
            inputs={name: manifest.ref for name, manifest in inputs.items()},
            batch=batch,
        )

    def find_or_launch(
        self,
        context: dg.AssetExecutionContext,
        workload: str,
        stage: str,
        key: str,
        inputs: dict[str, Manifest],
        batch: str | None = None,
    ) -> Manifest:
        """Return the artifact of this key; where there is none, launch the workload that writes it.

        Raises:
            WorkloadError: the workload failed.
        """
        store = self.store(context)
        manifest = store.find(self.name, stage, key)
        if manifest is None:
            job = self.job(stage, key, store, inputs, batch)
            manifest = self.launcher(context).run(context, workload, job, store)
        return manifest

    def ingest(self, context: dg.AssetExecutionContext) -> None:
        """Have the batch's artifacts made where `compute.ingestion` says; nothing where it says nothing.

        An asset of a data stage then finds them in the store; whatever it does not find, it makes in the run,
        as it does without.

        Raises:
            WorkloadError: the workload failed.
        """
        if self.settings.compute.ingestion is not None:
            batch = context.partition_key
            store, key = self.store(context), ingestion.key(self.use_case, batch)
            sign = store.find(self.name, ingestion.STAGE, key)
            # Retention may have removed the artifacts that it names.
            if sign is None or any(
                store.find(*ref.split("/")[:3]) is None
                for ref in ingestion.IngestedMetadata.of(sign).made.values()
            ):
                self.launcher(context).run(
                    context, "ingestion", self.job(ingestion.STAGE, key, store, {}, batch), store
                )

    def result(
        self,
        manifest: Manifest,
        asset: str,
        store: Store,
        shown: dict[str, Any] | None = None,
        *,
        checks: Sequence[CheckOutcome] = (),
    ) -> dg.MaterializeResult[Manifest]:
        """Return what Dagster shows of an artifact: metadata (`shown` first), data version, its check results
        and further ones.
        """
        shown = shown or {}
        visible = outside_the_store(MODELS[asset], manifest.metadata)
        plain = plain_metadata({name: value for name, value in visible.items() if name not in shown})
        metadata = {**shown, **plain}
        if store.is_local:
            metadata["path"] = dg.MetadataValue.path(str(Path(store.url, manifest.ref)))
        else:
            metadata["path"] = dg.MetadataValue.url(f"{store.url}/{manifest.ref}")
        metadata[ARTIFACT] = manifest.ref
        metadata["made_in_seconds"] = round(manifest.seconds, 2)
        return dg.MaterializeResult(
            value=manifest,
            asset_key=self.key(asset),
            metadata=metadata,
            data_version=dg.DataVersion(manifest.content_digest),
            check_results=[self.check_result(outcome, asset) for outcome in (*manifest.checks, *checks)],
        )

    def check_result(self, outcome: CheckOutcome, asset: str) -> dg.AssetCheckResult:
        """Return a check outcome for Dagster."""
        return dg.AssetCheckResult(
            check_name=outcome.name,
            asset_key=self.key(asset),
            passed=outcome.passed,
            severity=dg.AssetCheckSeverity.ERROR
            if outcome.severity == "error"
            else dg.AssetCheckSeverity.WARN,
            description=outcome.description or None,
            metadata=plain_metadata(outcome.metadata),
        )


def plain_metadata(values: dict[str, Any]) -> dict[str, Any]:
    """Return metadata that Dagster can plot or show: numbers and text as they are, small structures as
    tables.
    """
    shown: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or (isinstance(value, str | dict | list) and not value):
            continue
        if isinstance(value, list) and all(isinstance(row, dict) for row in value):
            shown[name] = dg.MetadataValue.md(markdown_table(value))
        elif isinstance(value, dict) and all(isinstance(v, int | float | str) for v in value.values()):
            # The numbers first: the UI cuts off the right of a wide table.
            shown[name] = dg.MetadataValue.md(markdown_table([{name: v, "": k} for k, v in value.items()]))
        elif isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
            shown[name] = ", ".join(map(str, value[:20])) + (
                f" and {len(value) - 20:,} more" if len(value) > 20 else ""
            )
        elif isinstance(value, dict | list):
            shown[name] = dg.MetadataValue.json(value)
        elif isinstance(value, str) and len(value.split()) > 1 and len(value) > _SENTENCE_CHARACTERS:
            shown[name] = sentences(value)
        elif isinstance(value, float):
            shown[name] = float(f"{value:.5g}") if abs(value) < 10_000 else round(value)
        else:
            shown[name] = value
    return shown


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table short enough that the UI shows it inline; rows that do not fit are counted."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for number, row in enumerate(rows):
        line = "| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |"
        if sum(map(len, lines)) + len(line) + len(lines) > _INLINE_CHARACTERS - 40:
            lines.append(f"\n{len(rows) - number:,} more rows")
            break
        lines.append(line)
    return "\n".join(lines)


def sentences(text: str) -> dg.MarkdownMetadataValue:
    """Return text in lines that the UI does not cut off."""
    lines = textwrap.wrap(text, _SENTENCE_CHARACTERS, break_long_words=False, break_on_hyphens=False)
    return dg.MetadataValue.md("```text\n" + "\n".join(lines) + "\n```")


def _cell(value: Any) -> str:
    text = (
        f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
    )
    return escape_name(text.replace("\n", " "))
