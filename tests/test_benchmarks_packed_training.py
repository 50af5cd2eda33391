"""The benchmark of packed training: what it says of pairs, and that all sides train the same tokens."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from benchmarks import packed_sides
from benchmarks.table import Goal, render
from benchmarks.turns import PairedRow, median_interval


@pytest.mark.parametrize(
    ("count", "ends"), [(1, (0, 0)), (5, (0, 4)), (7, (0, 6)), (9, (1, 7)), (25, (7, 17))]
)
def test_interval_of_the_median_reaches_its_level(count: int, ends: tuple[int, int]) -> None:
    values = np.random.default_rng(0).permutation(count).tolist()
    low, high, level = median_interval(values)
    assert (low, high) == ends
    assert level == pytest.approx(max(0.0, 1 - 2 * binom.cdf(low, count, 0.5)))
    assert level >= 0.95 or low == 0


def test_ratio_is_the_median_of_pairs_not_of_sides() -> None:
    row = PairedRow("packed", 1.0, "another", 1.0, Goal("ratio", 0.5), pairs=[0.4, 0.45, 2.0])
    assert row.ratio == 0.45 and row.met
    assert "0.45" in render([row])


@pytest.mark.parametrize("scale", packed_sides.SCALES.values(), ids=packed_sides.SCALES)
def test_documents_fill_the_rows_and_are_typical(tmp_path: Path, scale: packed_sides.StepSize) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.train_from_iterator(
        [], trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    windows = packed_sides.documents(tmp_path, scale)
    assert sum(map(len, windows)) == scale.num_tokens
    assert packed_sides.packed(windows, scale).packing.num_rows == scale.num_rows
    if scale is packed_sides.SCALES["cpu"]:
        # Over many draws the padding is 57.9%.
        assert packed_sides._padding(windows) == pytest.approx(0.579, abs=0.01)
