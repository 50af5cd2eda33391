"""The row against LLaMA-Factory: what it is given, how its padding is counted, and what is said where it is
not installed.
"""

import os
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks import llama_factory
from benchmarks.__main__ import NAMES, OPTIONAL_NAME, SLOW_NAMES, chosen, main
from benchmarks.llama_factory import arguments, find_python, measure_llama_factory, padding, versions
from benchmarks.packed_sides import SCALES
from benchmarks.turns import Rounds
from tests.smollm2 import write_tiny_model


def _rounds(*fed: int, useful: int = 2_030) -> Rounds:
    steps = [{"seconds": 1.0, "cpu": 2.0, "num_tokens": useful, "num_fed": num_fed} for num_fed in fed]
    return Rounds(
        {"ours": [], "theirs": steps}, {"ours": {"num_tokens": 2_030}, "theirs": {"num_tokens": 2_030}}, 0.0
    )


def test_padding_is_what_was_fed_over_all_steps() -> None:
    assert padding(_rounds(4_060, 8_120), "theirs") == pytest.approx(2 / 3)


def test_other_tokens_than_ours_are_no_comparison() -> None:
    with pytest.raises(RuntimeError, match="theirs trained on 2,029 useful tokens in a step, ours on 2,030"):
        padding(_rounds(4_060, useful=2_029), "theirs")


def test_a_step_holds_all_documents_and_the_rest_is_default() -> None:
    given = arguments("model", "rows", "output", 17, bf16=True, use_cpu=True)
    assert given["gradient_accumulation_steps"] == 3  # of 8 rows by default
    assert set(given) == {
        *(
            "stage",
            "do_train",
            "finetuning_type",
            "model_name_or_path",
            "dataset",
            "tokenized_path",
            "output_dir",
        ),
        *("gradient_accumulation_steps", "num_train_epochs", "learning_rate", "bf16", "use_cpu"),
    }
    changed = arguments(
        "model",
        "rows",
        "output",
        17,
        bf16=True,
        use_cpu=True,
        **llama_factory.SIDES["llamafactory_no_checkpointing"],
    )
    assert changed == given | {"disable_gradient_checkpointing": True}


def test_versions_of_both_are_reported() -> None:
    message = versions(
        {"llamafactory": "0.9.5", **dict.fromkeys(("transformers", "torch", "accelerate", "datasets"), "1.2")}
    )
    assert message.startswith(
        f"LLaMA-Factory 0.9.5 with what it pins: transformers 1.2 (ours {version('transformers')}), torch 1.2"
    )


def test_the_row_is_skipped_where_no_environment_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen(None, slow=True, llamafactory=None) == [
        name for name in (*NAMES, *SLOW_NAMES) if name != OPTIONAL_NAME
    ]
    assert re.fullmatch(
        r"left out: packed_training_llamafactory needs .*LLAMAFACTORY=folder.*\n", capsys.readouterr().err
    )
    assert OPTIONAL_NAME in chosen(None, slow=False, llamafactory=Path("environment"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "needs a virtual environment with LLaMA-Factory, LLAMAFACTORY=folder"),
        (["--llamafactory", "nowhere"], "nowhere is no virtual environment"),
        (["--llamafactory", sys.prefix], "llamafactory is not installed in"),
    ],
)
def test_asked_for_without_an_environment_is_one_line(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--only", OPTIONAL_NAME, *given])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_llama_factory_trains_the_same_tokens(tmp_path: Path) -> None:
    environment = os.environ.get("LLAMAFACTORY")
    if environment is None:
        pytest.skip("LLAMAFACTORY names no virtual environment with LLaMA-Factory")
    row = measure_llama_factory(
        find_python(Path(environment)),
        write_tiny_model(tmp_path / "model"),
        tmp_path / "logs",
        rounds=2,
        threads=1,
    )
    assert row.name == OPTIONAL_NAME
    assert (
        f"{SCALES['cpu'].num_rows} packed rows of 512 against 13 rows in 2 passes, with checkpointing"
        in row.notes[1]
    )
    # Of many draws 57.9% with passes padded to their longest; LLaMA-Factory rounds that up to a multiple of
    # 8.
    share = int(re.match(r"(\d+)% of what it feeds is padding", row.notes[2]).group(1))
    assert 45 <= share <= 70
    sides = llama_factory.SIDES
    assert all((tmp_path / "logs" / f"packed-training-{name}.log").exists() for name in ("ours", *sides))
