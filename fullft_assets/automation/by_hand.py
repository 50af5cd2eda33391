"""The jobs by which a person overrules the gates: roll back, freeze, unfreeze, promote. Each asks for a reason, which the champion's pointer keeps."""

from collections.abc import Callable, Iterator

import dagster as dg
from pydantic import Field

from fullft_assets import release
from fullft_assets.assets.case import Case
from fullft_assets.assets.release import observation, shown
from fullft_assets.resources import one_line_errors, set_latest
from fullft_assets.store import Store

_REASON = "Why; kept with the champion's history."


class Reason(dg.Config):
    """What every job by hand asks for."""

    reason: str = Field(description=_REASON)


class Promotion(dg.Config):
    """What a promotion by hand asks for."""

    reason: str = Field(description=_REASON)
    checkpoint: str = Field(description="CASE/finetuned_checkpoint/KEY/ATTEMPT of a checkpoint that was evaluated; its gates may be red.")


def build_jobs_by_hand(case: Case) -> list[dg.JobDefinition]:
    """Return the jobs `<case>_rollback`, `<case>_freeze`, `<case>_unfreeze` and `<case>_promote`."""

    def rollback(context: dg.OpExecutionContext, config: Reason) -> Iterator:
        store = case.store(context)
        with one_line_errors(store, case.name):
            release.rollback(store, case.name, reason=config.reason, by=context.run_id)
        yield _noted(context, case, store)
        yield from _in_use(context, case, store)

    def freeze(context: dg.OpExecutionContext, config: Reason) -> Iterator:
        store = case.store(context)
        with one_line_errors(store, case.name):
            release.freeze(store, case.name, reason=config.reason, by=context.run_id)
        yield _noted(context, case, store)

    def unfreeze(context: dg.OpExecutionContext, config: Reason) -> Iterator:
        store = case.store(context)
        with one_line_errors(store, case.name):
            release.unfreeze(store, case.name, reason=config.reason, by=context.run_id)
        yield _noted(context, case, store)

    def promote(context: dg.OpExecutionContext, config: Promotion) -> Iterator:
        store = case.store(context)
        with one_line_errors(store, case.name):
            release.promote_by_hand(store, case.use_case, config.checkpoint, reason=config.reason, by=context.run_id)
        yield _noted(context, case, store)
        yield from _in_use(context, case, store)

    return [
        _job(case, rollback, "Bring the previous champion back."),
        _job(case, freeze, "Keep the champion, whatever the gates say, until it is unfrozen. Evaluations still run."),
        _job(case, unfreeze, "Let the gates decide again."),
        _job(case, promote, "Make an evaluated checkpoint the champion, whatever the gates said."),
    ]


def _job(case: Case, body: Callable[..., Iterator], description: str) -> dg.JobDefinition:
    action = body.__name__
    op = dg.op(name=f"{case.name}__{action}", description=description, out={}, required_resource_keys={case.store_key})(body)

    @dg.job(name=f"{case.name}_{action}", description=description, tags={"use_case": case.name})
    def job():
        op()

    return job


def _noted(context: dg.OpExecutionContext, case: Case, store: Store) -> dg.AssetObservation:
    """Return the event that says what was done and why."""
    state = release.read_state(store, case.name)
    assert state is not None, "something was done to it"
    done = next(each for each in state.interventions if each.by == context.run_id)
    context.log.info(f"{done.sentence}. Champion: {state.checkpoint}")
    return observation(case, done.sentence, state.current)


def _in_use(context: dg.OpExecutionContext, case: Case, store: Store) -> Iterator[dg.AssetMaterialization]:
    """Make the card of the champion the newest of its asset, yield the event that shows it, and copy the champion to `release.push_to`."""
    champion = release.read_champion(store, case.name)
    assert champion is not None, "it was changed by hand"
    card = release.card_of(store, case.name, champion)
    if card is not None:
        set_latest(store, case.name, "champion_model", card)
        result = case.result(card, "champion_model", store, shown(store, card))
        tags = {"dagster/data_version": card.content_digest, "dagster/data_version_is_user_provided": "true"}
        yield dg.AssetMaterialization(asset_key=case.key("champion_model"), metadata=result.metadata, tags=tags)
    release.try_to_hand_over(store, case.use_case, context.log.info, context.log.warning)
