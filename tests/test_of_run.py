"""What the steps of one run read, while other runs make the same assets."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fullft_assets.resources import ARTIFACT, made_by_run, manifest_io_manager
from fullft_assets.resources.io_manager import ref_for_run
from fullft_assets.store import Manifest, Store
from tests import manifests

FIRST, SECOND, THIRD = (dg.AssetKey(["letters", name]) for name in ("first", "second", "third"))
#: What happens while a run waits before its second step.
_meanwhile: list[Callable[[], Any]] = []


def chain() -> dg.JobDefinition:
    """Return a job of three assets, of which the second and the third read the first."""

    def made(context: dg.AssetExecutionContext, **read: Manifest) -> dg.MaterializeResult[Manifest]:
        store = context.resources.letters_store
        inputs = {name: each.ref for name, each in read.items()}
        stage = context.asset_key.path[-1]
        manifest = manifests.write(store, "letters", stage, context.run_id, inputs=inputs)
        return dg.MaterializeResult(value=manifest, metadata={ARTIFACT: manifest.ref})

    about: Any = {"io_manager_key": "io", "required_resource_keys": {"letters_store"}}

    @dg.asset(key=FIRST, **about)
    def first(context: dg.AssetExecutionContext):
        return made(context)

    @dg.asset(key=SECOND, ins={"first": dg.AssetIn(FIRST)}, **about)
    def second(context: dg.AssetExecutionContext, first: Manifest):
        while _meanwhile:
            _meanwhile.pop()()
        return made(context, first=first)

    @dg.asset(key=THIRD, ins={"first": dg.AssetIn(FIRST), "second": dg.AssetIn(SECOND)}, **about)
    def third(context: dg.AssetExecutionContext, first: Manifest, second: Manifest):
        if context.run.tags.get("fails") == "yes":
            raise dg.Failure("planted")
        return made(context, first=first, second=second)

    @dg.resource
    def store(init: dg.InitResourceContext) -> Store:
        return Store(str(Path(init.instance.root_directory) / "store"))

    return dg.Definitions(
        assets=[first, second, third],
        resources={"letters_store": store, "io": manifest_io_manager("letters", "letters_store")},
        jobs=[dg.define_asset_job("chain", [first, second, third])],
        executor=dg.in_process_executor,
    ).resolve_job_def("chain")


class Chain:
    def __init__(self, instance: dg.DagsterInstance):
        self.instance, self.store = instance, Store(str(Path(instance.root_directory) / "store"))

    def run(self, *keys: dg.AssetKey, **options: Any) -> str:
        options = {"raise_on_error": not options.get("tags"), **options}
        with dg.execute_job(
            dg.reconstructable(chain), self.instance, asset_selection=list(keys) or None, **options
        ) as result:
            return result.run_id

    def made(self, run_id: str, key: dg.AssetKey = FIRST) -> str | None:
        return made_by_run(self.instance, run_id, key)

    def read(self, run_id: str) -> dict[str, str]:
        return self.store.load(self.made(run_id, THIRD)).inputs


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Chain]:
    _meanwhile.clear()
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield Chain(instance)


def test_of_two_runs_each_reads_what_it_made(runs: Chain) -> None:
    other: list[str] = []
    _meanwhile.append(lambda: other.append(runs.run()))
    one = runs.run()
    for run_id in (one, *other):
        assert runs.read(run_id) == {"first": runs.made(run_id), "second": runs.made(run_id, SECOND)}
    assert runs.made(one) != runs.made(other[0])


def forging() -> dg.JobDefinition:
    @dg.op
    def other(context: dg.OpExecutionContext) -> None:
        context.log_event(dg.AssetMaterialization(FIRST, metadata={ARTIFACT: "letters/first/forged/1"}))

    @dg.job(tags={"use_case": "letters"}, executor_def=dg.in_process_executor)
    def job():
        other()

    return job


def test_what_another_job_or_nobody_says_of_an_asset_counts_for_nothing(runs: Chain) -> None:
    """The webserver and the UI's button report such an event for whoever asks."""
    made = runs.made(runs.run(FIRST))
    with dg.execute_job(dg.reconstructable(forging), runs.instance) as result:
        assert result.success and runs.made(result.run_id) is None
    forged = dg.AssetMaterialization(FIRST, metadata={ARTIFACT: "letters/first/forged/1"})
    runs.instance.report_runless_asset_event(forged)
    assert runs.read(runs.run(SECOND, THIRD))["first"] == made


@pytest.mark.slow
def test_a_run_that_goes_on_from_a_failure_reads_what_the_failed_one_made_or_began_with(runs: Chain) -> None:
    failed = runs.run(tags={"fails": "yes"})
    runs.run()
    again = runs.run(reexecution_options=dg.ReexecutionOptions.from_failure(failed, runs.instance))
    assert runs.read(again) == {"first": runs.made(failed), "second": runs.made(failed, SECOND)}
    # The same where Dagster selects the assets that failed.
    tags = {"dagster/is_asset_resume_retry": "true"}
    in_part, whole = (
        dg.DagsterRun(job_name="chain", parent_run_id=failed, root_run_id=failed, tags=tags if part else {})
        for part in (True, False)
    )
    assert ref_for_run(runs.instance, in_part, SECOND, None) == runs.made(failed, SECOND)
    assert ref_for_run(runs.instance, whole, SECOND, None) is None
