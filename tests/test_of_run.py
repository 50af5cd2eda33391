"""What the steps of one run read, while other runs make the same assets."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fullft_assets import documents, planning
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.automation import INGEST
from fullft_assets.component import FullFineTune
from fullft_assets.resources import ARTIFACT, latest, made_by_run, manifest_io_manager, open_store
from fullft_assets.resources.io_manager import ref_for_run
from fullft_assets.store import CheckOutcome, Manifest, Store
from tests import manifests
from tests import project as projects

FIRST, SECOND, THIRD = (dg.AssetKey(["letters", name]) for name in ("first", "second", "third"))
#: What happens while a run waits before its second step.
_meanwhile: list[Callable[[], Any]] = []


class Workloads:
    """In place of the launcher: plans as small as can be; a training is noted and refused."""

    def __init__(self) -> None:
        self.snapshots: list[tuple[str, str]] = []
        self.meanwhile: Callable[[], Any] = lambda: None

    def run(self, context: dg.AssetExecutionContext, workload: str, job: Any, store: Store) -> None:
        self.snapshots.append((workload, job.inputs["training_snapshot"]))
        if workload != "planning":
            raise dg.Failure("noted")
        curve = [{"rows": rows, "macro_f1": score} for rows, score in ((100, 0.4), (200, 0.5))]
        for stage, metadata, checks in (
            ("feasibility_plan", manifests.plan(), planning.PLAN_CHECKS),
            ("cheaper_baselines", manifests.baselines(["text"], {"majority": 0.1}), ()),
            ("pilot_run", manifests.pilot(curve), planning.PILOT_CHECKS),
        ):
            green = [CheckOutcome(name=check.name, passed=True) for check in checks]
            with store.create(job.case, stage, job.key, version="1", seed=1) as draft:
                draft.commit(settings={}, inputs={}, metadata=metadata, checks=green)
        self.meanwhile()


def chain() -> dg.JobDefinition:
    """Return a job of three assets, of which the second and the third read the first."""

    def made(context: dg.AssetExecutionContext, **read: Manifest) -> dg.MaterializeResult[Manifest]:
        store = context.resources.letters_store
        with store.create(
            "letters", context.asset_key.path[-1], context.run_id, version="1", seed=1
        ) as draft:
            manifest = draft.commit(
                settings={}, inputs={name: each.ref for name, each in read.items()}, metadata={}
            )
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
        assert init.instance is not None
        return Store(str(Path(init.instance.root_directory) / "store"))

    return dg.Definitions(
        assets=[first, second, third],
        resources={"letters_store": store, "io": manifest_io_manager("letters", "letters_store")},
        jobs=[dg.define_asset_job("chain", [first, second, third])],
        executor=dg.in_process_executor,
    ).resolve_job_def("chain")


class Chain:
    """Runs of the chain on a real instance."""

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
        """Return what the third step of a run read."""
        ref = self.made(run_id, THIRD)
        assert ref is not None
        return self.store.load(ref).inputs


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


def test_what_a_run_does_not_make_is_what_was_there_when_it_began(runs: Chain) -> None:
    before = runs.run(FIRST)
    _meanwhile.append(lambda: runs.run(FIRST))
    waits = runs.run(SECOND, THIRD)
    assert runs.read(waits)["first"] == runs.made(before)
    newest = latest(runs.store, "letters", "first")
    assert newest is not None and runs.read(runs.run(SECOND, THIRD))["first"] == newest.ref != runs.made(
        before
    )


def test_what_no_run_made_is_not_taken_for_what_was_there(runs: Chain) -> None:
    """The webserver and the UI's button report such an event for whoever asks."""

    def report(ref: str) -> None:
        for _ in range(11):
            runs.instance.report_runless_asset_event(dg.AssetMaterialization(FIRST, metadata={ARTIFACT: ref}))

    before, other = runs.run(FIRST), runs.run(FIRST)
    report(str(runs.made(before)))
    _meanwhile.extend((lambda: runs.run(FIRST), lambda: report("letters/first/forged/1")))
    assert runs.read(runs.run(SECOND, THIRD))["first"] == runs.made(other)


@pytest.mark.slow
def test_what_only_the_store_knows_is_read_as_before(runs: Chain) -> None:
    """Another Dagster, or one whose storage was lost, has made it."""
    runs.run(FIRST)
    with runs.store.create("letters", "first", "elsewhere", version="1", seed=1) as draft:
        made = draft.commit(settings={}, inputs={}, metadata={})
    runs.store.write_pointer("latest/letters/first/all", {"ref": made.ref})
    assert runs.read(runs.run(SECOND, THIRD))["first"] == made.ref


@pytest.mark.slow
def test_a_run_that_goes_on_from_a_failure_reads_what_the_failed_one_made_or_began_with(runs: Chain) -> None:
    failed = runs.run(tags={"fails": "yes"})
    runs.run()
    options = dg.ReexecutionOptions.from_failure(failed, runs.instance)
    again = runs.run(reexecution_options=options)
    assert runs.read(again) == {"first": runs.made(failed), "second": runs.made(failed, SECOND)}
    # The same where Dagster selects the assets that failed.
    tags = {"dagster/is_asset_resume_retry": "true"}
    in_part, whole = (
        dg.DagsterRun(job_name="chain", parent_run_id=failed, root_run_id=failed, tags=tags if part else {})
        for part in (True, False)
    )
    assert ref_for_run(runs.instance, in_part, SECOND, None) == runs.made(failed, SECOND)
    assert ref_for_run(runs.instance, whole, SECOND, None) is None


@pytest.mark.slow
def test_what_a_failed_run_began_with_is_still_read_by_the_one_that_goes_on(runs: Chain) -> None:
    before = runs.run(FIRST)
    failed = runs.run(SECOND, THIRD, tags={"fails": "yes"})
    runs.run(FIRST)
    again = runs.run(
        SECOND, THIRD, reexecution_options=dg.ReexecutionOptions.from_failure(failed, runs.instance)
    )
    assert runs.read(again)["first"] == runs.made(before)


@pytest.mark.slow
@pytest.mark.long
def test_a_training_reads_the_snapshot_of_its_run_though_an_evaluation_took_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run failed after plan and pilot: they `were made for another snapshot`."""
    monkeypatch.delenv("FULLFT_STORE", raising=False)
    project = projects.create(tmp_path)
    workloads = Workloads()
    graph = CaseGraph(project.use_case())
    loaded = FullFineTune(graph.use_case).build_defs()
    definitions = dg.Definitions(
        assets=loaded.assets,
        asset_checks=loaded.asset_checks,
        resources={**(loaded.resources or {}), graph.launcher_key: workloads},
        executor=dg.in_process_executor,
    )
    job = definitions.resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.from_config(str(project.home)) as instance:
        store = open_store(graph.use_case, instance)

        def run(*assets: str, batch: str | None = None, raise_on_error: bool = True) -> Any:
            keys = [graph.key(asset) for asset in assets]
            return job.execute_in_process(
                asset_selection=keys, partition_key=batch, instance=instance, raise_on_error=raise_on_error
            )

        def ingest(file: str, skip: int) -> None:
            project.deliver(file, projects.licence_rows(200, skip=skip))
            batch = documents.cut_batches(store, graph.name, project.documents, graph.settings.documents)[
                -1
            ].name
            instance.add_dynamic_partitions(f"{graph.name}/batch", [batch])
            run(*INGEST, batch=batch)

        def another_snapshot() -> None:
            ingest("delivery-2.jsonl", 1_000)
            run("training_snapshot")

        ingest("delivery-1.jsonl", 0)
        workloads.meanwhile = another_snapshot
        result = run(
            "training_snapshot",
            "feasibility_plan",
            "cheaper_baselines",
            "pilot_run",
            "finetuned_checkpoint",
            raise_on_error=False,
        )
        mine = made_by_run(instance, result.run_id, graph.key("training_snapshot"))
        assert workloads.snapshots == [("planning", mine), ("training", mine)]
        newest = latest(store, graph.name, "training_snapshot")
        assert newest is not None and newest.ref != mine
