"""A project whose store an earlier release wrote: its champion, held-out rows and history are still read.

`earlier_store.tar.xz` holds 400 licence rules, a champion of random weights (8 wide, 2 layers) and its
evaluation, written by one `fullft run`.
"""

import tarfile
from pathlib import Path

import pytest
import yaml

from fullft_assets import release, snapshot
from fullft_assets.evaluation.base import read_evaluation
from fullft_assets.evaluation.metadata import EvaluationMetadata
from fullft_assets.resources import latest
from fullft_assets.store import Manifest, Store
from tests import project as projects
from tests.asset_runs import run_jobs
from tests.prepared import write_tiny_model

CASE = "letters"
#: Keys of the project's YAML that were removed since, with the keys that say the same today.
REMOVED = {("evaluation", "resamples"): None, ("chunks", "max_windows"): "max_chunks"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> projects.Project:
    root = tmp_path_factory.mktemp("earlier")
    with tarfile.open(Path(__file__).with_name("earlier_store.tar.xz")) as archive:
        archive.extractall(root, filter="data")
    # The project was written in another folder: its batch names the one that it was read from.
    for batch in (root / ".home" / "store" / "pointers" / CASE / "batch").iterdir():
        batch.write_text(batch.read_text().replace("/tmp/oldstore", str(root)))
    (root / ".home" / "dagster.yaml").write_text((Path(__file__).parents[1] / "dagster.yaml").read_text())
    (root / "workspace.yaml").write_text(
        "load_from:\n  - python_module:\n      module_name: my_project.definitions\n"
        f"      location_name: my_project\n      working_directory: {root}\n"
    )
    write_tiny_model(root / "models" / "tiny")
    return projects.Project(root, CASE)


def held_out(store: Store, frozen: Manifest) -> set[str]:
    return {
        id
        for name in ("test", "validation")
        for id in snapshot.load_split(store, frozen, name, chunks=False).ids
    }


@pytest.fixture(scope="module")
def refusal(earlier: projects.Project) -> str:
    """What `check` says of the YAML as it was; its removed keys are replaced then."""
    checked = earlier.fullft("check", CASE)
    source = yaml.safe_load(earlier.yaml_path.read_text())
    for (section, key), replacement in REMOVED.items():
        value = source["attributes"][section].pop(key)
        if replacement:
            source["attributes"][section][replacement] = value
    earlier.yaml_path.write_text(yaml.safe_dump(source))
    return checked.stdout + checked.stderr


def test_a_removed_key_is_named_and_the_other_keys_hold(earlier: projects.Project, refusal: str) -> None:
    assert len([line for line in refusal.splitlines() if "was removed; " in line]) == len(REMOVED)
    assert earlier.fullft("check", CASE).returncode == 0


@pytest.mark.usefixtures("refusal")
def test_its_champion_predicts_and_its_held_out_rows_never_train(earlier: projects.Project) -> None:
    store = Store(str(earlier.home / "store"))
    champion = release.read_champion(store, CASE)
    assert champion is not None and champion.score == pytest.approx(0.8272, abs=1e-4)
    report = store.load(champion.evaluation)
    assert read_evaluation((store.folder(report) / "evaluation.json").read_bytes()).num_test_groups > 30
    assert {"tfidf", "majority"} <= set(EvaluationMetadata.of(report).systems)
    before = latest(store, CASE, "training_snapshot")
    assert before is not None and before.ref == champion.snapshot
    once_held_out = held_out(store, before)

    predicted = earlier.fullft("predict", CASE, "Licensed under the MIT license")
    assert (predicted.returncode, predicted.stderr) == (0, "")
    assert predicted.stdout.split()[1] in ("notice", "reference", "tag", "text")

    earlier.deliver("delivery-2.jsonl", projects.licence_rows(100, skip=400))
    run_jobs(earlier, "ingest", "snapshot")
    after = latest(store, CASE, "training_snapshot")
    assert after is not None and after.ref != before.ref
    trained = set(snapshot.load_split(store, after, "train", chunks=False).ids)
    assert len(trained) > 245 and not trained & once_held_out
