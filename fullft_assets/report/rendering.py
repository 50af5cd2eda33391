"""Renders an evaluation by its task's templates: one HTML file with the pictures in it, and Markdown beside
its pictures.

Texts of test rows and names of their groups only appear in the HTML: the Markdown goes to Dagster's event
log, which nothing is erased from.
"""

import base64
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullft_assets.artifacts import CHEAPER_BASELINES, FINETUNED_CHECKPOINT, REPORT_PAGE, TRAINING_SNAPSHOT
from fullft_assets.checkpoint import lineage
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.durations import duration
from fullft_assets.evaluation import ANCHOR, CHAMPION, LOOK, SEED_RUN, Evaluation, Interval, title
from fullft_assets.evaluation.base import Forgetting, forgetting_of
from fullft_assets.evaluation.comparison import SliceScore
from fullft_assets.evaluation.verdict import ReleaseVerdict
from fullft_assets.markdown import about_row, escape, to_html
from fullft_assets.planning import BaselinesMetadata, PilotMetadata
from fullft_assets.report import pictures
from fullft_assets.settings import ReleaseSettings, UseCaseSettings
from fullft_assets.snapshot import SnapshotMetadata
from fullft_assets.store import Manifest
from fullft_assets.task import BASELINES, GATES, TASKS

if TYPE_CHECKING:
    import jinja2


#: In the folder of an evaluation: rows whose label is probably wrong, without their texts.
LABEL_ERRORS = "label_errors.jsonl"
_TEMPLATES = Path(__file__).parent / "templates"
#: Where a copy of the page says how the release ended: the page itself is written before it.
_OUTCOME = "<!-- how the release ended -->"


@dataclass(frozen=True)
class DoubtfulRow:
    """A row whose label the model contradicts.

    Attributes:
        predicted: the likeliest label, with its `probability`.
        label_probability: the probability of the row's own label.
    """

    id: str
    label: str
    predicted: str
    probability: float
    label_probability: float


def write_label_errors(
    path: Path, rows: Sequence[DoubtfulRow], label_field: str, id_field: str = "id"
) -> None:
    """Write them with the fields that id and label came in, and `suggested` and `probability`; an annotator
    changes the label.
    """
    write_list(
        path,
        [
            {
                id_field: row.id,
                label_field: row.label,
                "suggested": row.predicted,
                "probability": round(row.probability, 4),
            }
            for row in rows
        ],
    )


def read_list(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file beside a report, whose first field is the id of a document."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_list(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write such a file: JSON lines."""
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")


@dataclass(frozen=True)
class SystemCost:
    """What making a system took, for a baseline with scoring validation rows and general text; and what its
    predictions take. None: unknown.

    Attributes:
        row_seconds: of a test row, in batches, loading included.
        usd_a_million: what a million predictions cost.
        forgot: its rise on general text.
    """

    seconds: float | None = None
    usd: float | None = None
    row_seconds: float | None = None
    usd_a_million: float | None = None
    forgot: float | None = None

    @property
    def time(self) -> str:
        """The time in words."""
        return "–" if self.seconds is None else duration(self.seconds)

    @property
    def money(self) -> str:
        """The price in USD, or a dash."""
        return "–" if self.usd is None else f"{self.usd:,.2f}"

    @property
    def all(self) -> str:
        """Time and price in words."""
        return self.time if self.usd is None else f"{self.time} ({self.money} USD)"


def system_costs(
    inputs: Mapping[str, Manifest], settings: UseCaseSettings, seconds: Mapping[str, float], num_rows: int
) -> dict[str, SystemCost]:
    """Return the time and price to make each system and to predict with it; a champion's are those of its
    training. The costs of an external system are unknown.

    Args:
        seconds: that each system took for the test rows.
        num_rows: test rows.
    """
    baselines = BaselinesMetadata.of(inputs[CHEAPER_BASELINES])
    num_validation_rows = SnapshotMetadata.of(inputs[TRAINING_SNAPSHOT]).num_validation_rows
    costs = {
        name: SystemCost(
            seconds_to_make,
            baselines.usd[name] or None,
            # A service asks for each row; a fit asked it for the validation rows.
            usd_a_million=baselines.usd[name] / max(1, num_validation_rows) * 1e6
            if BASELINES.get(name).needs_network
            else None,
            forgot=baselines.rises.get(name, None if BASELINES.get(name).trainings(settings) else 0.0),
        )
        for name, seconds_to_make in baselines.seconds.items()
    }
    for role in (FINETUNED_CHECKPOINT, CHAMPION, ANCHOR):
        if role in inputs:
            metadata = CheckpointMetadata.of(inputs[role])
            forgetting = forgetting_of(inputs[role])
            rise = None if forgetting is None else forgetting.rise
            name = metadata.system if role == FINETUNED_CHECKPOINT else role
            costs[name] = SystemCost(metadata.training_seconds, metadata.training_usd or None, forgot=rise)
    for name, cost in costs.items():
        row_seconds = seconds[name] / num_rows if name in seconds else None
        # No price of the machine is no price of 0.
        usd = None if row_seconds is None else row_seconds * 1e6 / 3600 * settings.planning.hourly_usd or None
        costs[name] = replace(cost, row_seconds=row_seconds, usd_a_million=cost.usd_a_million or usd)
    return costs


def next_action(case: str, verdict: ReleaseVerdict, evaluation: Evaluation, settings: ReleaseSettings) -> str:
    """Return the action that the reader should take next."""
    if verdict.answer in ("promote", "baseline"):
        return (
            f"Materialise champion_model, unless the job {case}_model has done so since: it makes"
            f" {'this model' if verdict.promote else 'the baseline'} the champion, unless somebody froze or"
            " rolled back the champion."
        )
    if verdict.answer == "insufficient_data":
        return (
            f"Deliver documents of {_missing_groups(evaluation, settings)} and evaluate again; or decide on"
            " less with release.min_effective_groups."
        )
    if verdict.answer == "inconclusive":
        return (
            "Deliver documents of more groups, so that the test set can decide; the sentence above says what"
            " it cannot show."
        )
    gate = next(reason.gate for reason in verdict.failures_first)
    return f"{gate} says no: {GATES.get(gate).advice}."


def _missing_groups(evaluation: Evaluation, settings: ReleaseSettings) -> str:
    if not 0 < evaluation.effective_groups < settings.min_effective_groups:
        return "more groups of each label"
    num_groups = evaluation.num_test_groups
    num_needed = math.ceil(num_groups * settings.min_effective_groups / evaluation.effective_groups)
    return f"so many more groups that about {num_needed - num_groups:,} of them are test groups"


@dataclass(frozen=True)
class AnsweredRow:
    """One test row, or its beginning, with its label, or how it goes on, and the answers of the best baseline
    (of the base model, if it is continued) and of the fine-tuned model.
    """

    id: str
    text: str
    label: str
    baseline: str
    finetuned: str


@dataclass(frozen=True)
class EvaluationReport:
    """What a report shows beside the evaluation's measurements; tables are (name, value) rows.

    `training_log` has `step` with `loss` or `validation_loss`; `learning_curve` has `rows` and the primary
    metric.

    Attributes:
        not_asked: names of baselines that the task offers and `planning.baselines` does not name.
        worth: whether the gain over the best baseline is worth its cost.
        costs: what each system took to make, and takes to predict; one that is not named is not known.
        next_action: what to do after this verdict.
        worst: the errors with the highest loss.
        label_errors: rows whose label is probably wrong; None: they were not searched for.
        min_slice_groups: groups of equal weight that a slice needs to be tested.
        worse_slices: those on which the model is worse than its rival.
        eroded_labels: rare labels that lost since the last champion that was better, or the champion.
    """

    case: str
    evaluation: Evaluation
    verdict: ReleaseVerdict
    base_model: str
    answers: Sequence[AnsweredRow] = ()
    training_log: Sequence[Mapping[str, Any]] = ()
    learning_curve: Sequence[Mapping[str, Any]] = ()
    data: Sequence[tuple[str, str]] = ()
    lineage: Sequence[tuple[str, str]] = ()
    cost: Sequence[tuple[str, str]] = ()
    forgetting: Sequence[tuple[str, str]] = ()
    promise: Sequence[tuple[str, str]] = ()
    not_asked: Sequence[str] = ()
    worth: Sequence[tuple[str, str]] = ()
    costs: Mapping[str, SystemCost] = field(default_factory=dict)
    next_action: str = ""
    min_slice_groups: float = 30.0
    worse_slices: Sequence[SliceScore] = ()
    eroded_labels: Sequence[SliceScore] = ()
    worst: Sequence[DoubtfulRow] = ()
    label_errors: Sequence[DoubtfulRow] | None = ()


def write(folder: Path, report: EvaluationReport) -> list[str]:
    """Write `report.html`, `report.md`, `summary.md` (which names no label) and `pictures/*.png`; return the
    pictures' names.
    """
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    picture_names = pictures.draw(
        folder / "pictures", report.evaluation, report.training_log, report.learning_curve
    )
    embedded_pictures = {
        name: base64.b64encode((folder / "pictures" / f"{name}.png").read_bytes()).decode()
        for name in picture_names
    }
    context = {"report": report, "pictures": picture_names}
    body = to_html(render("report.md.j2", report.evaluation, is_page=True, **context), embedded_pictures)
    tiles = to_html(render("tiles.md.j2", report.evaluation, is_page=True, **context), {})
    page = render(
        "page.html.j2",
        report.evaluation,
        report=report,
        outcome_mark=_OUTCOME,
        sections=re.split(r"(?=<h2>)", body)[1:],
        tiles=[line for line in tiles.split("\n") if line],
    )
    (folder / REPORT_PAGE).write_text(page, encoding="utf-8")
    (folder / "report.md").write_text(
        render("report.md.j2", report.evaluation, is_page=False, **context), encoding="utf-8"
    )
    (folder / "summary.md").write_text(
        render("summary.md.j2", report.evaluation, **context), encoding="utf-8"
    )
    return picture_names


def with_outcome(page: str, outcome: str) -> str:
    """Return a page that `write` wrote, with how the release ended under its verdict."""
    from markupsafe import escape as escape_html

    return page.replace(_OUTCOME, f"<p>How the release ended: {escape_html(outcome)}</p>", 1)


def render(template: str, evaluation: Evaluation, **context: Any) -> str:
    """Fill a template with an evaluation (`e`); `parts.md.j2` is that of its task. HTML is escaped, a missing
    value is an error.
    """
    return (
        _environment(evaluation.task)
        .get_template(template)
        .render(title=title, about_row=about_row, e=evaluation, **context)
    )


@cache
def _environment(task: str) -> "jinja2.Environment":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([_TEMPLATES, TASKS.get(task).templates]),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        interval=lambda value: f"{value.low:.3f} to {value.high:.3f}",
        signed=_signed,
        cell=escape,
        title_of=title,
    )
    return environment


def shorten(text: str, most: int = 240) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def data_rows(snapshot: Manifest) -> list[tuple[str, str]]:
    """Summarise a training snapshot as (name, value) rows."""
    metadata = SnapshotMetadata.of(snapshot)
    names = {
        "num_train_rows": "training rows",
        "num_validation_rows": "validation rows",
        "num_test_rows": "test rows",
        "num_test_groups": "test groups",
        "num_batches": "batches",
        "num_packed_rows": "packed training rows",
        "num_replay_tokens": "replayed general tokens",
    }
    rows = [
        (name, f"{value:,}") for key, name in names.items() if (value := getattr(metadata, key)) is not None
    ]
    rows += [
        (f"labels, {split}", _listed(counts)) for split, counts in metadata.label_counts.items() if counts
    ]
    if metadata.left_out:
        rows.append(("excluded", _listed(metadata.left_out)))
    return rows


def lineage_rows(
    inputs: Mapping[str, Manifest], settings: UseCaseSettings, key: str
) -> list[tuple[str, str]]:
    """Return the artifacts and settings behind a model and its evaluation, as (name, value) rows."""
    checkpoint = inputs[FINETUNED_CHECKPOINT]
    metadata = CheckpointMetadata.of(checkpoint)
    return [
        *(
            (name.replace("_", " "), manifest.ref)
            for name, manifest in inputs.items()
            if not name.startswith((SEED_RUN, LOOK))
        ),
        ("evaluation key", key),
        ("base model", settings.base_model),
        ("base model revision", metadata.base_model_revision),
        *((name.lower(), value) for name, value in lineage.rows(checkpoint)),
        ("libraries", _listed(metadata.versions)),
        ("training settings", _listed(checkpoint.settings.get("training", checkpoint.settings))),
        ("training code version", checkpoint.version),
        ("seed", str(checkpoint.seed)),
    ]


def cost_rows(checkpoint: Manifest) -> list[tuple[str, str]]:
    """Return the time, price, sizes and memory of a training as (name, value) rows."""
    metadata = CheckpointMetadata.of(checkpoint)
    return [
        ("training time", duration(metadata.training_seconds)),
        ("cost", f"{metadata.training_usd:,.2f} USD"),
        ("parameters", f"{metadata.num_parameters:,}"),
        ("trained parameters", f"{metadata.num_trained_parameters:,}"),
        ("optimizer steps", f"{metadata.num_steps:,}"),
        ("useful tokens", f"{metadata.num_tokens:,}"),
        ("useful tokens a second", f"{metadata.tokens_per_second:,.0f}"),
        ("peak memory", f"{metadata.peak_memory_gib:.2f} GiB"),
        ("precision", metadata.precision),
    ]


def promise_rows(pilot: Manifest, evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return the score that the pilot predicted for the validation rows, and the score on the test rows, as
    (name, value) rows.
    """
    metadata = PilotMetadata.of(pilot)
    score = evaluation.score.estimate
    is_within = metadata.predicted_low <= score <= metadata.predicted_high
    return [
        (
            "promised by the pilot",
            (
                f"{metadata.predicted:.3f}, 90% interval {metadata.predicted_low:.3f} to"
                f" {metadata.predicted_high:.3f}"
            ),
        ),
        ("came of it", f"{score:.3f}, {'within' if is_within else 'outside'} the interval"),
        ("best baseline then", f"{metadata.best_baseline_score:.3f} ({title(metadata.best_baseline)})"),
        *(
            []
            if metadata.lora_score is None
            else [
                (
                    "on the pilot's rows",
                    f"LoRA {metadata.lora_score:.3f}, full fine-tuning"
                    f" {metadata.learning_curve[-1][evaluation.primary_metric]:.3f}",
                )
            ]
        ),
    ]


def forgetting_rows(forgetting: Forgetting | None) -> list[tuple[str, str]]:
    """Return the measurements of what a model forgot of general text, as (name, value) rows; none if it was
    not measured.
    """
    if forgetting is None:
        return []
    names = {
        "loss": "loss on general text, nats a token",
        "distance": (
            "distance of general texts' representations from the base model's (1 - mean cosine), not a loss"
        ),
    }
    rows = [
        (names[forgetting.measure], f"{forgetting.before:.4f} before training, {forgetting.after:.4f} after"),
        (
            "rise since the base model",
            (
                f"{forgetting.rise:+.4f} over {forgetting.num_trainings}"
                f" training{'s' * (forgetting.num_trainings > 1)}"
            ),
        ),
    ]
    if forgetting.num_unmeasured:
        rows.append(("trainings that did not measure it", str(forgetting.num_unmeasured)))
    return rows


def _listed(values: Mapping[str, Any]) -> str:
    texts = {
        name: f"{value:,}" if type(value) is int else value
        for name, value in values.items()
        if value is not None
    }
    return ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in texts.items())


def _signed(value: Interval | float, digits: int = 3) -> str:
    ends = (value.low, value.high) if isinstance(value, Interval) else (value,)
    return " to ".join(f"{end:+.{digits}f}" for end in ends)
