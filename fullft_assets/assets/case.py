"""What all assets of one use case share: keys, partitions, group, store, launcher, and how a manifest is shown."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from fullft_assets.jobs import Job
from fullft_assets.launchers.local import LocalLauncher
from fullft_assets.resources import open_store
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest, Store, digest

#: Dagster shows Markdown and JSON inline below this many characters, else as a link.
_INLINE_CHARACTERS = 1_000
#: A table of metadata grows as wide as its longest path, past the edge of the page; a sentence is wrapped before that.
_SENTENCE_CHARACTERS = 44


@dataclass(frozen=True)
class Case:
    """One use case in Dagster's words."""

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
    def is_monitored(self) -> bool:
        """Return whether production documents are compared with what a model learned on: drift is known of texts with one label."""
        return self.settings.examples.has_one_label and self.settings.monitoring.path is not None

    @property
    def io_key(self) -> str:
        """Resource key of the IO manager of this use case's store."""
        return f"{self.name}_artifacts"

    def key(self, asset: str) -> dg.AssetKey:
        """Return the key of one of the use case's assets."""
        return dg.AssetKey([self.name, asset])

    def store(self, instance: dg.DagsterInstance) -> Store:
        """Return the use case's store."""
        return open_store(self.use_case, instance)

    def shared(self) -> dict[str, Any]:
        """Return the arguments that every asset of this use case has."""
        return {
            "group_name": self.name,
            "owners": self.settings.owners or None,
            "io_manager_key": self.io_key,
        }

    def code_version(self, version: str, *sections: str) -> str:
        """Return a stage's code version: a YAML edit of its sections makes its assets stale in the UI."""
        chosen = self.settings.model_dump(include={*sections, "base_model", "trust_remote_code", "seed"}, mode="json")
        return f"{version}-{digest(chosen)[:8]}"

    def checks(self, asset: str, specs: Sequence[tuple[str, str, bool]]) -> list[dg.AssetCheckSpec]:
        """Return check specs of an asset from (name, description, blocking)."""
        return [
            dg.AssetCheckSpec(name=name, asset=self.key(asset), description=description, blocking=blocking)
            for name, description, blocking in specs
        ]

    def job(self, stage: str, key: str, instance: dg.DagsterInstance, inputs: dict[str, Manifest]) -> Job:
        """Return the job file's content for a workload that writes this stage's artifact."""
        store = self.store(instance)
        return Job(
            case=self.name,
            stage=stage,
            key=key,
            project_root=str(self.use_case.project_root),
            store_url=store.url,
            store_options=store.options,
            settings=self.settings,
            inputs={name: manifest.ref for name, manifest in inputs.items()},
        )

    def launcher(self) -> LocalLauncher:
        """Return the launcher that the YAML chose."""
        return LocalLauncher(self.settings.launcher)

    def result(self, manifest: Manifest, asset: str, store: Store, shown: dict[str, Any] | None = None) -> dg.MaterializeResult[Manifest]:
        """Return what Dagster shows of an artifact: metadata (`shown` first), data version, check results."""
        shown = shown or {}
        plain = plain_metadata({name: value for name, value in manifest.metadata.items() if name not in shown})
        metadata = {**shown, **plain}
        if store.is_local:
            metadata["path"] = dg.MetadataValue.path(str(Path(store.url, manifest.ref)))
        else:
            metadata["path"] = dg.MetadataValue.url(f"{store.url}/{manifest.ref}")
        metadata["made_in_seconds"] = round(manifest.seconds, 2)
        return dg.MaterializeResult(
            value=manifest,
            asset_key=self.key(asset),
            metadata=metadata,
            data_version=dg.DataVersion(manifest.content_digest),
            check_results=[self.check_result(outcome, asset) for outcome in manifest.checks],
        )

    def check_result(self, outcome: Any, asset: str) -> dg.AssetCheckResult:
        """Return a check outcome in Dagster's words."""
        return dg.AssetCheckResult(
            check_name=outcome.name,
            asset_key=self.key(asset),
            passed=outcome.passed,
            severity=dg.AssetCheckSeverity.ERROR if outcome.severity == "error" else dg.AssetCheckSeverity.WARN,
            description=outcome.description or None,
            metadata=plain_metadata(outcome.metadata),
        )


def plain_metadata(values: dict[str, Any]) -> dict[str, Any]:
    """Return metadata that Dagster can plot or show: numbers and text as they are, small structures as tables."""
    shown: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or (isinstance(value, str | dict | list) and not value):
            continue
        if isinstance(value, list) and all(isinstance(row, dict) for row in value):
            shown[name] = dg.MetadataValue.md(markdown_table(value))
        elif isinstance(value, dict) and all(isinstance(v, int | float | str) for v in value.values()):
            shown[name] = dg.MetadataValue.md(markdown_table([{"": k, name: v} for k, v in value.items()]))
        elif isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
            shown[name] = ", ".join(map(str, value[:20])) + (f" and {len(value) - 20:,} more" if len(value) > 20 else "")
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
    """Return text in lines that the UI shows whole."""
    lines = textwrap.wrap(text, _SENTENCE_CHARACTERS, break_long_words=False, break_on_hyphens=False)
    return dg.MetadataValue.md("```text\n" + "\n".join(lines) + "\n```")


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
