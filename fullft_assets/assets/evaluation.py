"""evaluation: training_snapshot, cheaper_baselines, pilot_run, finetuned_checkpoint -> evaluation_report."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import dagster as dg

from fullft_assets import evaluation, release
from fullft_assets.assets.case import Case, markdown_table, sentences
from fullft_assets.evaluation import external
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.evaluation.verdict import check_specs
from fullft_assets.examples.labels import may_be_named
from fullft_assets.planning import worth
from fullft_assets.resources import one_line_errors, report_link
from fullft_assets.store import Manifest, Store, artifact_key, digest
from fullft_assets.task import task_of

_INPUTS = ("training_snapshot", "cheaper_baselines", "pilot_run", "finetuned_checkpoint")
#: Metadata is stored in the event log.
_MAX_PICTURE_BYTES = 60_000
_PICTURE = re.compile(r"!\[(?P<title>[^\]]*)\]\((?P<path>pictures/[^)]+)\)")


def build(case: Case) -> list[dg.AssetsDefinition]:
    """Return the assets of this stage."""
    has_row_labels = task_of(case.settings.examples).target in ("label", "labels")
    specs = check_specs(case.settings.release, case.settings.planning, has_row_labels=has_row_labels)
    # What a gain is worth is judged here, though its settings are those of the plan.
    asked = worth.asked(case.settings)
    worth_version = f"-{digest(asked)[:8]}" if asked else ""

    @dg.asset(
        key=case.key("evaluation_report"),
        ins={name: dg.AssetIn(case.key(name), input_manager_key=case.io_key) for name in _INPUTS},
        description=(
            "How good, how sure, where weak; was full fine-tuning justified; better than the champion?"
        ),
        code_version=case.code_version(evaluation.VERSION + worth_version, "evaluation", "release"),
        kinds={"huggingface", "scikitlearn"},
        check_specs=case.checks("evaluation_report", specs),
        pool=case.settings.launcher_of("evaluation").pool,
        **case.shared(launches=True),
    )
    def evaluation_report(
        context: dg.AssetExecutionContext,
        training_snapshot: Manifest,
        cheaper_baselines: Manifest,
        pilot_run: Manifest,
        finetuned_checkpoint: Manifest,
    ):
        store = case.store(context)
        with one_line_errors(store, case.name):
            for upstream in (training_snapshot, finetuned_checkpoint):
                upstream.require_green("evaluation_report")
            inputs = {
                "training_snapshot": training_snapshot,
                "cheaper_baselines": cheaper_baselines,
                "pilot_run": pilot_run,
                "finetuned_checkpoint": finetuned_checkpoint,
            }
            against = release.judged_against(store, case.name, finetuned_checkpoint)
            for name, ref in ((evaluation.CHAMPION, against.champion), (evaluation.ANCHOR, against.anchor)):
                if ref is not None:
                    inputs[name] = store.load(ref)
            inputs |= {
                f"{evaluation.SEED_RUN}{number}": store.load(ref)
                for number, ref in enumerate(against.seed_runs)
            }
            inputs |= external.keep(store, case.name, case.settings, case.use_case.project_root)
            key = evaluation_key(case, inputs)
            manifest = case.find_or_launch(context, "evaluation", "evaluation_report", key, inputs)
        return case.result(manifest, "evaluation_report", store, _shown(case, store, manifest))

    return [evaluation_report]


def evaluation_key(case: Case, inputs: dict[str, Manifest]) -> str:
    """Return the key of the decision on a candidate: candidate, test rows, incumbent and gates."""
    settings = case.settings.model_dump(include={"evaluation", "release"}, mode="json")
    settings["worth"] = worth.asked(case.settings)
    digests = {name: manifest.content_digest for name, manifest in inputs.items()}
    return artifact_key("evaluation_report", evaluation.VERSION, settings, digests, case.settings.seed)


def _shown(case: Case, store: Store, manifest: Manifest) -> dict[str, Any]:
    """Return the verdict, the systems side by side, and the report: readable in the UI, and as a file.

    The event log is for ever and has many readers: where labels may be texts, neither the report nor its
    pictures, which name them, go there.
    """
    metadata, folder = EvaluationMetadata.of(manifest), store.folder(manifest)
    rows = [
        {"system": system or evaluation.FINETUNED}
        | {
            metric: score
            for metric in metadata.metrics
            if (score := metadata.score(system, metric)) is not None
        }
        for system in (None, *metadata.systems)
    ]
    shown: dict[str, Any] = {
        "verdict": sentences(metadata.verdict),
        "justification": sentences(f"{metadata.justification} {metadata.worth_sentence}"),
        "systems": dg.MetadataValue.md(markdown_table(rows)),
        "summary": dg.MetadataValue.md((folder / "summary.md").read_text(encoding="utf-8")),
    }
    if may_be_named(json.loads((folder / "evaluation.json").read_bytes()).get("labels", [])):
        shown["report"] = dg.MetadataValue.md(_with_pictures(folder))
    shown["report_file"] = report_link(case.use_case, store, manifest)
    return shown


def _with_pictures(folder: Path) -> str:
    """Return the Markdown report with its pictures inside; a larger one is only named."""

    def inside(link: re.Match) -> str:
        data = (folder / link["path"]).read_bytes()
        if len(data) > _MAX_PICTURE_BYTES:
            return f"*{link['title']}: see report_file*"
        return f"![{link['title']}](data:image/png;base64,{base64.b64encode(data).decode()})"

    return _PICTURE.sub(inside, (folder / "report.md").read_text(encoding="utf-8"))
