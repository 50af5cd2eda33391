"""What all assets of one use case share: keys, partitions, group, resources, and how a manifest is shown.

Dagster's event log is for ever, is backed up and is read by more people than the store. The models of the
metadata mark what it may not have: see `store.metadata.Private`.
"""

import base64
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypedDict

import dagster as dg

from fullft_assets.artifacts import (
    BATCH_PREDICTIONS,
    CHAMPION_MODEL,
    CHEAPER_BASELINES,
    DRIFT_REPORT,
    EVALUATION_REPORT,
    FEASIBILITY_PLAN,
    FINETUNED_CHECKPOINT,
    LABELED_EXAMPLES,
    LIVE_QUALITY,
    PILOT_RUN,
    PRODUCTION_DOCUMENTS,
    QUARANTINED_EXAMPLES,
    RAW_DOCUMENTS,
    TOKENIZED_CHUNKS,
    TOKENIZER_AUDIT,
    TRAINING_SNAPSHOT,
)
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.chunks import AuditMetadata, ChunksMetadata, ingestion
from fullft_assets.documents import RawMetadata
from fullft_assets.escaping import visible
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.examples import ExamplesMetadata, QuarantineMetadata
from fullft_assets.examples.labels import may_be_named
from fullft_assets.job import Job
from fullft_assets.markdown import escape_name
from fullft_assets.monitoring import DriftMetadata, LiveMetadata, PredictionsMetadata
from fullft_assets.planning import BaselinesMetadata, PilotMetadata, PlanMetadata
from fullft_assets.release.model_card import ChampionMetadata
from fullft_assets.resources import (
    ARTIFACT,
    launcher_resource,
    manifest_io_manager,
    one_line_errors,
    place_in,
    store_resource,
)
from fullft_assets.resources.driver import LaunchDriver
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store import CheckOutcome, Manifest, Store, digest
from fullft_assets.store.checks import CheckSpec
from fullft_assets.store.metadata import Metadata, Private
from fullft_assets.task import task_of

#: The model of each asset's metadata; an asset that is not here is shown nowhere.
MODELS: dict[str, type[Metadata]] = {
    RAW_DOCUMENTS: RawMetadata,
    PRODUCTION_DOCUMENTS: RawMetadata,
    LABELED_EXAMPLES: ExamplesMetadata,
    QUARANTINED_EXAMPLES: QuarantineMetadata,
    TOKENIZED_CHUNKS: ChunksMetadata,
    TOKENIZER_AUDIT: AuditMetadata,
    TRAINING_SNAPSHOT: SnapshotMetadata,
    FEASIBILITY_PLAN: PlanMetadata,
    CHEAPER_BASELINES: BaselinesMetadata,
    PILOT_RUN: PilotMetadata,
    FINETUNED_CHECKPOINT: CheckpointMetadata,
    EVALUATION_REPORT: EvaluationMetadata,
    CHAMPION_MODEL: ChampionMetadata,
    BATCH_PREDICTIONS: PredictionsMetadata,
    DRIFT_REPORT: DriftMetadata,
    LIVE_QUALITY: LiveMetadata,
}


def outside_the_store(model: type[Metadata], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata without what its model marks as private, and with what is shown in its place."""
    marks = {name: model.private(name, value) for name, value in metadata.items()}
    labels = {
        label
        for name, value in metadata.items()
        if marks[name] is Private.LABELS
        for label in _labels_in(value)
    }
    is_named = may_be_named(labels)
    public: dict[str, Any] = {}
    for name, value in metadata.items():
        match marks[name]:
            case None:
                public[name] = value
            case Private.FILES if value:
                public.setdefault(f"num_{name}", len(value))
            case Private.BY_FILE:
                public[name] = dict(Counter(value.values()))
            case Private.LABELS if is_named:
                public[name] = _with_visible(value)
    if labels and not is_named:
        public["num_labels"] = len(labels)
    return public


def _labels_in(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        yield from (entry["label"] if isinstance(entry, dict) else entry for entry in value)
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from entry if isinstance(entry, dict) else (name,)


def _with_visible(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list):
        return [_with_visible(entry) for entry in value]
    return (
        {visible(name): _with_visible(entry) for name, entry in value.items()}
        if isinstance(value, dict)
        else value
    )


_WIDTH = 300
_HEIGHT = 60
#: Points drawn: about 40 keep the SVG below the 700 bytes that render inline.
_POINTS = 40


def sparkline(values: Sequence[float], caption: str) -> dg.MetadataValue:
    """Return Markdown with an inline SVG of a curve, its first and last value in the caption."""
    drawn_values = [*values[: -1 : max(1, -(-len(values) // _POINTS))], values[-1]]
    low = min(drawn_values)
    span = (max(drawn_values) - low) or 1.0
    last = max(1, len(drawn_values) - 1)
    points = " ".join(
        f"{i * _WIDTH / last:.0f},{_HEIGHT - 4 - (value - low) / span * (_HEIGHT - 8):.0f}"
        for i, value in enumerate(drawn_values)
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}">'
        f'<polyline fill="none" stroke="#1f77b4" stroke-width="2" points="{points}"/></svg>'
    )
    picture = base64.b64encode(svg.encode()).decode()
    return dg.MetadataValue.md(
        f"{caption}: {values[0]:.3g} to {values[-1]:.3g}\n\n![{caption}](data:image/svg+xml;base64,{picture})"
    )


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
class CaseGraph:
    """One use case as Dagster sees it: keys, partitions, resources and checks of its part of the graph."""

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
    def has_live_quality(self) -> bool:
        """Return whether late labels measure the champion on production: they do where it predicts one label
        of a document.
        """
        return task_of(self.settings.examples).has_one_label and self.has_windows

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

    @contextmanager
    def open_store(self, context: Context) -> Iterator[Store]:
        """Yield the store that is injected for this use case; errors are as Dagster shows them: see
        `one_line_errors`.
        """
        with one_line_errors(self.store(context), self.name):
            yield self.store(context)

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
        sections_dump = self.settings.model_dump(
            include={*sections, "base_model", "trust_remote_code", "seed"}, mode="json"
        )
        return f"{version}-{digest(sections_dump)[:8]}"

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
    ) -> Manifest:
        """Return the artifact of this key; where there is none, launch the workload that writes it.

        Raises:
            WorkloadError: the workload failed.
        """
        store = self.store(context)
        manifest = store.find(self.name, stage, key)
        if manifest is None:
            manifest = self.launcher(context).run(
                context, workload, self.job(stage, key, store, inputs), store
            )
        return manifest

    def ingest(self, context: dg.AssetExecutionContext) -> None:
        """Make the batch's artifacts by the workload that `compute.ingestion` asks for; without that setting,
        do nothing.

        An asset of a data stage then finds them in the store. An artifact that is not there, it makes in the
        run.

        Raises:
            WorkloadError: the workload failed.
        """
        if self.settings.compute.ingestion is not None:
            batch = context.partition_key
            store = self.store(context)
            key = ingestion.key(self.use_case, batch)
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
        ui_metadata: dict[str, Any] | None = None,
        *,
        checks: Sequence[CheckOutcome] = (),
    ) -> dg.MaterializeResult[Manifest]:
        """Return the result of an asset for an artifact: its metadata (`ui_metadata` first), its data
        version, its check results and further checks.
        """
        ui_metadata = ui_metadata or {}
        public = outside_the_store(MODELS[asset], manifest.metadata)
        metadata = {
            **ui_metadata,
            **plain_metadata({name: value for name, value in public.items() if name not in ui_metadata}),
            "path": place_in(store, manifest.ref),
            ARTIFACT: manifest.ref,
            "made_in_seconds": round(manifest.seconds, 2),
        }
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

    def check_evaluation(
        self, outcome: CheckOutcome, asset: str, *, blocking: bool
    ) -> dg.AssetCheckEvaluation:
        """Return a check outcome as an event, for what reports it without a run of the asset."""
        result = self.check_result(outcome, asset)
        return dg.AssetCheckEvaluation(
            asset_key=self.key(asset),
            check_name=outcome.name,
            passed=result.passed,
            severity=result.severity,
            description=result.description,
            metadata=result.metadata,
            blocking=blocking,
        )


def plain_metadata(values: dict[str, Any]) -> dict[str, Any]:
    """Return metadata that Dagster can plot or show: numbers and text as they are, small structures as
    tables.
    """
    metadata: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or (isinstance(value, str | dict | list) and not value):
            continue
        if isinstance(value, list) and all(isinstance(row, dict) for row in value):
            metadata[name] = dg.MetadataValue.md(markdown_table(value))
        elif isinstance(value, dict) and all(isinstance(v, int | float | str) for v in value.values()):
            # The numbers first: the UI cuts off the right of a wide table.
            metadata[name] = dg.MetadataValue.md(markdown_table([{name: v, "": k} for k, v in value.items()]))
        elif isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
            metadata[name] = ", ".join(map(str, value[:20])) + (
                f" and {len(value) - 20:,} more" if len(value) > 20 else ""
            )
        elif isinstance(value, dict | list):
            metadata[name] = dg.MetadataValue.json(value)
        elif isinstance(value, str) and len(value.split()) > 1 and len(value) > _SENTENCE_CHARACTERS:
            metadata[name] = sentences(value)
        elif isinstance(value, float):
            metadata[name] = float(f"{value:.5g}") if abs(value) < 10_000 else round(value)
        else:
            metadata[name] = value
    return metadata


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table short enough that the UI shows it inline; rows that do not fit are counted."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for number, row in enumerate(rows):
        values = [row.get(column, "") for column in columns]
        cells = [
            f"{value:,}"
            if isinstance(value, int)
            else f"{value:.4g}"
            if isinstance(value, float)
            else str(value).replace("\n", " ")
            for value in values
        ]
        line = f"| {' | '.join(map(escape_name, cells))} |"
        if sum(map(len, lines)) + len(line) + len(lines) > _INLINE_CHARACTERS - 40:
            lines.append(f"\n{len(rows) - number:,} more rows")
            break
        lines.append(line)
    return "\n".join(lines)


def sentences(text: str) -> dg.MarkdownMetadataValue:
    """Return text in lines that the UI does not cut off."""
    lines = textwrap.wrap(text, _SENTENCE_CHARACTERS, break_long_words=False, break_on_hyphens=False)
    return dg.MetadataValue.md("```text\n" + "\n".join(lines) + "\n```")
