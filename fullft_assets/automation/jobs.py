"""The jobs of a use case, which assets each of them materialises, and the job by which a person acts on it:
overrule the gates, clean the store up, tokenise again.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from typing import Any

import dagster as dg
from pydantic import Field

from fullft_assets import release, retention, security
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
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.assets.model import observation, shown
from fullft_assets.assets.production import check_key
from fullft_assets.automation.orphans import build_orphans_job
from fullft_assets.automation.runs import IN_FLIGHT, is_of_case
from fullft_assets.errors import StoreError
from fullft_assets.resources import one_line_errors, set_latest
from fullft_assets.store import Store


def build_clean_schedule(graph: CaseGraph) -> list[dg.ScheduleDefinition]:
    """Return the schedule of the clean-up, if the YAML has one."""
    cron = graph.settings.retention.schedule
    if cron is None:
        return []

    @dg.schedule(
        name=f"{graph.name}_clean_schedule",
        job_name=f"{graph.name}_by_hand",
        cron_schedule=cron,
        execution_timezone=graph.settings.automation.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING
        if graph.settings.automation.enabled
        else dg.DefaultScheduleStatus.STOPPED,
        description="Cleans the store up, unless a run of the use case is in progress.",
    )
    def clean_schedule(context: dg.ScheduleEvaluationContext, **_: Any):
        try:
            require_idle(graph.name, context.instance)
        except StoreError as error:
            return dg.SkipReason(str(error))
        return dg.RunRequest(run_config={"ops": {f"{graph.name}__by_hand": {"config": {"act": "clean"}}}})

    return [clean_schedule]


def idle_from_now(case: str, instance: dg.DagsterInstance, *, but: str | None = None) -> Callable[[], None]:
    """Return the check `require_idle` that a clean-up which begins now makes before each removal."""
    return partial(require_idle, case, instance, but=but, since=datetime.now(UTC))


def require_idle(
    case: str, instance: dg.DagsterInstance, *, but: str | None = None, since: datetime | None = None
) -> None:
    """Refuse to clean up while a run of the use case is in progress: it may have found an old artifact that
    nothing names yet.

    Args:
        but: id of the run that asks.
        since: a run that has ended counts as well if it did so after this.

    Raises:
        StoreError: names such a run.
    """
    ended_runs = [] if since is None else instance.get_runs(dg.RunsFilter(updated_after=since))
    for run in [*instance.get_runs(dg.RunsFilter(statuses=IN_FLIGHT)), *ended_runs]:
        if is_of_case(run, case) and run.run_id != but:
            state = "is in progress" if run.status in IN_FLIGHT else "was in progress during the clean-up"
            raise StoreError(
                f"{case}: run {run.run_id[:8]} ({run.job_name}) {state}; clean up when it has ended"
            )


class Act(Enum):
    """An act of a person on the champion or the store; the first member is the default."""

    freeze = "freeze"
    unfreeze = "unfreeze"
    promote = "promote"
    rollback = "rollback"
    clean = "clean"


class ByHand(dg.Config):
    """What is to be done."""

    act: Act = Field(
        default=Act.freeze,
        description=(
            "freeze: keep the champion, whatever the gates say. unfreeze: let the gates decide again."
            " promote: make an evaluated checkpoint the champion. rollback: bring the previous champion back."
            " clean: remove from the store what nothing in use was made from, by the settings of `retention`."
        ),
    )
    reason: str = Field(
        default="", description="Why; needed for acts on the champion, and kept with its history."
    )
    checkpoint: str = Field(
        default="",
        description=(
            "For promote: CASE/finetuned_checkpoint/KEY/ATTEMPT of a checkpoint that was evaluated; its gates"
            " may be red."
        ),
    )


def _build_job_by_hand(graph: CaseGraph) -> dg.JobDefinition:
    description = "By hand: freeze, unfreeze, promote, rollback or clean, as `act` in the config says."

    @dg.op(
        name=f"{graph.name}__by_hand",
        description=description,
        out={},
        required_resource_keys={graph.store_key},
    )
    def by_hand(context: dg.OpExecutionContext, config: ByHand):
        store = graph.store(context)
        if config.act is Act.clean:
            with one_line_errors(store, graph.name):
                is_idle = idle_from_now(graph.name, context.instance, but=context.run_id)
                removal = retention.clean(store, graph.use_case, require_idle=is_idle)
            for line in removal.lines:
                context.log.info(line)
        else:
            in_use = release.read_champion(store, graph.name)
            about = config.checkpoint if config.act is Act.promote or in_use is None else in_use.checkpoint
            with one_line_errors(store, graph.name):
                waits = security.overrule(
                    store,
                    graph.use_case,
                    security.Act(config.act.value, about, config.reason),
                    _person(context.run),
                    lambda: _change(graph, store, config, context.run_id),
                )
            if waits is not None:
                context.log.info(waits)
                return
            yield _noted(context, graph, store)
            if config.act in (Act.promote, Act.rollback):
                yield from _in_use(context, graph, store)

    @dg.job(name=f"{graph.name}_by_hand", description=description, tags={"use_case": graph.name})
    def job():
        by_hand()

    return job


def _person(run: dg.DagsterRun) -> security.Person:
    """Return who launched a run; without a login before the UI nobody knows."""
    name = run.tags.get(security.PERSON_TAG, "")
    return security.Person(name, "proxy" if name else "unverified", run=run.run_id)


def _change(graph: CaseGraph, store: Store, config: ByHand, run_id: str) -> None:
    if config.act is Act.promote:
        release.promote_by_hand(store, graph.use_case, config.checkpoint, reason=config.reason, by=run_id)
    else:
        changes = {Act.freeze: release.freeze, Act.unfreeze: release.unfreeze, Act.rollback: release.rollback}
        changes[config.act](store, graph.name, reason=config.reason, by=run_id)


def _noted(context: dg.OpExecutionContext, graph: CaseGraph, store: Store) -> dg.AssetObservation:
    state = release.read_state(store, graph.name)
    assert state is not None, "something was done to it"
    intervention = next(entry for entry in state.interventions if entry.by == context.run_id)
    context.log.info(f"{intervention.sentence}. Champion: {state.checkpoint}")
    return observation(graph, intervention.sentence, state.current)


def _in_use(
    context: dg.OpExecutionContext, graph: CaseGraph, store: Store
) -> Iterator[dg.AssetMaterialization]:
    champion = release.read_champion(store, graph.name)
    assert champion is not None, "it was changed by hand"
    card = release.card_of(store, graph.name, champion)
    if card is not None:
        set_latest(store, graph.name, CHAMPION_MODEL, card)
        result = graph.result(card, CHAMPION_MODEL, store, shown(store, card))
        tags = {"dagster/data_version": card.content_digest, "dagster/data_version_is_user_provided": "true"}
        yield dg.AssetMaterialization(
            asset_key=graph.key(CHAMPION_MODEL), metadata=result.metadata, tags=tags
        )
    release.try_to_hand_over(store, graph.use_case, context.log.info, context.log.warning)


INGEST = (RAW_DOCUMENTS, LABELED_EXAMPLES, QUARANTINED_EXAMPLES, TOKENIZED_CHUNKS)
MODEL = (
    TOKENIZER_AUDIT,
    TRAINING_SNAPSHOT,
    FEASIBILITY_PLAN,
    CHEAPER_BASELINES,
    PILOT_RUN,
    FINETUNED_CHECKPOINT,
    EVALUATION_REPORT,
    CHAMPION_MODEL,
)
SNAPSHOT = (TRAINING_SNAPSHOT,)
EVALUATE = (TRAINING_SNAPSHOT, EVALUATION_REPORT)
PREDICT = (PRODUCTION_DOCUMENTS, BATCH_PREDICTIONS)
MONITOR = (*PREDICT, DRIFT_REPORT)
#: Runs of one value of this tag are launched one after the other, in the order in which they were asked for:
#: see `concurrency` in dagster.yaml.
IN_ORDER_TAG = "delivery/in_order"


def build_jobs(graph: CaseGraph) -> list[dg.JobDefinition]:
    """Return the jobs of a use case; batches, windows and models have jobs of their own, because one run
    cannot mix kinds of partitions.
    """

    def job(
        name: str,
        assets: tuple[str, ...],
        description: str,
        partitions=None,
        more_checks: tuple[dg.AssetCheckKey, ...] = (),
    ):
        selection = dg.AssetSelection.assets(*[graph.key(asset) for asset in assets])
        if more_checks:
            selection |= dg.AssetSelection.checks(*more_checks)
        tags = {"use_case": graph.name} | ({IN_ORDER_TAG: graph.name} if partitions == graph.windows else {})
        return dg.define_asset_job(
            f"{graph.name}_{name}", selection, partitions_def=partitions, description=description, tags=tags
        )

    jobs: list[Any] = [
        job("ingest", INGEST, "One batch of delivered files: read, validate, tokenise.", graph.batches),
        job("snapshot", SNAPSHOT, "Freeze what is ingested, and write the data report."),
        job("model", MODEL, "Snapshot, plan, baselines, pilot, full fine-tuning, evaluation, release."),
        job(
            "evaluate",
            (*EVALUATE, LIVE_QUALITY) if graph.has_live_quality else EVALUATE,
            "Score the latest checkpoint and the champion on the newest test rows, and on production"
            " documents that were labelled since.",
        ),
    ]
    if graph.has_windows:
        jobs.append(
            job(
                "monitor",
                MONITOR,
                "One window of production documents: what the champion predicts of them, and whether they"
                " have drifted.",
                graph.windows,
                # A new window may show that the training data is no longer what production sees.
                (check_key(graph),) if graph.has_live_quality else (),
            )
        )
    return [*jobs, _build_job_by_hand(graph), *build_orphans_job(graph)]
