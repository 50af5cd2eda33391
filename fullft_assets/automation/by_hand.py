"""The job by which a person acts on a use case: overrule the gates, clean the store up, tokenise again."""

from collections.abc import Iterator
from enum import Enum

import dagster as dg
from pydantic import Field

from fullft_assets import release
from fullft_assets.assets import retokenization
from fullft_assets.assets.case import Case
from fullft_assets.assets.release import observation, shown
from fullft_assets.automation.cleaning import clean
from fullft_assets.resources import one_line_errors, set_latest
from fullft_assets.store import Store


class Act(Enum):
    """What a person may do; the first one is the default."""

    freeze = "freeze"
    unfreeze = "unfreeze"
    promote = "promote"
    rollback = "rollback"
    retokenize = "retokenize"
    clean = "clean"


class ByHand(dg.Config):
    """What is to be done."""

    act: Act = Field(
        default=Act.freeze,
        description=(
            "freeze: keep the champion, whatever the gates say. unfreeze: let the gates decide again."
            " promote: make an evaluated checkpoint the champion. rollback: bring the previous champion back."
            " retokenize: tokenise every batch that needs it, after a change of tokenizer or windows. clean:"
            " remove from the store what nothing in use was made from, by the settings of `retention`."
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


def job_name(case: str) -> str:
    """Return the name of a use case's job for acts by hand."""
    return f"{case}_by_hand"


def run_config(case: str, act: str) -> dict:
    """Return the run config of an act that needs no reason."""
    return {"ops": {f"{case}__by_hand": {"config": {"act": act}}}}


def build_job_by_hand(case: Case) -> dg.JobDefinition:
    """Return the job `<case>_by_hand`."""
    description = (
        "By hand: freeze, unfreeze, promote, rollback, retokenize or clean, as `act` in the config says."
    )

    @dg.op(
        name=f"{case.name}__by_hand", description=description, out={}, required_resource_keys={case.store_key}
    )
    def by_hand(context: dg.OpExecutionContext, config: ByHand):
        store = case.store(context)
        if config.act is Act.retokenize:
            yield from retokenization.retokenize(case, context)
        elif config.act is Act.clean:
            clean(case, context)
        else:
            with one_line_errors(store, case.name):
                _change(case, store, config, context.run_id)
            yield _noted(context, case, store)
            if config.act in (Act.promote, Act.rollback):
                yield from _in_use(context, case, store)

    @dg.job(name=job_name(case.name), description=description, tags={"use_case": case.name})
    def job():
        by_hand()

    return job


def _change(case: Case, store: Store, config: ByHand, run_id: str) -> None:
    if config.act is Act.promote:
        release.promote_by_hand(store, case.use_case, config.checkpoint, reason=config.reason, by=run_id)
        return
    change = {Act.freeze: release.freeze, Act.unfreeze: release.unfreeze, Act.rollback: release.rollback}[
        config.act
    ]
    change(store, case.name, reason=config.reason, by=run_id)


def _noted(context: dg.OpExecutionContext, case: Case, store: Store) -> dg.AssetObservation:
    """Return the event that says what was done and why."""
    state = release.read_state(store, case.name)
    assert state is not None, "something was done to it"
    done = next(each for each in state.interventions if each.by == context.run_id)
    context.log.info(f"{done.sentence}. Champion: {state.checkpoint}")
    return observation(case, done.sentence, state.current)


def _in_use(context: dg.OpExecutionContext, case: Case, store: Store) -> Iterator[dg.AssetMaterialization]:
    """Make the card of the champion the newest of its asset, yield the event that shows it, and copy the
    champion to `release.push_to`.
    """
    champion = release.read_champion(store, case.name)
    assert champion is not None, "it was changed by hand"
    card = release.card_of(store, case.name, champion)
    if card is not None:
        set_latest(store, case.name, "champion_model", card)
        result = case.result(card, "champion_model", store, shown(store, card))
        tags = {"dagster/data_version": card.content_digest, "dagster/data_version_is_user_provided": "true"}
        yield dg.AssetMaterialization(
            asset_key=case.key("champion_model"), metadata=result.metadata, tags=tags
        )
    release.try_to_hand_over(store, case.use_case, context.log.info, context.log.warning)
